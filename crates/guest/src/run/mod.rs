//! A run: its program, its streams, its clock, and how it ended.

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
    Exit, ExitStatus, Failure, GuestFrame, KernelKind, OutputStream, StreamId, WINDOW,
};
use nix::unistd::Pid;

use crate::kernel::driver_files::DriverDirectory;
use crate::kernel::interpreters::{Interpreter, Prelude};
use crate::kernel::{Kernel, Variables};
use crate::process::{Child, Environment};
use crate::tunnel::Port;
use input::Input;
use output::Pump;
use stdin_file::StdinFile;
use terminal::Terminal;

/// How long output that is not urgent may wait in its pipe for the end of the run. Most runs are over by then, and the
/// host awakes once for both; a program that fills the pipe waits as long.
const GATHERING: Duration = Duration::from_millis(3);

/// The work that a run executes.
#[derive(Debug)]
pub(crate) enum Work {
    /// A cell whose turn has not come.
    Waiting(CellRequest),
    /// The cell of this number, in the resident kernel.
    Cell(u64, CellRequest),
    /// A script whose kernel is still booting, or a program that is about to be started.
    Pending(Start),
    /// A process of its own.
    Process(Child),
    /// A script in a kernel that was booted before, and how to start it afresh should that kernel
    /// turn out to have died while it waited.
    Released(Box<Kernel>, Start),
}

/// A program that is to be started.
#[derive(Clone, Debug)]
pub(crate) struct Start {
    /// The kernel that can run it in the program's stead.
    pub(crate) kernel: Option<KernelKind>,
    /// Language of the script, if the run has one.
    pub(crate) language: Option<KernelKind>,
    /// Loaded first by an interpreter that is started on the script.
    pub(crate) prelude: Option<Prelude>,
    /// File of the script, if the run has one.
    pub(crate) path: String,
    pub(crate) argv: Vec<Vec<u8>>,
    pub(crate) environment: Environment,
    pub(crate) cwd: String,
}

impl Start {
    /// The fields that a waiting interpreter gets, beside the path: directory, names and values.
    pub(crate) fn fields(&self) -> impl Iterator<Item = &[u8]> {
        let pairs = self.environment.iter();
        iter::once(self.cwd.as_bytes()).chain(pairs.flat_map(|(name, value)| [name, value]))
    }

    /// Whether there are files that its interpreter reads while it starts.
    pub(crate) fn is_configured(&self) -> bool {
        let names = self
            .kernel
            .map_or(&[][..], |kind| Interpreter::of(kind).configuration);
        let beside = Path::new(&self.path).parent();
        let directories = beside.into_iter().chain([Path::new(&self.cwd)]);
        let mut files =
            directories.flat_map(|directory| names.iter().map(|name| directory.join(name)));
        files.any(|file| file.symlink_metadata().is_ok())
    }
}

/// A cell, as it was asked for.
#[derive(Debug, Default)]
pub(crate) struct CellRequest {
    pub(crate) source: Vec<u8>,
    pub(crate) env: Variables,
    /// Those of them that the host sent, in its order; the others tell of the network.
    pub(crate) own: Range<usize>,
    /// Those that an interpreter reads at its start only.
    pub(crate) at_start: Variables,
    pub(crate) cwd: Option<String>,
    pub(crate) kind: Option<KernelKind>,
    /// Until the kernel has opened it.
    pub(crate) stdin: Option<StdinFile>,
    pub(crate) timeout: Option<Duration>,
    /// Set if the cell was given to an interpreter that died before it took it.
    pub(crate) again: bool,
}

impl CellRequest {
    /// The fields that an interpreter gets: directory, standard input, source, names and values.
    pub(crate) fn fields<'a>(&'a self, stdin: &'a str) -> impl Iterator<Item = &'a [u8]> {
        let cwd = self.cwd.as_deref().unwrap_or_default();
        let pairs = self.env.iter();
        [cwd.as_bytes(), stdin.as_bytes(), &self.source]
            .into_iter()
            .chain(pairs.flat_map(|(name, value)| [name.as_bytes(), value.as_bytes()]))
    }
}

/// How a run ended.
#[derive(Debug)]
pub(crate) struct Ended {
    outcome: Result<ExitStatus, Failure>,
    cpu_us: Option<u64>,
    wall: Duration,
}

/// A run under way.
#[derive(Debug)]
pub(crate) struct Run {
    pub(crate) id: StreamId,
    pub(crate) work: Work,
    pub(crate) output: [Pump; 2],
    pub(crate) input: Input,
    /// Files that its interpreter loads before the script.
    pub(crate) prelude: Option<DriverDirectory>,
    /// The terminal that both streams lead to, if the run has one.
    pub(crate) terminal: Option<Terminal>,
    /// The port that its programs connect to, if it has a network.
    pub(crate) port: Option<Port>,
    /// Bytes of output that the host takes now.
    pub(crate) credit: u64,
    /// Whether its output is wanted as it comes.
    pub(crate) eager: bool,
    /// Before this its output is read at its end only.
    pub(crate) gathers_until: Option<Instant>,
    pub(crate) sweep: bool,
    /// Processor time that its process took before it became this run's.
    pub(crate) boot_cpu_us: u64,
    pub(crate) started: Instant,
    /// When its time is over.
    pub(crate) deadline: Option<Instant>,
    /// When what was asked to end is ended by force.
    pub(crate) grace: Option<Instant>,
    pub(crate) timed_out: bool,
    /// The host does not want it any more.
    pub(crate) killed: bool,
    /// Set once its connection is gone: its end is not reported.
    pub(crate) detached: bool,
    pub(crate) state_lost: bool,
    /// As [`Exit`] has them.
    late_variables: u64,
    pub(crate) asked_names: Vec<String>,
    pub(crate) ended: Option<Ended>,
}

impl Run {
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
            gathers_until: None,
            sweep: false,
            boot_cpu_us: 0,
            started: Instant::now(),
            deadline: None,
            grace: None,
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
            Work::Released(kernel, _) => kernel.pid(),
            Work::Waiting(_) | Work::Cell(..) | Work::Pending(_) => None,
        }
    }

    /// The kernel that runs its script, where one does.
    pub(crate) fn released(&self) -> Option<&Kernel> {
        match &self.work {
            Work::Released(kernel, _) => Some(kernel),
            _ => None,
        }
    }

    pub(crate) fn is_waiting(&self) -> bool {
        self.ended.is_none() && matches!(self.work, Work::Waiting(_) | Work::Pending(_))
    }

    pub(crate) fn is_waiting_cell(&self) -> bool {
        self.ended.is_none() && matches!(self.work, Work::Waiting(_))
    }

    pub(crate) fn is_pending(&self) -> bool {
        self.ended.is_none() && matches!(self.work, Work::Pending(_))
    }

    /// Whether code of this run may be executed at this moment.
    pub(crate) fn is_active(&self) -> bool {
        self.ended.is_none() && !self.is_waiting()
    }

    /// Whether it has, or had, the resident kernel for itself.
    pub(crate) fn is_cell(&self) -> bool {
        matches!(self.work, Work::Cell(..))
    }

    pub(crate) fn is_active_cell(&self) -> bool {
        self.ended.is_none() && self.is_cell()
    }

    /// Notes which of a waiting cell's variables come too late for an interpreter that was started with these.
    pub(crate) fn note_late_variables(&mut self, started_with: &Variables) {
        let Work::Waiting(request) = &self.work else {
            return;
        };
        let is_late = |variable: &(String, String)| {
            request.at_start.contains(variable) && !started_with.contains(variable)
        };
        let own = request.env[request.own.clone()].iter().take(64);
        let late = own.enumerate().filter(|(_, variable)| is_late(variable));
        self.late_variables = late.fold(0, |bits, (index, _)| bits | 1 << index);
    }

    /// Turns a waiting cell into one that runs, and starts its clock.
    pub(crate) fn begin_cell(&mut self, number: u64) -> Option<&CellRequest> {
        let Work::Waiting(request) = &mut self.work else {
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

    /// Makes a cell wait again whose interpreter died before it took it. This happens once: an interpreter that never
    /// takes one is the run's end.
    pub(crate) fn wait_again(&mut self) -> bool {
        let cut_short = self.timed_out || self.killed;
        let Work::Cell(_, request) = &mut self.work else {
            return false;
        };
        if cut_short || std::mem::replace(&mut request.again, true) {
            return false;
        }
        self.work = Work::Waiting(std::mem::take(request));
        self.deadline = None;
        true
    }

    pub(crate) fn start_clock(&mut self, timeout: Option<Duration>) {
        self.started = Instant::now();
        // A timeout beyond the clock's range never comes.
        self.deadline = timeout.and_then(|timeout| self.started.checked_add(timeout));
        if !self.eager {
            self.gathers_until = self.started.checked_add(GATHERING);
        }
    }

    /// The next moment at which something must happen.
    pub(crate) fn alarm(&self) -> Option<Instant> {
        let moments = [self.deadline, self.grace, self.gathers_until];
        moments.into_iter().flatten().min()
    }

    /// Notes how it ended; the first report counts.
    pub(crate) fn end(&mut self, outcome: Result<ExitStatus, Failure>, cpu_us: Option<u64>) {
        if self.ended.is_some() {
            return;
        }
        self.deadline = None;
        self.grace = None;
        self.gathers_until = None;
        self.ended = Some(Ended {
            outcome,
            cpu_us,
            wall: self.started.elapsed(),
        });
    }

    /// Whether late output waits to be sent, and the host takes it.
    pub(crate) fn sends_head(&self) -> bool {
        self.output[1].has_head() && self.output[1].may_read(self.credit)
    }

    /// Sends nothing more of its output.
    pub(crate) fn discard_output(&mut self) {
        self.output.iter_mut().for_each(Pump::discard);
    }

    /// The frame that ends its stream.
    pub(crate) fn last_frame(&self) -> Option<GuestFrame> {
        let ended = self.ended.as_ref()?;
        let id = self.id;
        let cut_short = self.timed_out || self.killed;
        let status = match &ended.outcome {
            _ if cut_short => ExitStatus::Signal(libc::SIGKILL),
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

/// The two pumps of a run that has no pipes yet.
pub(crate) fn idle_pumps(limit: Option<u64>) -> [Pump; 2] {
    [OutputStream::Stdout, OutputStream::Stderr].map(|stream| Pump::idle(stream, limit))
}
