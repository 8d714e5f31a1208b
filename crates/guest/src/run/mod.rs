//! A run: its program, its streams, its timers, and its end.

pub(crate) mod input;
pub(crate) mod late;
pub(crate) mod output;
pub(crate) mod stdin_file;
pub(crate) mod terminal;

use std::iter;
use std::ops::Range;
use std::path::Path;
use std::time::{Duration, Instant};

use isol8_protocol::{
    Exit, ExitStatus, Failure, GuestFrame, OutputStream, Runtime, StreamId, WINDOW,
};
use nix::unistd::Pid;

use crate::interpreter::driver_files::DriverDirectory;
use crate::interpreter::interpreters::{InterpreterSpec, Prelude};
use crate::interpreter::{Interpreter, Variables};
use crate::process::{Child, Environment};
use crate::tunnel::ProxyPort;
use input::Input;
use output::Pump;
use stdin_file::StdinFile;
use terminal::Terminal;

/// How long output that is not urgent may wait in its pipe for the end of the run. Most runs have ended by then, and
/// the host wakes up once for the output and the end. A program that fills the pipe waits for the same time.
const OUTPUT_DELAY: Duration = Duration::from_millis(3);

/// The work that a run executes.
#[derive(Debug)]
pub(crate) enum Work {
    /// A cell that waits for its interpreter or for earlier cells.
    QueuedCell(CellRequest),
    /// The cell with this number, in the resident interpreter.
    Cell(u64, CellRequest),
    /// A program that is about to be started, or a script that waits for an interpreter to boot.
    QueuedProgram(ProgramStart),
    /// A program in its own process.
    Process(Child),
    /// A script in an interpreter that was a spare; and the script's start, which is needed again if the interpreter
    /// had died while it waited.
    Released(Box<Interpreter>, ProgramStart),
}

/// A program that is to be started.
#[derive(Clone, Debug)]
pub(crate) struct ProgramStart {
    /// The kind of spare that can run the script in place of a new interpreter.
    pub(crate) spare_kind: Option<Runtime>,
    /// Language of the script, if the run has one.
    pub(crate) language: Option<Runtime>,
    /// The code that a new interpreter loads before the script.
    pub(crate) prelude: Option<Prelude>,
    /// Path of the script's file; empty if the run has no script.
    pub(crate) path: String,
    pub(crate) argv: Vec<Vec<u8>>,
    pub(crate) environment: Environment,
    pub(crate) cwd: String,
}

impl ProgramStart {
    /// Returns the fields that a spare gets after the path: the working directory, then names and values of variables.
    pub(crate) fn fields(&self) -> impl Iterator<Item = &[u8]> {
        let pairs = self.environment.iter();
        iter::once(self.cwd.as_bytes()).chain(pairs.flat_map(|(name, value)| [name, value]))
    }

    /// Whether there are configuration files that the script's interpreter reads at its start.
    pub(crate) fn is_configured(&self) -> bool {
        let names = self.spare_kind.map_or(&[][..], |kind| {
            InterpreterSpec::of(kind).facts.configuration
        });
        let beside = Path::new(&self.path).parent();
        let directories = beside.into_iter().chain([Path::new(&self.cwd)]);
        let mut files =
            directories.flat_map(|directory| names.iter().map(|name| directory.join(name)));
        files.any(|file| file.symlink_metadata().is_ok())
    }
}

/// A cell that the host requested.
#[derive(Debug, Default)]
pub(crate) struct CellRequest {
    pub(crate) source: Vec<u8>,
    pub(crate) env: Variables,
    /// The range of the variables that the host sent, in its order. The others describe the network.
    pub(crate) own: Range<usize>,
    /// The variables that an interpreter reads only at its start.
    pub(crate) at_start: Variables,
    pub(crate) cwd: Option<String>,
    pub(crate) kind: Option<Runtime>,
    /// The standard input, until the interpreter has opened it.
    pub(crate) stdin: Option<StdinFile>,
    pub(crate) timeout: Option<Duration>,
    /// Set if the cell was given to an interpreter that died before it started the cell.
    pub(crate) again: bool,
}

impl CellRequest {
    /// Returns the fields that an interpreter gets: working directory, path of the standard input, source, then names
    /// and values of variables.
    pub(crate) fn fields<'a>(&'a self, stdin: &'a str) -> impl Iterator<Item = &'a [u8]> {
        let cwd = self.cwd.as_deref().unwrap_or_default();
        let pairs = self.env.iter();
        [cwd.as_bytes(), stdin.as_bytes(), &self.source]
            .into_iter()
            .chain(pairs.flat_map(|(name, value)| [name.as_bytes(), value.as_bytes()]))
    }
}

/// The end of a run.
#[derive(Debug)]
pub(crate) struct Ended {
    outcome: Result<ExitStatus, Failure>,
    cpu_us: Option<u64>,
    wall: Duration,
}

/// A run from its request to its last frame.
#[derive(Debug)]
pub(crate) struct GuestRun {
    pub(crate) id: StreamId,
    pub(crate) work: Work,
    pub(crate) output: [Pump; 2],
    pub(crate) input: Input,
    /// The files of the prelude that its interpreter loads before the script.
    pub(crate) prelude: Option<DriverDirectory>,
    /// The terminal that both streams lead to, if the run has one.
    pub(crate) terminal: Option<Terminal>,
    /// The port that its programs connect to, if the run has network.
    pub(crate) port: Option<ProxyPort>,
    /// Bytes of output that may still be sent to the host.
    pub(crate) credit: u64,
    /// Whether its output is sent as it comes.
    pub(crate) eager: bool,
    /// Until this moment its output is not read, unless the run ends.
    pub(crate) output_delayed_until: Option<Instant>,
    /// Whether processes that it leaves behind are ended.
    pub(crate) sweep: bool,
    /// Processor time that its process used before it became this run's, in microseconds.
    pub(crate) boot_cpu_us: u64,
    pub(crate) started: Instant,
    /// When it times out.
    pub(crate) deadline: Option<Instant>,
    /// When it is killed, if it was interrupted and has not ended by then.
    pub(crate) kill_at: Option<Instant>,
    pub(crate) timed_out: bool,
    /// Set once the host, or the loss of its connection, has ended the run.
    pub(crate) killed: bool,
    /// Set once its connection was lost: its end is not reported.
    pub(crate) detached: bool,
    pub(crate) state_lost: bool,
    /// The bits of [`Exit::late_variables`].
    late_variables: u64,
    pub(crate) asked_names: Vec<String>,
    pub(crate) ended: Option<Ended>,
}

impl GuestRun {
    pub(crate) fn new(id: StreamId, work: Work, output: [Pump; 2], input: Input) -> Self {
        Self {
            id,
            work,
            output,
            input,
            prelude: None,
            terminal: None,
            port: None,
            credit: u64::from(WINDOW),
            eager: true,
            output_delayed_until: None,
            sweep: false,
            boot_cpu_us: 0,
            started: Instant::now(),
            deadline: None,
            kill_at: None,
            timed_out: false,
            killed: false,
            detached: false,
            state_lost: false,
            late_variables: 0,
            asked_names: Vec::new(),
            ended: None,
        }
    }

    /// Returns the process of the run, if the run has one of its own.
    pub(crate) fn pid(&self) -> Option<Pid> {
        match &self.work {
            Work::Process(child) => Some(child.pid),
            Work::Released(interpreter, _) => interpreter.pid(),
            Work::QueuedCell(_) | Work::Cell(..) | Work::QueuedProgram(_) => None,
        }
    }

    /// Returns the released interpreter that runs its script, if there is one.
    pub(crate) fn released(&self) -> Option<&Interpreter> {
        match &self.work {
            Work::Released(interpreter, _) => Some(interpreter),
            _ => None,
        }
    }

    pub(crate) fn is_queued(&self) -> bool {
        self.ended.is_none() && matches!(self.work, Work::QueuedCell(_) | Work::QueuedProgram(_))
    }

    pub(crate) fn is_queued_cell(&self) -> bool {
        self.ended.is_none() && matches!(self.work, Work::QueuedCell(_))
    }

    pub(crate) fn is_queued_program(&self) -> bool {
        self.ended.is_none() && matches!(self.work, Work::QueuedProgram(_))
    }

    /// Whether code of this run may execute now.
    pub(crate) fn is_active(&self) -> bool {
        self.ended.is_none() && !self.is_queued()
    }

    /// Whether it is a cell that was given to the resident interpreter.
    pub(crate) fn is_cell(&self) -> bool {
        matches!(self.work, Work::Cell(..))
    }

    pub(crate) fn is_active_cell(&self) -> bool {
        self.ended.is_none() && self.is_cell()
    }

    /// Records which of a waiting cell's variables an interpreter that was started with `started_with` reads no more.
    pub(crate) fn record_late_variables(&mut self, started_with: &Variables) {
        let Work::QueuedCell(request) = &self.work else {
            return;
        };
        let is_late = |variable: &(String, String)| {
            request.at_start.contains(variable) && !started_with.contains(variable)
        };
        let own = request.env[request.own.clone()].iter().take(64);
        let late = own.enumerate().filter(|(_, variable)| is_late(variable));
        self.late_variables = late.fold(0, |bits, (index, _)| bits | 1 << index);
    }

    /// Turns a waiting cell into one that runs, and starts its timeout.
    pub(crate) fn mark_cell_started(&mut self, number: u64) -> Option<&CellRequest> {
        let Work::QueuedCell(request) = &mut self.work else {
            return None;
        };
        let request = std::mem::take(request);
        self.start_clock(request.timeout);
        self.work = Work::Cell(number, request);
        match &self.work {
            Work::Cell(_, request) => Some(request),
            _ => None,
        }
    }

    /// Makes a cell wait again after its interpreter died before it started the cell. Returns `false` at the second
    /// time, and for a run that was ended by the guest: that run ends.
    pub(crate) fn requeue(&mut self) -> bool {
        let ended_by_guest = self.timed_out || self.killed;
        let Work::Cell(_, request) = &mut self.work else {
            return false;
        };
        if ended_by_guest || std::mem::replace(&mut request.again, true) {
            return false;
        }
        self.work = Work::QueuedCell(std::mem::take(request));
        self.deadline = None;
        true
    }

    pub(crate) fn start_clock(&mut self, timeout: Option<Duration>) {
        self.started = Instant::now();
        // A timeout beyond the clock's range never expires.
        self.deadline = timeout.and_then(|timeout| self.started.checked_add(timeout));
        if !self.eager {
            self.output_delayed_until = self.started.checked_add(OUTPUT_DELAY);
        }
    }

    /// Returns the moment at which the next of its timers expires.
    pub(crate) fn next_timer(&self) -> Option<Instant> {
        let moments = [self.deadline, self.kill_at, self.output_delayed_until];
        moments.into_iter().flatten().min()
    }

    /// Records the end of the run. Only the first call counts.
    pub(crate) fn end(&mut self, outcome: Result<ExitStatus, Failure>, cpu_us: Option<u64>) {
        if self.ended.is_some() {
            return;
        }
        self.deadline = None;
        self.kill_at = None;
        self.output_delayed_until = None;
        self.ended = Some(Ended {
            outcome,
            cpu_us,
            wall: self.started.elapsed(),
        });
    }

    /// Whether late output waits to be sent, and the credit allows it.
    pub(crate) fn sends_head(&self) -> bool {
        self.output[1].has_head() && self.output[1].may_read(self.credit)
    }

    /// Discards the output that was not sent yet.
    pub(crate) fn discard_output(&mut self) {
        self.output.iter_mut().for_each(Pump::discard);
    }

    /// Returns the frame that ends its stream, once the run has ended.
    pub(crate) fn last_frame(&self) -> Option<GuestFrame> {
        let ended = self.ended.as_ref()?;
        let id = self.id;
        let ended_by_guest = self.timed_out || self.killed;
        let status = match &ended.outcome {
            _ if ended_by_guest => ExitStatus::Signal(libc::SIGKILL),
            Ok(status) => *status,
            Err(failure) => {
                let failure = failure.clone();
                return Some(GuestFrame::Failed { id, failure });
            }
        };
        let [stdout, stderr] = &self.output;
        let exit = Exit {
            status,
            timed_out: self.timed_out,
            state_lost: self.state_lost,
            stdout_bytes: stdout.total(),
            stderr_bytes: stderr.total(),
            wall_us: u64::try_from(ended.wall.as_micros()).unwrap_or(u64::MAX),
            cpu_us: ended.cpu_us,
            late_variables: self.late_variables,
            asked_names: self.asked_names.clone(),
        };
        Some(GuestFrame::Exited { id, exit })
    }
}

/// Returns the two pumps of a run that has no pipes yet.
pub(crate) fn idle_pumps(limit: Option<u64>) -> [Pump; 2] {
    [OutputStream::Stdout, OutputStream::Stderr].map(|stream| Pump::idle(stream, limit))
}
