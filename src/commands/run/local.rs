//! A run on this host, without a server.

use std::process::ExitCode;

use futures::StreamExt as _;
use futures::stream;
use isol8_actors::{Job, JobStream};
use isol8_api::{Encoding, ExecutionResult, NetworkMode, Runtime, SessionId, TenantId};
use isol8_backend::SandboxId;
use isol8_config::Config;
use isol8_engine::active::ActiveConfig;
use isol8_engine::backends::Needs;
use isol8_engine::images::{self, choice};
use isol8_engine::jobs::{self, JobError};
use isol8_engine::local::{self, LocalError, LocalService};

use super::request::RunRequest;
use super::{ending, inspect};
use crate::cli::{RunArgs, SandboxArgs};
use crate::commands::error::CommandError;
use crate::commands::follow::input::UserInput;
use crate::commands::follow::output::Output;
use crate::commands::follow::signals::Signals;
use crate::commands::follow::{Events, RunOutcome, follow};
use crate::commands::load::load_config;
use crate::commands::message;

pub(super) async fn run(
    arguments: &RunArgs,
    request: RunRequest,
    mut signals: Signals,
    mut output: Output,
) -> Result<ExitCode, CommandError> {
    let mut config = load_config(&arguments.common)?;
    grant_network(&mut config, &arguments.sandbox);
    let config = ActiveConfig::new(config)?;
    let runtime = request.body.runtime;
    let session = session(arguments, runtime)?;
    choice::check_named(&request.options, runtime, &TenantId::master(), &config)?;
    let mut job = jobs::job(request.body, request.options, &config)?;
    let (mut user_input, input) = UserInput::new(job.terminal);
    let needs = needs(&arguments.sandbox, runtime);
    let local = tokio::select! {
        local = open(&config, session.clone(), &needs) => local?,
        stop = signals.stop() => return ending::stopped(stop, output).await,
    };
    let ready = match refuse_unenforced(&arguments.sandbox, &local) {
        Ok(()) => choose_image(&mut job, &config, &local)
            .await
            .map_err(CommandError::from),
        refused => refused,
    };
    if let Err(failure) = ready {
        close(&config, local).await?;
        return Err(failure);
    }
    user_input.forward_stdin(request.reads_stdin)?;
    let mut run = local.stream(job, Some(input));
    let followed = follow(events(&mut run), &user_input, &mut signals, &mut output).await;
    let result = run.result().cloned();
    drop(run);
    // A user who does not want to wait for the removal leaves it to the next sweep.
    tokio::select! {
        ended = close(&config, local) => ended?,
        stop = signals.stop() => return ending::stopped(stop, output).await,
    }
    if let Some(session) = session.filter(|_| arguments.persist) {
        inspect::tell(&config, &session, &mut output);
    }
    end(followed, result, arguments.json, output).await
}

/// Grants the network that a flag names. On this machine the flag is the decision of its operator, even if the
/// configuration, which is meant for requests of clients, does not grant it.
pub(in crate::commands) fn grant_network(config: &mut Config, sandbox: &SandboxArgs) {
    let Some(mode) = sandbox
        .net
        .filter(|mode| !config.policy.networks.contains(mode))
    else {
        return;
    };
    config.policy.networks.push(mode);
    let reach = match mode {
        NetworkMode::None => "nothing",
        NetworkMode::Filtered => "the hosts that [network] allows",
        NetworkMode::Host => {
            "everything that this machine reaches, including services on its loopback interface"
        }
    };
    message::to_stderr(&format!(
        "{}--net {mode} is not in policy.network, but granted for this command: the program can reach {reach}\n",
        message::prefix()
    ));
}

/// Refuses limits that a flag names if the backend does not enforce them: the user would believe the program
/// bounded, while it is free to use all memory. Limits from defaults are accepted, with the backend's warning.
///
/// # Errors
/// Returns a [`CommandError`] that names the flag and the ways to enforce it.
pub(in crate::commands) fn refuse_unenforced(
    sandbox: &SandboxArgs,
    local: &LocalService,
) -> Result<(), CommandError> {
    let backend = local.service().backend();
    if backend.enforces_limits() {
        return Ok(());
    }
    let name = backend.name();
    match sandbox.limits().next() {
        None => Ok(()),
        Some((flag, property)) => Err(format!(
            "{flag}: the {name} backend cannot enforce it for an ordinary user; run isol8 as root, use --backend \
             docker, or leave it out and limit the whole command with your own cgroup: systemd-run --user --scope -p \
             {property} isol8 run …"
        )
        .into()),
    }
}

/// Chooses the image that holds the packages which the job asks for, if there is one.
async fn choose_image(
    job: &mut Job,
    config: &ActiveConfig,
    local: &LocalService,
) -> Result<(), JobError> {
    if job.install.is_some() {
        images::look_up(config.images(), config, local.backend()).await;
    }
    choice::choose(job, config.images())
}

/// Returns the session of the run, if any.
fn session(arguments: &RunArgs, runtime: Runtime) -> Result<Option<SessionId>, CommandError> {
    let name = if arguments.persistent {
        runtime.to_string()
    } else if arguments.persist {
        // A new session, which no other command uses.
        format!("kept-{}", SandboxId::random())
    } else {
        return Ok(None);
    };
    Ok(Some(name.parse()?))
}

/// Opens the session, or starts a backend for a single run.
pub(in crate::commands) async fn open(
    config: &Config,
    session: Option<SessionId>,
    needs: &Needs,
) -> Result<LocalService, LocalError> {
    match session {
        Some(session) => LocalService::session(config, session, needs).await,
        None => LocalService::start(config, needs).await,
    }
}

/// Returns the requirements of one command on its backend.
pub(in crate::commands) fn needs(sandbox: &SandboxArgs, runtime: Runtime) -> Needs {
    Needs {
        runtime: Some(runtime),
        images: sandbox
            .image
            .as_ref()
            .map(|image| format!("--image {image} is for docker")),
    }
}

/// Ends the use of the sandbox, and removes expired sessions.
pub(in crate::commands) async fn close(
    config: &Config,
    local: LocalService,
) -> Result<(), LocalError> {
    local.end().await?;
    local::expire(config).await;
    Ok(())
}

/// Returns the events of a run on this host.
pub(in crate::commands) fn events(run: &mut JobStream) -> Events<'_> {
    let events = stream::unfold(run, |run| async {
        let event = run.next().await?;
        Some((event.map_err(CommandError::from), run))
    });
    events.boxed_local()
}

/// Encodes output as results contain it: text without trailing white space, or base64.
fn carried(bytes: Vec<u8>) -> (String, Encoding) {
    let (mut text, encoding) = Encoding::encode(bytes);
    if encoding.is_utf8() {
        text.truncate(text.trim_end().len());
    }
    (text, encoding)
}

async fn end(
    followed: Result<RunOutcome, CommandError>,
    result: Option<ExecutionResult>,
    as_json: bool,
    mut output: Output,
) -> Result<ExitCode, CommandError> {
    let (code, ending) = match followed {
        Ok(RunOutcome::Exited { code, ending }) => (code, ending),
        Ok(RunOutcome::Stopped(stop)) => return ending::stopped(stop, output).await,
        Err(failure) => {
            output.finish().await?;
            return Err(failure);
        }
    };
    match result {
        Some(mut result) if as_json => {
            let (stdout, stderr) = output.collected();
            (result.stdout, result.stdout_encoding) = carried(stdout);
            (result.stderr, result.stderr_encoding) = carried(stderr);
            result.files = ending.files;
            ending::exited_with(&result, output).await
        }
        result => {
            let logs = result.and_then(|result| result.network_logs);
            ending::print_network_log(&logs.unwrap_or_default(), &mut output);
            ending::exited(code, &ending, output).await
        }
    }
}
