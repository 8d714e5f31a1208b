//! The start of runs.

use std::os::fd::{AsFd as _, OwnedFd};
use std::rc::Rc;
use std::time::Duration;

use isol8_protocol::{
    ExitStatus, Failure, FailureKind, Program, RunSpec, Runtime, Stdin, StreamId, TerminalSize,
};

use super::prewarm::Availability;
use super::{Guest, MAX_RUNS, log};
use crate::failure::{failure, internal, occupied};
use crate::files::{Writer, check_directory};
use crate::interpreter::Drivers;
use crate::interpreter::driver_files::DriverDirectory;
use crate::interpreter::interpreters::InterpreterSpec;
use crate::lockdown::{Privileges, Role};
use crate::process::{Child, GuestSide, ProgramLauncher, is_variable_name, null, user_pipe};
use crate::reaper::{children_cpu_us, own_cpu_us};
use crate::run::input::Input;
use crate::run::stdin_file::StdinFile;
use crate::run::terminal::{TERM, Terminal};
use crate::run::{CellRequest, GuestRun, ProgramStart, Work, idle_pumps};
use crate::tunnel::ProxyPort;

/// Working directory of programs for which the host specifies none.
const HOME: &str = "/sandbox";

/// The settings that all kinds of programs have in common.
struct Common {
    env: Vec<(String, String)>,
    cwd: Option<String>,
    stdin: Stdin,
    timeout: Option<Duration>,
    output_limit: Option<u64>,
    eager: bool,
    sweep: bool,
    terminal: Option<TerminalSize>,
    port: Option<ProxyPort>,
}

impl Common {
    /// Returns the variables of the run, including those that describe its network.
    fn environment(&mut self) -> Vec<(String, String)> {
        let port = self.port.as_ref();
        let mut all = port.map_or_else(Vec::new, |port| port.variables(&self.env));
        all.append(&mut self.env);
        all
    }
}

/// A program that was started, with the guest's ends of its pipes.
struct Started {
    child: Child,
    output: [Rc<OwnedFd>; 2],
    input: Option<OwnedFd>,
}

impl Guest {
    pub(super) fn exec(&mut self, id: StreamId, spec: RunSpec) {
        if let Err(failure) = self.try_exec(id, spec) {
            self.send_failure(id, failure);
        }
    }

    fn try_exec(&mut self, id: StreamId, spec: RunSpec) -> Result<(), Failure> {
        check_spec(&spec)?;
        if self.runs.len() >= MAX_RUNS {
            let text = format!("more than {MAX_RUNS} runs at once in one sandbox");
            return Err(failure(FailureKind::Refused, text));
        }
        let common = Common {
            env: spec.env,
            cwd: spec.cwd,
            stdin: spec.stdin,
            timeout: spec.timeout_ms.map(Duration::from_millis),
            output_limit: spec.output_limit,
            eager: spec.eager,
            sweep: spec.sweep,
            terminal: spec.terminal,
            port: spec.network.then(ProxyPort::open).transpose()?,
        };
        let run = match spec.program {
            Program::Command { argv } => {
                let argv = argv.into_iter().map(String::into_bytes).collect();
                self.queue_program(id, None, argv, common)?
            }
            Program::Script {
                runtime: kind,
                path,
                source,
            } => self.queue_script(id, kind, path, &source, common)?,
            Program::Cell {
                runtime: kind,
                source,
            } => self.queue_cell(id, kind, source, common)?,
        };
        let is_cell = run.is_queued_cell();
        self.runs.push(run);
        if is_cell {
            self.feed_input(id, false);
        }
        Ok(())
    }

    fn queue_script(
        &self,
        id: StreamId,
        kind: Runtime,
        path: String,
        source: &[u8],
        common: Common,
    ) -> Result<GuestRun, Failure> {
        let mut file = Writer::create(self.launcher.privileges, &path, 0o644)?;
        file.write(source)?;
        file.finish()?;
        let interpreter = InterpreterSpec::of(kind);
        // A spare has no terminal, and its session (`setsid`) cannot get one. Variables that describe the network are
        // set in a spare, even if an interpreter reads them at its start.
        let fits = common.terminal.is_none() && interpreter.can_run(&path, &common.env);
        let spare_kind = fits.then_some(kind);
        let argv = interpreter.command_line(&path);
        let mut run = self.queue_program(id, Some(kind), argv, common)?;
        if let Work::QueuedProgram(start) = &mut run.work {
            start.spare_kind = spare_kind;
            start.path = path;
            start.prelude = interpreter.prelude().filter(|_| run.terminal.is_none());
        }
        Ok(run)
    }

    fn queue_program(
        &self,
        id: StreamId,
        language: Option<Runtime>,
        argv: Vec<Vec<u8>>,
        mut common: Common,
    ) -> Result<GuestRun, Failure> {
        let privileges = self.launcher.privileges;
        let (base, terminal) = match common.terminal {
            None => (self.launcher.environment_of(language).clone(), None),
            Some(size) => {
                let mut base = self.launcher.at_terminal.clone();
                base.set(TERM.0, TERM.1);
                (base, Some(Terminal::open(privileges, size)?))
            }
        };
        let start = ProgramStart {
            spare_kind: None,
            language,
            prelude: None,
            path: String::new(),
            argv,
            environment: base.with(&common.environment()),
            cwd: common.cwd.unwrap_or_else(|| HOME.to_owned()),
        };
        let mut output = idle_pumps(common.output_limit);
        let input = match &terminal {
            None => Input::unattached(common.stdin),
            Some(terminal) => {
                output[0].attach_terminal(terminal.output());
                Input::at_terminal(common.stdin, terminal.input()?)
            }
        };
        let mut run = GuestRun::new(id, Work::QueuedProgram(start), output, input);
        run.terminal = terminal;
        run.eager = common.eager;
        run.sweep = common.sweep;
        run.port = common.port;
        run.start_clock(common.timeout);
        Ok(run)
    }

    fn queue_cell(
        &self,
        id: StreamId,
        kind: Runtime,
        source: Vec<u8>,
        mut common: Common,
    ) -> Result<GuestRun, Failure> {
        let interpreter = InterpreterSpec::of(kind);
        let at_start = common.env.iter();
        let at_start = at_start.filter(|(name, _)| interpreter.is_for_start_of_cells(name));
        let at_start = at_start.cloned().collect();
        let own = common.env.len();
        let env = common.environment();
        let (stdin, input) = cell_input(self.launcher.privileges, common.stdin)?;
        let request = CellRequest {
            kind: Some(kind),
            source,
            own: env.len() - own..env.len(),
            env,
            at_start,
            cwd: common.cwd,
            stdin,
            timeout: common.timeout,
            again: false,
        };
        let output = idle_pumps(common.output_limit);
        let mut run = GuestRun::new(id, Work::QueuedCell(request), output, input);
        run.eager = common.eager;
        run.sweep = common.sweep;
        run.port = common.port;
        Ok(run)
    }

    /// Starts every pending program for which no interpreter has to boot first.
    pub(super) fn start_programs(&mut self) {
        for position in 0..self.runs.len() {
            let run = &self.runs[position];
            if !run.is_queued_program() {
                continue;
            }
            let (id, detached) = (run.id, run.detached);
            match self.start_program(position) {
                Ok(()) => self.feed_input(id, detached),
                Err(failure) => self.runs[position].end(Err(failure), None),
            }
        }
    }

    fn start_program(&mut self, position: usize) -> Result<(), Failure> {
        let Work::QueuedProgram(start) = &self.runs[position].work else {
            return Ok(());
        };
        match self.prewarmer.availability(start.spare_kind) {
            Availability::Ready if start.is_configured() => self.start_new_process(position),
            Availability::Ready => self.release_spare(position),
            // Such an interpreter is ready sooner than a new process would be. The other interpreters boot for as long
            // as a start takes, or longer.
            Availability::Booting
                if start
                    .spare_kind
                    .is_some_and(|kind| !kind.facts().boots_slowly) =>
            {
                Ok(())
            }
            Availability::Booting | Availability::Nothing => {
                if start.spare_kind.is_some() {
                    self.prewarmer.skip_boot();
                }
                self.start_new_process(position)
            }
        }
    }

    fn release_spare(&mut self, position: usize) -> Result<(), Failure> {
        let run = &mut self.runs[position];
        let Work::QueuedProgram(start) = &run.work else {
            return Ok(());
        };
        let start = start.clone();
        check_directory(self.launcher.privileges, &start.cwd)?;
        let Some(mut spare) = self.prewarmer.take() else {
            return Ok(());
        };
        let boot_cpu_us = spare.pid().map_or(0, own_cpu_us);
        if spare.release(&start).is_err() {
            // The interpreter died while it waited; its end has not been seen yet.
            return self.start_new_process(position);
        }
        for (pump, pipe) in run.output.iter_mut().zip(&spare.output) {
            pump.attach(Rc::clone(pipe));
        }
        if let Some(input) = spare.input.take().filter(|_| run.input.is_wanted()) {
            run.input.attach(input);
        }
        run.work = Work::Released(Box::new(spare), start);
        run.boot_cpu_us = boot_cpu_us;
        Ok(())
    }

    fn start_new_process(&mut self, position: usize) -> Result<(), Failure> {
        let run = &mut self.runs[position];
        let Work::QueuedProgram(start) = &run.work else {
            return Ok(());
        };
        if let Some(terminal) = &run.terminal {
            run.work = Work::Process(spawn_interactive(&self.launcher, start, terminal)?);
            return Ok(());
        }
        let prelude = start.prelude.and_then(|prelude| {
            // The script runs without the prelude, too.
            DriverDirectory::prelude(prelude).ok()
        });
        let started = spawn(
            &self.launcher,
            &self.drivers,
            start,
            prelude.as_ref(),
            run.input.is_wanted(),
        )?;
        run.prelude = prelude;
        for (pump, pipe) in run.output.iter_mut().zip(started.output) {
            pump.attach(pipe);
        }
        if let Some(input) = started.input {
            run.input.attach(input);
        }
        run.work = Work::Process(started.child);
        run.boot_cpu_us = 0;
        Ok(())
    }

    /// Starts a script in a new process after its spare interpreter had died while it waited.
    pub(super) fn restart_program(&mut self, position: usize) {
        let run = &mut self.runs[position];
        let Work::Released(_, start) = &run.work else {
            return;
        };
        if !run.input.is_untouched() {
            let text = "interpreter died before the script began";
            return run.end(Err(failure(FailureKind::Internal, text)), None);
        }
        run.work = Work::QueuedProgram(ProgramStart {
            spare_kind: None,
            ..start.clone()
        });
        self.start_programs();
    }

    /// Gives the first waiting cell to the resident interpreter, once the interpreter is free and its pipes hold no
    /// output of the cell before. Returns whether a cell was started or has failed.
    pub(super) fn start_next_cell(&mut self) -> bool {
        if self.runs.iter().any(GuestRun::is_cell) {
            return false;
        }
        let Some(position) = self.runs.iter().position(GuestRun::is_queued_cell) else {
            return false;
        };
        let Work::QueuedCell(CellRequest {
            kind: Some(kind),
            at_start,
            ..
        }) = &self.runs[position].work
        else {
            return false;
        };
        let kind = *kind;
        let other = self.resident.as_ref().filter(|it| it.kind != kind);
        if let Some(other) = other {
            let text = format!("this sandbox runs cells of {:?} only", other.kind);
            let refusal = failure(FailureKind::Refused, text);
            self.runs[position].end(Err(refusal), None);
            return true;
        }
        if self.resident.is_none() {
            match self.prewarmer.request_resident(kind, at_start) {
                Ok(Availability::Ready) => self.resident = self.prewarmer.take(),
                Ok(_) => return false,
                Err(failure) => {
                    self.runs[position].end(Err(failure), None);
                    return true;
                }
            }
        }
        self.start_cell(position);
        true
    }

    fn start_cell(&mut self, position: usize) {
        let Some(interpreter) = &mut self.resident else {
            return;
        };
        let number = interpreter.next_cell();
        if number > 1 {
            self.show_late_output(position);
        }
        let Some(interpreter) = &mut self.resident else {
            return;
        };
        let run = &mut self.runs[position];
        run.state_lost |= std::mem::take(&mut self.unreported_loss);
        for (pump, pipe) in run.output.iter_mut().zip(&interpreter.output) {
            pump.attach(Rc::clone(pipe));
        }
        run.boot_cpu_us = interpreter.pid().map_or(0, own_cpu_us);
        run.record_late_variables(&interpreter.started_with);
        let Some(request) = run.mark_cell_started(number) else {
            return;
        };
        if let Err(error) = interpreter.start_cell(number, request) {
            // The end of the interpreter, which follows, ends the run.
            log(&format!("interpreter takes no cell: {error}"));
            interpreter.kill();
        }
        // Read after the cell was sent, so that the interpreter starts meanwhile. Time below one tick is not counted.
        run.boot_cpu_us += interpreter.pid().map_or(0, children_cpu_us);
        // Late output is sent first, even if the cell writes nothing.
        while self.runs[position].sends_head() && self.has_room() && self.pump(position, 1) {}
    }
}

/// Starts a program with pipes of its own.
fn spawn(
    launcher: &ProgramLauncher,
    drivers: &Drivers,
    start: &ProgramStart,
    prelude: Option<&DriverDirectory>,
    reads: bool,
) -> Result<Started, Failure> {
    let failed = |error| internal("pipe failed", error);
    let privileges = launcher.privileges;
    let (stdout, stdout_far) = user_pipe(privileges, GuestSide::Reader).map_err(failed)?;
    let (stderr, stderr_far) = user_pipe(privileges, GuestSide::Reader).map_err(failed)?;
    let (stdin, input) = stdin(privileges, reads)?;
    let argv: Vec<&[u8]> = start.argv.iter().map(Vec::as_slice).collect();
    let mut files = vec![stdin.as_fd(), stdout_far.as_fd(), stderr_far.as_fd()];
    let mut environment = start.environment.clone();
    if let Some((archive, with_archive)) = drivers.for_fresh(start) {
        files.push(archive);
        environment = with_archive;
    }
    if let (Some(prelude), Some(installed)) = (start.prelude, prelude) {
        prelude.add_to(&mut environment, &installed.fill_in("{}"));
    }
    let child = launcher.start(&argv, &environment, &start.cwd, &files, Role::UserCode)?;
    Ok(Started {
        child,
        output: [Rc::new(stdout), Rc::new(stderr)],
        input,
    })
}

/// Starts a program at a terminal.
fn spawn_interactive(
    launcher: &ProgramLauncher,
    start: &ProgramStart,
    terminal: &Terminal,
) -> Result<Child, Failure> {
    let argv: Vec<&[u8]> = start.argv.iter().map(Vec::as_slice).collect();
    let (environment, cwd) = (&start.environment, &start.cwd);
    let files = [terminal.far(); 3];
    launcher.start(&argv, environment, cwd, &files, Role::Interactive)
}

/// Returns the file that is a cell's standard input; or a named pipe, and the input to write to it.
fn cell_input(privileges: Privileges, stdin: Stdin) -> Result<(Option<StdinFile>, Input), Failure> {
    match &stdin {
        Stdin::Empty => return Ok((None, Input::empty())),
        Stdin::Bytes(bytes) => {
            if let Ok(named) = StdinFile::file(privileges, bytes) {
                return Ok((Some(named), Input::empty()));
            }
        }
        Stdin::Piped => {}
    }
    let made = StdinFile::pipe(privileges);
    let (named, writer) = made.map_err(|error| occupied("standard input failed", error))?;
    let mut input = Input::unattached(stdin);
    input.attach(writer);
    Ok((Some(named), input))
}

/// Returns the program's end, and the guest's end if the program reads anything.
fn stdin(privileges: Privileges, reads: bool) -> Result<(OwnedFd, Option<OwnedFd>), Failure> {
    let failed = |error| internal("standard input failed", error);
    if reads {
        let (reader, writer) = user_pipe(privileges, GuestSide::Writer).map_err(failed)?;
        Ok((reader, Some(writer)))
    } else {
        Ok((null().map_err(failed)?, None))
    }
}

/// Refuses settings with which no kind of program can be started.
fn check_spec(spec: &RunSpec) -> Result<(), Failure> {
    let refused = |text: String| Err(failure(FailureKind::Refused, text));
    for (name, value) in &spec.env {
        if !is_variable_name(name) || value.contains('\0') {
            return refused(format!("environment variable {name:?} cannot be set"));
        }
    }
    if spec.terminal.is_some() && matches!(spec.program, Program::Cell { .. }) {
        return refused("a cell has no terminal of its own".to_owned());
    }
    if let Some(cwd) = &spec.cwd
        && (!cwd.starts_with('/') || cwd.contains('\0'))
    {
        return refused(format!("working directory {cwd:?} is not absolute"));
    }
    Ok(())
}

/// The status of a run that was ended by the guest.
pub(super) const ENDED_BY_FORCE: ExitStatus = ExitStatus::Signal(libc::SIGKILL);
