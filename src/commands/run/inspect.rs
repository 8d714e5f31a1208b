//! Tells the user how to enter a sandbox that stays.

use isol8_api::SessionId;
use isol8_backend::SandboxId;
use isol8_config::Config;
use isol8_engine::backends::BackendKind;
use isol8_engine::local::{self, LocalSession};

use crate::commands::follow::output::Output;

/// Prints the commands on standard error. Prints nothing if no sandbox is left.
pub(super) fn tell(config: &Config, session: &SessionId, output: &mut Output) {
    let mut sessions = local::list(config).into_iter();
    let Some(session) = sessions.find(|one| one.info.id == *session) else {
        return;
    };
    let id = &session.info.id;
    output.note(&format!("the sandbox stays up as session {id}"));
    output.line(&format!("  isol8 shell --session-id {id}\n"));
    if let Some(command) = from_the_host(&session) {
        output.line(&format!("  {command}\n"));
    }
    output.line(&format!("  isol8 session delete {id}    removes it\n"));
}

/// Returns the command that enters the sandbox without isol8.
fn from_the_host(session: &LocalSession) -> Option<String> {
    let sandbox = session.info.container_id.as_str();
    match session.backend {
        BackendKind::Docker => {
            let container = isol8_backend_docker::container_name(&SandboxId::parse(sandbox)?);
            Some(format!("docker exec -it {container} bash"))
        }
        BackendKind::Native => {
            let process = isol8_backend_native::cgroup::first_process(&session.instance, sandbox)?;
            Some(format!("nsenter --target {process} --all bash"))
        }
    }
}
