//! A root made from Debian's packages, with programs from PyPI and npm.

use std::io::{self, Write as _};

use bytes::Bytes;
use futures::{StreamExt as _, TryStreamExt as _};
use isol8_protocol::{SANDBOX_GID, SANDBOX_UID};
use tempfile::NamedTempFile;
use tokio::process::Command;
use tokio::sync::mpsc;

use super::super::base::{BOOTSTRAP, Process, archive_of, forward_lines};
use super::super::build::forwarded;
use super::super::context::Inputs;
use super::super::{Report, SetupEvent};
use super::Archive;

/// Directory in the new root for the build context, which the script `root` of the context removes.
const CONTEXT: &str = "/.isol8/context";

/// `PATH` of programs in the new root, which is Debian's own.
const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// Makes the archive while `take` reads it.
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
                format!("{program} is missing; install it with `apt-get install {program}`")
            }
            _ => format!("{program} cannot be started: {error}"),
        }
    })?;
    let stdout = process.stdout()?;
    let (log, mut lines) = mpsc::unbounded_channel();
    let logging = forward_lines(process.stderr()?, log);
    let archive = archive_of(process, stdout).map_ok(Bytes::from).boxed();
    let reporting = async {
        let mut explanation = Explanation::default();
        while let Some(line) = lines.recv().await {
            explanation.observe(&line);
            report(SetupEvent::Log(line));
        }
        explanation
    };
    let (taken, (), explanation) = tokio::join!(take(archive), logging, reporting);
    taken.map_err(|error| explanation.explain(error))
}

/// Returns the build context of the images as a file: the scripts, and the certificates to trust.
fn context(inputs: &Inputs<'_>) -> Result<NamedTempFile, String> {
    let pack = || -> io::Result<NamedTempFile> {
        let mut file = NamedTempFile::new()?;
        file.write_all(&inputs.archive()?)?;
        Ok(file)
    };
    pack().map_err(|error| format!("build context cannot be packed: {error}"))
}

fn command(context: &NamedTempFile) -> Result<Command, String> {
    let (program, arguments) = BOOTSTRAP.split_first().ok_or("no command")?;
    let context = context.path().display();
    let hooks = [
        format!("mkdir -p \"$1\"{CONTEXT}"),
        format!("tar-in {context} {CONTEXT}"),
        format!("chroot \"$1\" bash {CONTEXT}/root"),
    ];
    let mut command = Command::new(program);
    command
        .args(hooks.map(|hook| format!("--customize-hook={hook}")))
        // After a crash the whole root is discarded, so dpkg need not sync each file to the disk.
        .arg("--dpkgopt=force-unsafe-io")
        .args(arguments)
        // The settings of this user must not affect programs in the new root.
        .env_clear()
        .envs(forwarded(|name| std::env::var(name).ok()))
        .envs(std::env::var_os("TMPDIR").map(|directory| ("TMPDIR", directory)))
        .envs([("HOME", "/root"), ("LC_ALL", "C.UTF-8"), ("PATH", PATH)])
        .env("SANDBOX_UID", SANDBOX_UID.to_string())
        .env("SANDBOX_GID", SANDBOX_GID.to_string());
    Ok(command)
}

/// The line of the output that explains a failure: the first error, or the last line if there is no error.
#[derive(Debug, Default)]
struct Explanation {
    error: Option<String>,
    last: String,
}

impl Explanation {
    fn observe(&mut self, line: &str) {
        let is_error = ["E: ", "ERROR: ", "npm error "]
            .iter()
            .any(|prefix| line.starts_with(prefix));
        if is_error && self.error.is_none() {
            self.error = Some(line.to_owned());
        }
        line.clone_into(&mut self.last);
    }

    fn explain(self, error: String) -> String {
        let line = self.error.unwrap_or(self.last);
        if line.is_empty() {
            return error;
        }
        format!("{error}; output of {}: {line}", BOOTSTRAP[0])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_error_explains_a_failure() {
        let mut explanation = Explanation::default();
        for line in ["fine", "E: no network", "E: setup failed", "removing"] {
            explanation.observe(line);
        }
        let text = explanation.explain("it failed".to_owned());
        assert_eq!(text, "it failed; output of mmdebstrap: E: no network");
        assert_eq!(Explanation::default().explain("x".to_owned()), "x");
    }
}
