//! Runs a job in a sandbox: files in, setup, the program, files out, the result.
//!
//! Every step in the guest is bounded twice. The guest ends a run at its timeout. If the guest does not, the host
//! treats the sandbox as lost a little later.

mod attachment;
pub(crate) mod events;
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
use crate::memory;
use crate::network::{self, Network};
use crate::sandbox::SandboxHistory;
pub use attachment::{Attachment, Input, InputSender};
use output::{CapturedOutput, EncodedOutput, FinishedOutput, Output, Sink};
pub use plan::RunMode;
use secrets::Secrets;

/// How much longer than the guest the host waits for the end of a run. In this time the guest kills the run's
/// processes, drains their output and reports.
const RUN_GRACE: Duration = Duration::from_secs(10);

/// How long after a run's timeout a slow client still delays the run. The program has ended by then.
const END_GRACE: Duration = Duration::from_secs(1);

/// How long the guest may take to end a cancelled run.
const KILL_TIMEOUT: Duration = Duration::from_secs(5);

/// How long all file transfers of one direction may take together.
const TRANSFER_TIMEOUT: Duration = Duration::from_secs(60);

/// How long reading a sandbox's usage may take. After that the result has no usage.
const USAGE_TIMEOUT: Duration = Duration::from_secs(1);

/// Files that are written at the same time: enough to hide the round trips of small files.
const CONCURRENT_WRITES: usize = 8;

/// Highest number of bytes in all files of a result together, because the result is one JSON document.
const OUTPUT_FILES_LIMIT: usize = 64 << 20;

/// Highest number of host names in the warning about name lookups.
const MAX_NAMES: usize = 8;

/// The option that gives a setup script more time.
const TIMEOUT_KEY: &str = "timeoutMs";

/// The configuration key that gives an installation more time.
const INSTALL_TIMEOUT_KEY: &str = "packages.installTimeoutMs";

/// Exit status of a killed program.
const KILLED: ExitStatus = ExitStatus::Signal(9);

/// Exit of a job without a program.
const NO_PROGRAM: Exit = Exit {
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

/// How long a job waited before it reached its sandbox.
#[derive(Clone, Copy, Debug, Default)]
pub struct QueueTimings {
    /// Time until the job's turn.
    pub queue: Duration,
    /// Time until the job had a sandbox.
    pub acquire: Duration,
}

/// Runs a job. Once `cancel` is triggered, the running program is ended and the answer is [`ExecuteError::Cancelled`].
/// Output goes to the client that follows the run, or else into the result.
///
/// # Errors
/// After [`ExecuteError::SandboxLost`] the sandbox must not be used again. After any other error it can be.
pub async fn run(
    sandbox: &dyn Sandbox,
    job: &Job,
    mode: RunMode,
    timings: QueueTimings,
    history: &mut SandboxHistory,
    attachment: Option<&Attachment>,
    cancel: &CancellationToken,
) -> Result<ExecutionResult, ExecuteError> {
    Execution {
        sandbox,
        job,
        history,
        attachment,
        sink: match attachment {
            Some(attachment) => Sink::stream(attachment.events.clone()),
            None => Sink::Result(CapturedOutput::default()),
        },
        cancel,
        secrets: Secrets::prepare(&job.secrets).await?,
        mode,
        lost_to_memory: false,
        warnings: job.warnings.clone(),
        files_fill_memory: false,
    }
    .result(timings)
    .await
}

struct Execution<'a> {
    sandbox: &'a dyn Sandbox,
    job: &'a Job,
    history: &'a mut SandboxHistory,
    attachment: Option<&'a Attachment>,
    sink: Sink,
    cancel: &'a CancellationToken,
    secrets: Option<Arc<Secrets>>,
    mode: RunMode,
    /// The kernel killed the guest, and with it the run, because memory was exhausted.
    lost_to_memory: bool,
    /// Warnings for the client.
    warnings: Vec<String>,
    /// Memory was exhausted before the run and after it, so files hold it and not the program.
    files_fill_memory: bool,
}

impl Execution<'_> {
    async fn result(mut self, timings: QueueTimings) -> Result<ExecutionResult, ExecuteError> {
        let timestamp = format!("{:.3}", jiff::Timestamp::now());
        let start = Instant::now();
        self.write_files().await?;
        if let Some(attachment) = self.attachment {
            attachment.started.send_replace(true);
        }
        if let Some(install) = &self.job.install {
            self.install(install).await?;
        }
        if let Some(script) = &self.job.setup_script {
            self.set_up(script).await?;
        }
        let setup = start.elapsed();
        let execution_id = uuid::Uuid::new_v4().to_string();
        let booted = self.sandbox.control().is_prepared();
        log::debug!(execution:% = execution_id, sandbox:% = self.sandbox.id(), booted; "program starts");
        let program = plan::program(self.job, self.mode, self.attachment);
        let network = self.job.network.as_deref();
        let (exit, mut finished) = match program {
            Some(program) => self.supervise(Phase::Code, program, network).await?,
            None => (NO_PROGRAM, FinishedOutput::empty()),
        };
        let ran = start.elapsed() - setup;
        self.warn_of(&exit);
        let files = match self.read_files().await {
            // The program has ended, and the client must still receive its exit.
            Err(error @ ExecuteError::Invalid(_)) if self.attachment.is_some() => {
                self.sink.send_event(error.event()).await?;
                None
            }
            files => files?,
        };
        let (resource_usage, oom_killed) = self.account(&exit).await;
        if self.files_fill_memory && self.mode == RunMode::Session {
            return Err(memory::filled_by_files(self.job.sandbox.limits.memory));
        }
        if oom_killed {
            let note = memory::out_of_memory_line(self.job.sandbox.limits.memory);
            finished.add_line(&mut self.sink, &note).await?;
        }
        let network_logs = self.network_log().await;
        let CapturedOutput { stdout, stderr } = self.sink.take();
        let [stdout, stderr] =
            [stdout, stderr].map(|it| EncodedOutput::new(it, self.job.is_trimmed));
        Ok(ExecutionResult {
            stdout: stdout.text,
            stderr: stderr.text,
            stdout_encoding: stdout.encoding,
            stderr_encoding: stderr.encoding,
            exit_code: exit_code(&exit),
            duration_ms: milliseconds(start.elapsed()),
            truncated: finished.truncated,
            execution_id,
            runtime: self.job.runtime(),
            timestamp,
            container_id: self.sandbox.id().to_string(),
            files,
            network_logs,
            resource_usage,
            timed_out: exit.timed_out,
            oom_killed,
            state_lost: self.mode == RunMode::Session
                && std::mem::take(&mut self.history.unreported_loss),
            warnings: self.warnings,
            timings: Some(Timings {
                queue_ms: milliseconds(timings.queue),
                acquire_ms: milliseconds(timings.acquire),
                setup_ms: milliseconds(setup),
                run_ms: milliseconds(ran),
            }),
        })
    }

    /// Adds warnings for facts that the guest reports and that the client cannot see.
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
            let first = exit.asked_names.iter().take(MAX_NAMES);
            let names = first.map(|name| self.shown_name(name));
            let names: Vec<String> = names.collect();
            self.warnings.push(format!(
                "programs asked a name server for {}: there is none in a sandbox, a client that uses HTTPS_PROXY \
                 needs none in a run with network \"filtered\"",
                listed(&names)
            ));
        }
    }

    /// Returns a host name that a program looked up as it is shown to the client. The program may have put a secret
    /// into the name, and the guest is not trusted to send a valid name.
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
        memory::check_room(self.sandbox, sizes.sum()).await?;
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
            self.sink.send_event(note(&problems)).await?;
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

    /// Runs a step before the program (setup script or installation), and returns how the step failed, if it did.
    async fn prepare(
        &mut self,
        spec: RunSpec,
        network: Option<&dyn Network>,
        timeout_key: &'static str,
    ) -> Result<Result<(), PreparationFailed>, ExecuteError> {
        let limit = self.timeout_of(&spec);
        let (exit, _) = self.supervise(Phase::Setup, spec, network).await?;
        let CapturedOutput { stderr, .. } = self.sink.take();
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
            stderr: EncodedOutput::new(stderr, true).text,
        }))
    }

    /// Returns the timeout that the guest applies to this run.
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

    /// Bounds the time of a file transfer. Dropping the transfer ends it in the guest too.
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

    /// Supervises one run until the program ends, its timeout is over, or its caller cancels it.
    async fn supervise(
        &mut self,
        phase: Phase,
        mut spec: RunSpec,
        network: Option<&dyn Network>,
    ) -> Result<(Exit, FinishedOutput), ExecuteError> {
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
        let attachment = self.attachment.filter(|_| phase == Phase::Code);
        let feeding = async {
            match attachment {
                Some(attachment) => attachment.feed(&input).await,
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
                self.history.unreported_loss |= exit.state_lost;
                return Err(ExecuteError::Cancelled);
            }
            Err(ExecuteError::SandboxLost(reason)) => {
                let known = self.history.usage;
                self.lost_to_memory = memory::was_exhausted_since(self.sandbox, known).await;
                if !self.lost_to_memory {
                    return Err(ExecuteError::SandboxLost(reason));
                }
                if self.mode == RunMode::Session && !self.sandbox.control().is_closed() {
                    return Err(memory::filled_by_files(self.job.sandbox.limits.memory));
                }
                if self.mode == RunMode::Session {
                    return Err(ExecuteError::SandboxLost(memory::OUT_OF_MEMORY.to_owned()));
                }
                killed_with_its_sandbox(started.elapsed())
            }
            ended => ended?,
        };
        self.history.unreported_loss |= exit.state_lost;
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

    /// Returns whether so much memory is in use that an interpreter could not boot.
    fn fills(&self, usage: &SandboxUsage) -> bool {
        let limit = self.job.sandbox.limits.memory.bytes();
        usage.memory_bytes + memory::KEPT_FROM_FILES > limit
    }

    /// Returns the run's resource usage, and whether the kernel killed one of its processes for lack of memory.
    async fn account(&mut self, exit: &Exit) -> (Option<ResourceUsage>, bool) {
        if self.lost_to_memory {
            return (None, true);
        }
        let before = self.history.usage;
        let now = match timeout(USAGE_TIMEOUT, self.sandbox.usage()).await {
            Ok(Ok(now)) => now,
            Ok(Err(error)) => {
                log::debug!(sandbox:% = self.sandbox.id(), error:%; "usage cannot be read");
                return (None, false);
            }
            Err(_) => return (None, false),
        };
        self.history.usage = Some(now);
        let since = |value: fn(&SandboxUsage) -> u64| {
            before.map_or(0, |before| value(&now).saturating_sub(value(&before)))
        };
        let oom_killed = since(|usage| usage.oom_kills) > 0;
        self.files_fill_memory =
            oom_killed && before.is_some_and(|before| self.fills(&before)) && self.fills(&now);
        let most = before.map(|_| since(|usage| usage.cpu_us));
        let mut usage = resource_usage(&now, cpu_us(exit, most), exit.wall_us);
        if let Some(network) = &self.job.network {
            (usage.network_bytes_in, usage.network_bytes_out) = network.bytes();
        }
        (Some(usage), oom_killed)
    }
}

/// Passes on the output of a run until the run ends. The time in which a slow client takes no output does not count
/// towards `limit`, because the guest waits for the client too.
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

/// Kills a run whose caller has gone, and waits for its end, so that the next run in the sandbox does not meet it.
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

/// Returns the exit of a run that was killed together with its guest, which could not report it.
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

/// Returns the event for a line on standard error of the preparation.
fn note(text: &str) -> StreamEvent {
    StreamEvent::new(EventKind::Stderr, format!("{text}\n"), Phase::Setup)
}

fn lost(what: &str, after: Duration) -> ExecuteError {
    let seconds = after.as_secs_f64();
    ExecuteError::SandboxLost(format!("{what} did not end within {seconds} s"))
}

/// Joins the first 8 texts, and adds how many more there are.
fn listed(all: &[String]) -> String {
    const SHOWN: usize = 8;
    let shown = all[..all.len().min(SHOWN)].join(", ");
    match all.len().saturating_sub(SHOWN) {
        0 => shown,
        more => format!("{shown} and {more} more"),
    }
}

/// Returns the exit code of a run. A run that timed out has the code of a killed program, however it ended.
fn exit_code(exit: &Exit) -> i32 {
    if exit.timed_out {
        KILLED.code()
    } else {
        exit.status.code()
    }
}

/// Returns the processor time of a run in microseconds: the guest's figure, but at most `most`, the time of the whole
/// sandbox since the run before. The guest's figure leaves out the start of an interpreter, and counts the time of
/// child processes in ticks of 10 ms. If the guest has no figure, `most` is used.
fn cpu_us(exit: &Exit, most: Option<u64>) -> u64 {
    match (exit.cpu_us, most) {
        (Some(taken), Some(most)) => taken.min(most),
        (Some(taken), None) | (None, Some(taken)) => taken,
        (None, None) => 0,
    }
}

// The figures are read by people: the precision of 53 bits is enough.
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

/// Returns a duration in milliseconds, rounded to whole microseconds.
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
