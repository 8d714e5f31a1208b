//! The base image that all others start from.

use std::io;
use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use bollard::body_try_stream;
use bollard::query_parameters::CreateImageOptionsBuilder;
use futures::{Stream, StreamExt as _, TryStreamExt as _, stream};
use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;
use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, BufReader};
use tokio::process::{Child, ChildStderr, ChildStdout, Command};
use tokio::sync::mpsc;

use super::{Report, SetupError, SetupEvent, SetupOptions, inspect, with_deadline};
use crate::engine::Engine;

/// Repository of a bootstrapped base.
const REPOSITORY: &str = "isol8-base";
/// Tag of a bootstrapped base, which is the release of Debian.
const TAG: &str = "trixie";

/// Deadline of pulling a base, which has about 30 MB. Long enough for a slow connection.
const PULL_DEADLINE: Duration = Duration::from_secs(15 * 60);

/// Deadline of bootstrapping a base. About 80 MB of packages are downloaded and unpacked: 15 s on the development
/// machine, minutes on a slow connection.
const BOOTSTRAP_DEADLINE: Duration = Duration::from_secs(30 * 60);

/// Command line that writes the archive of a base to standard output. Manual pages and
/// translations are not needed in a sandbox. All sources are on one host, so that a mirror or proxy
/// for this host suffices.
pub(super) const BOOTSTRAP: [&str; 14] = [
    "mmdebstrap",
    "--variant=minbase",
    "--format=tar",
    "--aptopt=Acquire::Languages \"none\"",
    "--aptopt=APT::Install-Recommends \"false\"",
    "--dpkgopt=path-exclude=/usr/share/man/*",
    "--dpkgopt=path-exclude=/usr/share/locale/*",
    "--dpkgopt=path-exclude=/usr/share/doc/*",
    "--dpkgopt=path-include=/usr/share/doc/*/copyright",
    TAG,
    "-",
    "deb http://deb.debian.org/debian trixie main",
    "deb http://deb.debian.org/debian trixie-updates main",
    "deb http://deb.debian.org/debian-security trixie-security main",
];

/// Pulls or bootstraps the base image if needed. Returns its reference.
pub(super) async fn provide(
    engine: &Engine,
    options: &SetupOptions,
    report: Report<'_>,
) -> Result<String, SetupError> {
    let reason = if options.bootstrap {
        "requested".to_owned()
    } else {
        let is_here = inspect(engine, &options.base).await?.is_some();
        if is_here && !options.force {
            return Ok(options.base.clone());
        }
        match pull(engine, &options.base, report).await {
            Ok(()) => return Ok(options.base.clone()),
            // A base that was made on this host is in no registry.
            Err(_) if is_here => return Ok(options.base.clone()),
            Err(reason) => format!("{} cannot be pulled: {reason}", options.base),
        }
    };
    let bootstrapped = format!("{REPOSITORY}:{TAG}");
    let old = inspect(engine, &bootstrapped).await?;
    if options.force || old.is_none() {
        report(SetupEvent::BaseBootstrapping {
            reason: reason.clone(),
        });
        let done = with_deadline(BOOTSTRAP_DEADLINE, bootstrap(engine, report)).await;
        done.map_err(|error| {
            SetupError::Base(format!("{error} (reason for bootstrapping: {reason})"))
        })?;
    }
    Ok(bootstrapped)
}

async fn pull(engine: &Engine, reference: &str, report: Report<'_>) -> Result<(), String> {
    report(SetupEvent::BasePulling {
        reference: reference.to_owned(),
    });
    let (image, tag) = split_reference(reference);
    let options = CreateImageOptionsBuilder::new()
        .from_image(image)
        .tag(tag)
        .build();
    let pulled = engine.docker.create_image(Some(options), None, None);
    let pulled = pulled.try_for_each(|_| futures::future::ready(Ok(())));
    let answer = engine.call(PULL_DEADLINE, pulled).await;
    answer.map_err(|error| error.to_string())
}

/// Splits a reference into image and tag. Without a tag the engine would pull all tags. For the engine, a digest is part
/// of the image.
fn split_reference(reference: &str) -> (&str, &str) {
    if reference.contains('@') {
        return (reference, "");
    }
    match reference.rsplit_once(':') {
        // A colon before the last slash precedes a registry's port.
        Some((image, tag)) if !tag.contains('/') => (image, tag),
        _ => (reference, "latest"),
    }
}

/// Makes a root file system from Debian's packages, and imports it directly into the engine.
async fn bootstrap(engine: &Engine, report: Report<'_>) -> Result<(), String> {
    let mut process = Process::start(&BOOTSTRAP)?;
    let stdout = process.stdout()?;
    let stderr = process.stderr()?;
    let (log, mut lines) = mpsc::unbounded_channel();
    let logging = forward_lines(stderr, log);

    let options = CreateImageOptionsBuilder::new()
        .from_src("-")
        .repo(REPOSITORY)
        .tag(TAG)
        .build();
    let body = body_try_stream(archive_of(process, stdout).map_ok(Into::into));
    let importing = engine
        .docker
        .create_image(Some(options), Some(body), None)
        .try_for_each(|_| futures::future::ready(Ok(())));
    let importing = engine.call(BOOTSTRAP_DEADLINE, importing);
    let reporting = async {
        let mut last = String::new();
        while let Some(line) = lines.recv().await {
            last.clone_from(&line);
            report(SetupEvent::Log(line));
        }
        last
    };
    let (imported, (), last) = tokio::join!(importing, logging, reporting);
    imported.map_err(|error| format!("{error}; last line of {}: {last}", BOOTSTRAP[0]))
}

/// Streams the standard output of a process. Ends with an error if the process fails: otherwise the engine would
/// take a partial archive for a complete one. With the error it discards the partial archive.
pub(super) fn archive_of(
    process: Process,
    stdout: ChildStdout,
) -> impl Stream<Item = io::Result<Vec<u8>>> + Send + 'static {
    stream::try_unfold(Some((process, stdout)), |state| async move {
        const PIECE: usize = 256 * 1024;
        let Some((mut process, mut stdout)) = state else {
            return Ok(None);
        };
        let mut piece = Vec::with_capacity(PIECE);
        if stdout.read_buf(&mut piece).await? > 0 {
            return Ok(Some((piece, Some((process, stdout)))));
        }
        let status = process.wait().await?;
        if status.success() {
            return Ok(None);
        }
        Err(io::Error::other(format!(
            "{} failed: {status}",
            BOOTSTRAP[0]
        )))
    })
    .boxed()
}

pub(super) async fn forward_lines(stderr: ChildStderr, log: mpsc::UnboundedSender<String>) {
    let mut lines = BufReader::new(stderr).lines();
    // A read error does not fail the setup: the exit status decides.
    while let Ok(Some(line)) = lines.next_line().await {
        // Ignore a dropped receiver: the caller has cancelled the setup.
        let _ = log.send(line);
    }
}

/// A child process and its descendants. Dropping this value asks them to end if the process still runs.
#[derive(Debug)]
pub(super) struct Process {
    child: Child,
    group: Option<Pid>,
}

impl Process {
    fn start(command: &[&str]) -> Result<Self, String> {
        let (program, arguments) = command.split_first().ok_or("no command")?;
        Self::spawn(Command::new(program).args(arguments)).map_err(|error| match error.kind() {
            io::ErrorKind::NotFound => format!(
                "{program} is missing; install it with `apt-get install {program}`, or set a base image that can be pulled"
            ),
            _ => format!("{program} cannot be started: {error}"),
        })
    }

    /// Starts a process without input. The caller reads its output.
    pub(super) fn spawn(command: &mut Command) -> io::Result<Self> {
        let child = command
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .process_group(0)
            .spawn()?;
        let pid = child.id().and_then(|id| i32::try_from(id).ok());
        let group = pid.map(Pid::from_raw);
        Ok(Self { child, group })
    }

    pub(super) fn stdout(&mut self) -> Result<ChildStdout, String> {
        let stdout = self.child.stdout.take();
        stdout.ok_or_else(|| "standard output is taken".to_owned())
    }

    pub(super) fn stderr(&mut self) -> Result<ChildStderr, String> {
        let stderr = self.child.stderr.take();
        stderr.ok_or_else(|| "standard error is taken".to_owned())
    }

    async fn wait(&mut self) -> io::Result<ExitStatus> {
        let status = self.child.wait().await?;
        self.group = None;
        Ok(status)
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        if let Some(group) = self.group {
            // SIGTERM instead of SIGKILL lets mmdebstrap remove its mounts and its directory.
            // An error means that the process has already ended.
            let _ = killpg(group, Signal::SIGTERM);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reference_without_a_tag_means_the_latest() {
        let cases = [
            ("debian", ("debian", "latest")),
            ("debian:bookworm-slim", ("debian", "bookworm-slim")),
            ("localhost:5000/debian", ("localhost:5000/debian", "latest")),
            ("localhost:5000/debian:12", ("localhost:5000/debian", "12")),
            ("debian@sha256:abc", ("debian@sha256:abc", "")),
        ];
        for (reference, expected) in cases {
            assert_eq!(split_reference(reference), expected);
        }
    }

    async fn output_of(script: &str) -> io::Result<Vec<u8>> {
        let mut process = Process::start(&["sh", "-c", script]).unwrap();
        let stdout = process.stdout().unwrap();
        archive_of(process, stdout).try_concat().await
    }

    #[tokio::test]
    async fn an_archive_is_complete_only_if_its_process_succeeded() {
        assert_eq!(output_of("printf abc").await.unwrap(), b"abc");
        let error = output_of("printf abc; exit 3").await.unwrap_err();
        assert!(error.to_string().contains("exit status: 3"), "{error}");
    }

    #[test]
    fn a_missing_program_is_named_with_the_fix() {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap();
        let _guard = runtime.enter();
        let error = Process::start(&["no-such-program"]).unwrap_err();
        assert!(error.contains("apt-get install no-such-program"), "{error}");
    }

    #[tokio::test]
    async fn a_dropped_process_ends_with_its_children() {
        let mut process = Process::start(&["sh", "-c", "sleep 600 & wait"]).unwrap();
        // Both processes have the pipe open, so the end of the stream shows that both have ended.
        let mut stdout = process.stdout().unwrap();
        drop(process);
        let mut written = Vec::new();
        let ended = stdout.read_to_end(&mut written);
        let ended = tokio::time::timeout(Duration::from_secs(10), ended).await;
        assert_eq!(ended.unwrap().unwrap(), 0);
    }
}
