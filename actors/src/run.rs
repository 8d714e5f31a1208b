//! Runs a job in a sandbox: files in, setup, the program, files out, the result.
//!
//! Every step in the guest is bounded twice: the guest ends a run at its timeout, and if it does not, the host takes
//! the sandbox for lost a little later.

pub(crate) mod events;
mod live;
mod output;
mod packages;
mod plan;
mod secrets;
mod text;

use std::collections::BTreeMap;
use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use futures::stream::{self, StreamExt as _, TryStreamExt as _};
use isol8_api::{
    Encoding, EventKind, ExecutionResult, NetworkLogEntry, Phase, ResourceUsage, StreamEvent,
    Timings,
};
use isol8_backend::{ControlError, RunEvent, RunHandle, Sandbox, SandboxUsage};
use isol8_protocol::{Exit, ExitStatus, FailureKind, RunSpec, Signal};
use tokio::time::{Instant, timeout};
use tokio_util::sync::CancellationToken;

use crate::error::{ExecuteError, FailureCause, PreparationFailed};
use crate::job::{Install, Job};
use crate::loss;
use crate::network::{self, Network};
pub use live::{Attachment, Input, InputSender};
use output::{Carried, Finished, Output, Sink, Written};
use secrets::Secrets;

/// How much later than the guest the host ends a run: the guest has to kill, drain and report.
const RUN_GRACE: Duration = Duration::from_secs(10);

/// How long after a run's timeout its client is still waited for. The program has ended by then.
const END_GRACE: Duration = Duration::from_secs(1);

/// How long a guest may take to end a run that was cancelled.
const KILL_TIMEOUT: Duration = Duration::from_secs(5);

/// How long all file transfers of one direction may take together.
const TRANSFER_TIMEOUT: Duration = Duration::from_secs(60);

/// How long reading a sandbox's usage may take; a result does without rather than wait.
const USAGE_TIMEOUT: Duration = Duration::from_secs(1);

/// Files that are written at the same time: enough to hide the round trips of small ones.
const CONCURRENT_WRITES: usize = 8;

/// Bytes of all files of a result together: they travel in one JSON document.
const OUTPUT_FILES_LIMIT: usize = 64 << 20;

/// Names of hosts from a guest that are told.
const MOST_NAMES: usize = 8;
/// The option that gives a setup script more time.
const TIMEOUT_KEY: &str = "timeoutMs";

/// The configuration key that gives an installation more time.
const INSTALL_TIMEOUT_KEY: &str = "packages.installTimeoutMs";

/// How a program ends that is killed.
const KILLED: ExitStatus = ExitStatus::Signal(9);

/// How a job without a program ends.
const NOTHING: Exit = Exit {
    status: ExitStatus::Code(0),
    timed_out: false,
    state_lost: false,
    stdout_bytes: 0,
    stderr_bytes: 0,
    wall_us: 0,
    cpu_us: Some(0),
    late_variables: 0,
    asked_names: Vec::new(),
};

/// The treatment of processes and files that a run leaves behind.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// Nothing stays.
    Ephemeral,
    /// Files, processes and the interpreter's state are for the next run.
    Session,
}

/// Facts about a sandbox that its owner keeps between runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SandboxHistory {
    /// Usage at the last measurement; `None` if it is not known.
    pub usage: Option<SandboxUsage>,
    /// Set if the interpreter's state was lost and no result has reported that yet.
    pub unreported_loss: bool,
}

impl SandboxHistory {
    /// For a sandbox that was just made.
    #[must_use]
    pub fn fresh() -> Self {
        Self {
            usage: Some(SandboxUsage::default()),
            unreported_loss: false,
        }
    }

    /// For a sandbox whose last run ended in an unknown state.
    #[must_use]
    pub fn unknown() -> Self {
        Self {
            usage: None,
            unreported_loss: true,
        }
    }
}

/// How long a job waited before it reached its sandbox.
#[derive(Clone, Copy, Debug, Default)]
pub struct QueueTimings {
    /// Waiting for its turn.
    pub queue: Duration,
    /// Getting a sandbox.
    pub acquire: Duration,
}

/// Runs a job. Once `cancel` is triggered, the running program is ended and the answer is [`ExecuteError::Cancelled`].
/// Output goes to the client that follows the run, or into the result.
///
/// # Errors
/// After [`ExecuteError::SandboxLost`] the sandbox may not be used again; after any other error
/// it may.
pub async fn run(
    sandbox: &dyn Sandbox,
    job: &Job,
    mode: Mode,
    waits: QueueTimings,
    memory: &mut SandboxHistory,
    live: Option<&Attachment>,
    cancel: &CancellationToken,
) -> Result<ExecutionResult, ExecuteError> {
    Execution {
        sandbox,
        job,
        memory,
        live,
        sink: match live {
            Some(live) => Sink::stream(live.events.clone()),
            None => Sink::Result(Written::default()),
        },
        cancel,
        secrets: Secrets::prepare(&job.secrets).await?,
        mode,
        lost_to_memory: false,
        warnings: job.warnings.clone(),
        is_full: false,
    }
    .all(waits)
    .await
}

struct Execution<'a> {
    sandbox: &'a dyn Sandbox,
    job: &'a Job,
    memory: &'a mut SandboxHistory,
    live: Option<&'a Attachment>,
    sink: Sink,
    cancel: &'a CancellationToken,
    secrets: Option<Arc<Secrets>>,
    mode: Mode,
    /// The kernel ended the guest, and with it the run, because memory was out.
    lost_to_memory: bool,
    /// Warnings for the client.
    warnings: Vec<String>,
    /// Memory was out before the run, and is after it: not the program holds it, files do.
    is_full: bool,
}

impl Execution<'_> {
    async fn all(mut self, waits: QueueTimings) -> Result<ExecutionResult, ExecuteError> {
        let timestamp = format!("{:.3}", jiff::Timestamp::now());
        let start = Instant::now();
        self.write_files().await?;
        if let Some(live) = self.live {
            live.begun.send_replace(true);
        }
        if let Some(install) = &self.job.install {
            self.install(install).await?;
        }
        if let Some(script) = &self.job.setup_script {
            self.set_up(script).await?;
        }
        let setup = start.elapsed();
        let program = plan::program(self.job, self.mode, self.live);
        let network = self.job.network.as_deref();
        let (exit, mut finished) = match program {
            Some(program) => self.supervise(Phase::Code, program, network).await?,
            None => (NOTHING, Finished::empty()),
        };
        let ran = start.elapsed() - setup;
        self.warn_of(&exit);
        let files = match self.read_files().await {
            // The program has ended, and the client that follows it must learn how.
            Err(error @ ExecuteError::Invalid(_)) if self.live.is_some() => {
                self.sink.tell(error.event()).await?;
                None
            }
            files => files?,
        };
        let (resource_usage, oom_killed) = self.account(&exit).await;
        if self.is_full && self.mode == Mode::Session {
            return Err(loss::full(self.job.sandbox.limits.memory));
        }
        if oom_killed {
            let note = loss::out_of_memory(self.job.sandbox.limits.memory);
            finished.add_line(&mut self.sink, &note).await?;
        }
        let network_logs = self.network_log().await;
        let Written { stdout, stderr } = self.sink.take();
        let [stdout, stderr] = [stdout, stderr].map(|it| Carried::new(it, self.job.is_trimmed));
        Ok(ExecutionResult {
            stdout: stdout.text,
            stderr: stderr.text,
            stdout_encoding: stdout.encoding,
            stderr_encoding: stderr.encoding,
            exit_code: exit_code(&exit),
            duration_ms: milliseconds(start.elapsed()),
            truncated: finished.truncated,
            execution_id: uuid::Uuid::new_v4().to_string(),
            runtime: self.job.runtime(),
            timestamp,
            container_id: self.sandbox.id().to_string(),
            files,
            network_logs,
            resource_usage,
            timed_out: exit.timed_out,
            oom_killed,
            state_lost: self.mode == Mode::Session
                && std::mem::take(&mut self.memory.unreported_loss),
            warnings: self.warnings,
            timings: Some(Timings {
                queue_ms: milliseconds(waits.queue),
                acquire_ms: milliseconds(waits.acquire),
                setup_ms: milliseconds(setup),
                run_ms: milliseconds(ran),
            }),
        })
    }

    /// Notes what the guest says of a session's run that its client cannot see.
    fn warn_of(&mut self, exit: &Exit) {
        let named = self.job.env.iter().take(64).enumerate();
        let late = named.filter(|(index, _)| exit.late_variables >> index & 1 == 1);
        let late: Vec<String> = late.map(|(_, (name, _))| name.clone()).collect();
        if !late.is_empty() {
            self.warnings.push(format!(
                "request.env: a session's interpreter reads {} at its start, so this request goes on without it: \
                 give it with the session's first request, or to POST /sessions",
                listed(&late)
            ));
        }
        if !exit.asked_names.is_empty() {
            let first = exit.asked_names.iter().take(MOST_NAMES);
            let names = first.map(|name| self.shown_name(name));
            let names: Vec<String> = names.collect();
            self.warnings.push(format!(
                "programs asked a name server for {}: there is none in a sandbox, a client that uses HTTPS_PROXY \
                 needs none in a run with network \"filtered\"",
                listed(&names)
            ));
        }
    }

    /// A name that a program asked for: it may have put a secret there, and the guest is not trusted to send a name.
    fn shown_name(&self, name: &str) -> String {
        const LONGEST: usize = 253;
        let begin = &name[..name.floor_char_boundary(4 * LONGEST)];
        let masked = match &self.secrets {
            Some(secrets) => secrets.mask_text(begin),
            None => begin.to_owned(),
        };
        masked.escape_default().take(LONGEST).collect()
    }

    async fn write_files(&self) -> Result<(), ExecuteError> {
        if self.job.files.is_empty() {
            return Ok(());
        }
        let sizes = self
            .job
            .files
            .iter()
            .map(|(_, content)| content.len() as u64);
        crate::files::check_memory(self.sandbox, sizes.sum()).await?;
        let control = self.sandbox.control();
        let files = self.job.files.iter();
        let writes: Vec<_> = files
            .map(|(path, content)| control.write_file(path.as_str(), 0o644, content))
            .collect();
        let writing = stream::iter(writes)
            .buffer_unordered(CONCURRENT_WRITES)
            .try_collect::<()>();
        self.transfer(writing).await
    }

    async fn install(&mut self, install: &Install) -> Result<(), ExecuteError> {
        let missing = install.missing_in(&self.job.sandbox.image);
        if missing.is_empty() {
            return Ok(());
        }
        let Some(network) = install.network.as_deref() else {
            return Err(ExecuteError::Invalid(format!(
                "request.installPackages: the image of this session lacks {}, and nothing is installed for {}",
                missing.join(", "),
                self.job.runtime()
            )));
        };
        let installation = packages::installation(self.job, install, missing);
        let installed = self
            .prepare(installation, Some(network), INSTALL_TIMEOUT_KEY)
            .await?;
        let Err(mut failure) = installed else {
            return Ok(());
        };
        let problems = network.problems().join("\n");
        if !problems.is_empty() {
            self.sink.tell(note(&problems)).await?;
            failure.stderr = format!("{problems}\n{}", failure.stderr);
        }
        Err(ExecuteError::InstallFailed(failure))
    }

    async fn set_up(&mut self, script: &str) -> Result<(), ExecuteError> {
        let setup = plan::setup(self.job, script);
        let network = self.job.network.as_deref();
        let prepared = self.prepare(setup, network, TIMEOUT_KEY).await?;
        prepared.map_err(ExecuteError::SetupFailed)
    }

    /// Runs the steps before the program, and returns how they failed, if they did.
    async fn prepare(
        &mut self,
        spec: RunSpec,
        network: Option<&dyn Network>,
        timeout_key: &'static str,
    ) -> Result<Result<(), PreparationFailed>, ExecuteError> {
        let limit = self.timeout_of(&spec);
        let (exit, _) = self.supervise(Phase::Setup, spec, network).await?;
        let Written { stderr, .. } = self.sink.take();
        if exit.status == ExitStatus::Code(0) && !exit.timed_out {
            return Ok(Ok(()));
        }
        let exit_code = exit_code(&exit);
        let cause = if exit.timed_out {
            FailureCause::TimedOut {
                limit,
                key: timeout_key,
            }
        } else if self.account(&exit).await.1 {
            FailureCause::OutOfMemory(self.job.sandbox.limits.memory)
        } else {
            FailureCause::Exit(exit_code)
        };
        Ok(Err(PreparationFailed {
            exit_code,
            cause,
            stderr: Carried::new(stderr, true).text,
        }))
    }

    /// How long the guest lets this run go on.
    fn timeout_of(&self, spec: &RunSpec) -> Duration {
        spec.timeout_ms
            .map_or(self.job.timeout, Duration::from_millis)
    }

    async fn read_files(&mut self) -> Result<Option<BTreeMap<String, String>>, ExecuteError> {
        if self.job.output_paths.is_empty() || self.lost_to_memory {
            return Ok(None);
        }
        let control = self.sandbox.control();
        let reading = async {
            let mut files = BTreeMap::new();
            let mut missing = Vec::new();
            let mut room = OUTPUT_FILES_LIMIT;
            for path in &self.job.output_paths {
                let content = match control.read_file(path.as_str(), room).await {
                    Ok(content) => content,
                    Err(error) if error.failure_kind() == Some(FailureKind::NotFound) => {
                        missing.push(path.to_string());
                        continue;
                    }
                    Err(error) => return Err(error),
                };
                room -= content.len();
                files.insert(path.to_string(), BASE64_STANDARD.encode(content));
            }
            Ok((files, missing))
        };
        let (files, missing) = self.transfer(reading).await?;
        if !missing.is_empty() {
            let missing = listed(&missing);
            self.warnings
                .push(format!("request.outputPaths: nothing is at {missing}"));
        }
        Ok(Some(files))
    }

    /// Bounds file transfers; dropping one ends it in the guest too.
    async fn transfer<T>(
        &self,
        work: impl Future<Output = Result<T, ControlError>>,
    ) -> Result<T, ExecuteError> {
        tokio::select! {
            () = self.cancel.cancelled() => Err(ExecuteError::Cancelled),
            done = timeout(TRANSFER_TIMEOUT, work) => match done {
                Ok(done) => Ok(done?),
                Err(_) => Err(lost("file transfer", TRANSFER_TIMEOUT)),
            },
        }
    }

    /// Sees one run to its end: its own, its timeout's, or its caller's.
    async fn supervise(
        &mut self,
        phase: Phase,
        mut spec: RunSpec,
        network: Option<&dyn Network>,
    ) -> Result<(Exit, Finished), ExecuteError> {
        spec.network = network.is_some();
        let time = self.timeout_of(&spec);
        let limit = time.saturating_add(RUN_GRACE);
        self.sink.wait_until(Instant::now() + time + END_GRACE);
        let mut output = Output::new(
            &mut self.sink,
            phase,
            self.job.output_limit,
            self.secrets.as_ref(),
            match phase {
                Phase::Code => self.job.output_encoding,
                Phase::Setup => Encoding::Utf8,
            },
        );
        let started = Instant::now();
        let mut run = self.sandbox.control().run(spec)?;
        let input = run.input();
        let live = self.live.filter(|_| phase == Phase::Code);
        let feeding = async {
            match live {
                Some(live) => live.feed(&input).await,
                None => std::future::pending().await,
            }
        };
        let serving = network::serve(network, run.tunnels());
        let ended = tokio::select! {
            () = self.cancel.cancelled() => Err(ExecuteError::Cancelled),
            ended = follow(&mut run, limit, &mut output) => ended,
            never = feeding => match never {},
            never = serving => match never {},
        };
        let exit = match ended {
            Err(ExecuteError::Cancelled) => {
                let exit = kill(&mut run).await?;
                self.memory.unreported_loss |= exit.state_lost;
                return Err(ExecuteError::Cancelled);
            }
            Err(ExecuteError::SandboxLost(reason)) => {
                let known = self.memory.usage;
                self.lost_to_memory = loss::is_for_memory(self.sandbox, known).await;
                if !self.lost_to_memory {
                    return Err(ExecuteError::SandboxLost(reason));
                }
                if self.mode == Mode::Session && !self.sandbox.control().is_closed() {
                    return Err(loss::full(self.job.sandbox.limits.memory));
                }
                if self.mode == Mode::Session {
                    return Err(ExecuteError::SandboxLost(loss::OUT_OF_MEMORY.to_owned()));
                }
                killed_with_its_sandbox(started.elapsed())
            }
            ended => ended?,
        };
        self.memory.unreported_loss |= exit.state_lost;
        let finished = tokio::select! {
            () = self.cancel.cancelled() => Err(ExecuteError::Cancelled),
            finished = output.finish(&exit) => finished,
        };
        Ok((exit, finished?))
    }

    /// Returns the program's network requests, if the job records them.
    async fn network_log(&self) -> Option<Vec<NetworkLogEntry>> {
        let entries = self.job.network.as_ref()?.log()?;
        match &self.secrets {
            Some(secrets) => Some(secrets.mask_requests(entries).await),
            None => Some(entries),
        }
    }

    /// Whether so much is held that an interpreter could not even boot.
    fn fills(&self, usage: &SandboxUsage) -> bool {
        let limit = self.job.sandbox.limits.memory.bytes();
        usage.memory_bytes + crate::files::MEMORY_BESIDE_FILES > limit
    }

    /// Returns the run's resource usage, and whether the kernel killed one of its processes for lack of memory.
    async fn account(&mut self, exit: &Exit) -> (Option<ResourceUsage>, bool) {
        if self.lost_to_memory {
            return (None, true);
        }
        let before = self.memory.usage;
        let now = match timeout(USAGE_TIMEOUT, self.sandbox.usage()).await {
            Ok(Ok(now)) => now,
            Ok(Err(error)) => {
                log::debug!(sandbox:% = self.sandbox.id(), error:%; "usage cannot be read");
                return (None, false);
            }
            Err(_) => return (None, false),
        };
        self.memory.usage = Some(now);
        let since = |value: fn(&SandboxUsage) -> u64| {
            before.map_or(0, |before| value(&now).saturating_sub(value(&before)))
        };
        let oom_killed = since(|usage| usage.oom_kills) > 0;
        self.is_full =
            oom_killed && before.is_some_and(|before| self.fills(&before)) && self.fills(&now);
        let most = before.map(|_| since(|usage| usage.cpu_us));
        let mut usage = resource_usage(&now, cpu_us(exit, most), exit.wall_us);
        if let Some(network) = &self.job.network {
            (usage.network_bytes_in, usage.network_bytes_out) = network.bytes();
        }
        (Some(usage), oom_killed)
    }
}

/// Passes on what a run writes, up to its end. The time that a slow client takes is not the run's: the
/// guest waits for it, and so does the host's patience with the guest.
async fn follow(
    run: &mut RunHandle,
    limit: Duration,
    output: &mut Output<'_>,
) -> Result<Exit, ExecuteError> {
    let mut patience = limit;
    loop {
        let asked = Instant::now();
        let event = timeout(patience, run.next()).await;
        patience = patience.saturating_sub(asked.elapsed());
        match event.map_err(|_| lost("run", limit))?? {
            RunEvent::Output(stream, bytes) => output.push(stream, bytes).await?,
            RunEvent::Exited(exit) => return Ok(exit),
        }
    }
}

/// Ends a run whose caller is gone, and waits for its end: what comes next in the sandbox must
/// not meet it.
async fn kill(run: &mut RunHandle) -> Result<Exit, ExecuteError> {
    run.signal(Signal::Kill)?;
    let ending = async {
        loop {
            if let RunEvent::Exited(exit) = run.next().await? {
                return Ok(exit);
            }
        }
    };
    match timeout(KILL_TIMEOUT, ending).await {
        Ok(exit) => exit,
        Err(_) => Err(lost("end of a cancelled run", KILL_TIMEOUT)),
    }
}

/// The end of a run whose guest was ended with it, and could not tell.
fn killed_with_its_sandbox(after: Duration) -> Exit {
    Exit {
        status: KILLED,
        timed_out: false,
        state_lost: true,
        stdout_bytes: 0,
        stderr_bytes: 0,
        wall_us: u64::try_from(after.as_micros()).unwrap_or(u64::MAX),
        cpu_us: None,
        late_variables: 0,
        asked_names: Vec::new(),
    }
}

/// A line on standard error of the preparation.
fn note(text: &str) -> StreamEvent {
    StreamEvent::new(EventKind::Stderr, format!("{text}\n"), Phase::Setup)
}

fn lost(what: &str, after: Duration) -> ExecuteError {
    let seconds = after.as_secs_f64();
    ExecuteError::SandboxLost(format!("{what} did not end within {seconds} s"))
}

/// The first few of these, and how many more there are.
fn listed(all: &[String]) -> String {
    const SHOWN: usize = 8;
    let shown = all[..all.len().min(SHOWN)].join(", ");
    match all.len().saturating_sub(SHOWN) {
        0 => shown,
        more => format!("{shown} and {more} more"),
    }
}

/// A run whose time was over has the code of one that was killed, however it ended then.
fn exit_code(exit: &Exit) -> i32 {
    if exit.timed_out {
        KILLED.code()
    } else {
        exit.status.code()
    }
}

/// The processor time of a run in microseconds: the guest's figure, which leaves out the start of an interpreter
/// but counts the time of child processes in ticks of 10 ms, or else `most`, the whole sandbox's since the run
/// before.
fn cpu_us(exit: &Exit, most: Option<u64>) -> u64 {
    match (exit.cpu_us, most) {
        (Some(taken), Some(most)) => taken.min(most),
        (Some(taken), None) | (None, Some(taken)) => taken,
        (None, None) => 0,
    }
}

// Figures for people: the last of 53 bits does not matter.
#[allow(clippy::cast_precision_loss)]
fn resource_usage(usage: &SandboxUsage, cpu_us: u64, wall_us: u64) -> ResourceUsage {
    let mebibytes = |bytes: u64| thousandths(bytes as f64 / f64::from(1 << 20));
    ResourceUsage {
        cpu_percent: if wall_us == 0 {
            0.0
        } else {
            thousandths(cpu_us as f64 * 100.0 / wall_us as f64)
        },
        cpu_ms: cpu_us as f64 / 1000.0,
        memory_mb: mebibytes(usage.memory_bytes),
        peak_memory_mb: mebibytes(usage.peak_memory_bytes),
        network_bytes_in: 0,
        network_bytes_out: 0,
    }
}

/// Milliseconds, rounded to whole microseconds.
fn milliseconds(time: Duration) -> f64 {
    thousandths(time.as_secs_f64() * 1000.0)
}

/// Rounds to three decimal places.
fn thousandths(value: f64) -> f64 {
    (value * 1000.0).round() / 1000.0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_rounded_to_microseconds() {
        for (nanoseconds, text) in [(233_578, "0.234"), (1_499, "0.001"), (2_000_000, "2.0")] {
            let time = milliseconds(Duration::from_nanos(nanoseconds));
            assert_eq!(format!("{time:?}"), text);
        }
    }

    #[test]
    fn no_run_is_charged_more_than_its_sandbox() {
        let exit = |cpu_us| Exit {
            cpu_us,
            ..killed_with_its_sandbox(Duration::ZERO)
        };
        for (guest, sandbox, expected) in [
            (Some(5), Some(9), 5),
            (Some(9), Some(5), 5),
            (None, Some(5), 5),
            (Some(9), None, 9),
            (None, None, 0),
        ] {
            assert_eq!(cpu_us(&exit(guest), sandbox), expected);
        }
    }
}
