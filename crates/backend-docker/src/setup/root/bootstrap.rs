//! A root out of Debian's packages, with what PyPI and npm have.

use std::io::{self, Write as _};

use bytes::Bytes;
use futures::{StreamExt as _, TryStreamExt as _};
use isol8_protocol::{SANDBOX_GID, SANDBOX_UID};
use tempfile::NamedTempFile;
use tokio::process::Command;
use tokio::sync::mpsc;

use super::super::base::{BOOTSTRAP, Process, archive_of, forward_lines};
use super::super::build::forwarded;
use super::super::context::{DOCKERFILE, Inputs};
use super::super::{Report, SetupEvent};
use super::Archive;
use super::script::{CONTEXT, script};

/// Directories in which programs are looked for in the new root, and on Debian itself.
const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// Has the archive made while `take` reads it.
pub(super) async fn bootstrap(
    inputs: &Inputs<'_>,
    report: Report<'_>,
    take: impl AsyncFnOnce(Archive) -> Result<(), String>,
) -> Result<(), String> {
    let context = context(inputs)?;
    let mut process = Process::spawn(&mut command(&context)?).map_err(|error| {
        let program = BOOTSTRAP[0];
        match error.kind() {
            io::ErrorKind::NotFound => {
                format!("{program} is missing: install it (`apt-get install {program}`)")
            }
            _ => format!("{program} cannot be started: {error}"),
        }
    })?;
    let stdout = process.stdout()?;
    let (log, mut lines) = mpsc::unbounded_channel();
    let logging = forward_lines(process.stderr()?, log);
    let archive = archive_of(process, stdout).map_ok(Bytes::from).boxed();
    let reporting = async {
        let mut wrong = Wrong::default();
        while let Some(line) = lines.recv().await {
            wrong.see(&line);
            report(SetupEvent::Log(line));
        }
        wrong
    };
    let (taken, (), wrong) = tokio::join!(take(archive), logging, reporting);
    taken.map_err(|error| wrong.explain(error))
}

/// The script's input: certificates to trust, and itself.
fn context(inputs: &Inputs<'_>) -> Result<NamedTempFile, String> {
    let script = script(DOCKERFILE)?;
    let pack = || -> io::Result<NamedTempFile> {
        let mut file = NamedTempFile::new()?;
        file.write_all(&inputs.archive_with("script", &script)?)?;
        Ok(file)
    };
    pack().map_err(|error| format!("script cannot be packed: {error}"))
}

fn command(context: &NamedTempFile) -> Result<Command, String> {
    let (program, arguments) = BOOTSTRAP.split_first().ok_or("no command")?;
    let context = context.path().display();
    let hooks = [
        format!("mkdir -p \"$1\"{CONTEXT}"),
        format!("tar-in {context} {CONTEXT}"),
        format!("chroot \"$1\" sh {CONTEXT}/script"),
    ];
    let mut command = Command::new(program);
    command
        .args(hooks.map(|hook| format!("--customize-hook={hook}")))
        // A root that a crash interrupts is thrown away as a whole: no file needs to be on the disk before the next.
        .arg("--dpkgopt=force-unsafe-io")
        .args(arguments)
        // Programs are run in the new root that know nothing of this user's settings.
        .env_clear()
        .envs(forwarded(|name| std::env::var(name).ok()))
        .envs(std::env::var_os("TMPDIR").map(|directory| ("TMPDIR", directory)))
        .envs([("HOME", "/root"), ("LC_ALL", "C.UTF-8"), ("PATH", PATH)])
        .env("SANDBOX_UID", SANDBOX_UID.to_string())
        .env("SANDBOX_GID", SANDBOX_GID.to_string());
    Ok(command)
}

/// The text of a failure: the first line that reports an error, else the last one.
#[derive(Debug, Default)]
struct Wrong {
    error: Option<String>,
    last: String,
}

impl Wrong {
    fn see(&mut self, line: &str) {
        let is_error = ["E: ", "ERROR: ", "npm error "]
            .iter()
            .any(|prefix| line.starts_with(prefix));
        if is_error && self.error.is_none() {
            self.error = Some(line.to_owned());
        }
        line.clone_into(&mut self.last);
    }

    fn explain(self, error: String) -> String {
        let said = self.error.unwrap_or(self.last);
        if said.is_empty() {
            return error;
        }
        format!("{error}; {} said: {said}", BOOTSTRAP[0])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_error_explains_a_failure() {
        let mut wrong = Wrong::default();
        for line in ["fine", "E: no network", "E: setup failed", "removing"] {
            wrong.see(line);
        }
        let text = wrong.explain("it failed".to_owned());
        assert_eq!(text, "it failed; mmdebstrap said: E: no network");
        assert_eq!(Wrong::default().explain("x".to_owned()), "x");
    }
}
