//! How runs begin.

use std::os::fd::{AsFd as _, OwnedFd};
use std::rc::Rc;
use std::time::Duration;

use isol8_protocol::{
    ExitStatus, Failure, FailureKind, KernelKind, OutputStream, Program, RunSpec, Stdin, StreamId,
};

use nix::sys::time::TimeValLike as _;
use nix::time::{clock_getcpuclockid, clock_gettime};
use nix::unistd::Pid;

use super::{Guest, MAX_RUNS, log};
use crate::failure::{failure, internal};
use crate::files::{Writer, check_directory};
use crate::kernel::{Kernel, SCRIPT, needs_fresh_start};
use crate::process::{Child, Near, is_variable_name, null, pipe};
use crate::run::input::Input;
use crate::run::output::Pump;
use crate::run::{CellRequest, Run, Start, Work, idle_pumps};

/// Where programs start that are not told otherwise.
const HOME: &str = "/sandbox";

/// What all kinds of programs have in common.
struct Common {
    env: Vec<(String, String)>,
    cwd: Option<String>,
    stdin: Stdin,
    timeout: Option<Duration>,
    output_limit: Option<u64>,
    sweep: bool,
}

/// A program that runs, with the near ends of its pipes.
struct Started {
    child: Child,
    output: [Rc<OwnedFd>; 2],
    input: Option<OwnedFd>,
}

impl Guest {
    pub(super) fn exec(&mut self, id: StreamId, spec: RunSpec) {
        if let Err(failure) = self.try_exec(id, spec) {
            self.tell_failed(id, failure);
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
            sweep: spec.sweep,
        };
        let run = match spec.program {
            Program::Command { argv } => {
                let argv = argv.into_iter().map(String::into_bytes).collect();
                self.start_fresh(id, argv, common)?
            }
            Program::Script {
                kernel,
                path,
                source,
            } => self.start_script(id, kernel, &path, &source, common)?,
            Program::Cell {
                kernel: KernelKind::Python,
                source,
            } => queue_cell(id, source, common)?,
            Program::Cell {
                kernel: KernelKind::Bash,
                ..
            } => {
                let text = "bash keeps no state between runs: run a script instead";
                return Err(failure(FailureKind::Refused, text));
            }
        };
        self.runs.push(run);
        self.attend_input(id, false);
        Ok(())
    }

    fn start_script(
        &mut self,
        id: StreamId,
        kernel: KernelKind,
        path: &str,
        source: &[u8],
        common: Common,
    ) -> Result<Run, Failure> {
        let serial = self.next_serial();
        let mut file = Writer::create(self.launcher.privileges, path, 0o644, serial)?;
        file.write(source)?;
        file.finish()?;
        let interpreter = match kernel {
            KernelKind::Python => "python3",
            KernelKind::Bash => "bash",
        };
        let argv = vec![interpreter.into(), path.into()];
        let booted =
            kernel == KernelKind::Python && path == SCRIPT && !needs_fresh_start(&common.env);
        match self.spare.take_if(|_| booted) {
            Some(spare) => self.release(id, spare, argv, common),
            None => self.start_fresh(id, argv, common),
        }
    }

    fn start(&self, argv: Vec<Vec<u8>>, common: &Common) -> Start {
        Start {
            argv,
            environment: self.launcher.base.with(&common.env),
            cwd: common.cwd.clone().unwrap_or_else(|| HOME.to_owned()),
        }
    }

    fn start_fresh(
        &self,
        id: StreamId,
        argv: Vec<Vec<u8>>,
        common: Common,
    ) -> Result<Run, Failure> {
        let start = self.start(argv, &common);
        let reads = !matches!(common.stdin, Stdin::Empty);
        let started = self.spawn(&start, reads)?;
        let output = pumps(&started.output, common.output_limit);
        let input = input(started.input, common.stdin);
        let mut run = Run::new(id, Work::Process(started.child), output, input);
        run.sweep = common.sweep;
        run.start_clock(common.timeout);
        Ok(run)
    }

    /// Starts a program with pipes of its own.
    fn spawn(&self, start: &Start, reads: bool) -> Result<Started, Failure> {
        let failed = |error| internal("pipe failed", error);
        let (stdout, stdout_far) = pipe(Near::Reader).map_err(failed)?;
        let (stderr, stderr_far) = pipe(Near::Reader).map_err(failed)?;
        let (stdin, input) = stdin(reads)?;
        let argv: Vec<&[u8]> = start.argv.iter().map(Vec::as_slice).collect();
        let files = [stdin.as_fd(), stdout_far.as_fd(), stderr_far.as_fd()];
        let child = self
            .launcher
            .start(&argv, &start.environment, &start.cwd, &files)?;
        Ok(Started {
            child,
            output: [Rc::new(stdout), Rc::new(stderr)],
            input,
        })
    }

    fn release(
        &self,
        id: StreamId,
        mut spare: Kernel,
        argv: Vec<Vec<u8>>,
        common: Common,
    ) -> Result<Run, Failure> {
        let start = self.start(argv, &common);
        check_directory(self.launcher.privileges, &start.cwd)?;
        let boot_cpu_us = cpu_us(spare.pid());
        if spare.release(&start.cwd, &start.environment).is_err() {
            // It died while it waited; its end has not been seen yet.
            return self.start_fresh(id, start.argv, common);
        }
        let output = pumps(&spare.output, common.output_limit);
        let input = input(spare.input.take(), common.stdin);
        let mut run = Run::new(id, Work::Released(Box::new(spare), start), output, input);
        run.boot_cpu_us = boot_cpu_us;
        run.sweep = common.sweep;
        run.start_clock(common.timeout);
        Ok(run)
    }

    /// Starts a script afresh whose kernel had died while it waited.
    pub(super) fn start_again(&mut self, position: usize) {
        let run = &self.runs[position];
        let Work::Released(_, start) = &run.work else {
            return;
        };
        let reads = run.input.waits_for().is_some();
        let started = if run.input.is_untouched() {
            self.spawn(start, reads)
        } else {
            let text = "interpreter died before the script began";
            Err(failure(FailureKind::Internal, text))
        };
        let run = &mut self.runs[position];
        match started {
            Ok(started) => {
                for (pump, pipe) in run.output.iter_mut().zip(started.output) {
                    pump.attach(pipe);
                }
                if let Some(input) = started.input {
                    run.input.redirect(input);
                }
                run.work = Work::Process(started.child);
            }
            Err(failure) => run.end(Err(failure), None),
        }
    }

    /// Gives the first waiting cell to the resident kernel, once that is free and nothing of the
    /// cell before is left in its pipes. Returns whether there was one.
    pub(super) fn start_next_cell(&mut self) -> bool {
        if self.runs.iter().any(Run::is_cell) {
            return false;
        }
        let Some(position) = self.runs.iter().position(Run::is_waiting) else {
            return false;
        };
        self.start_cell(position);
        true
    }

    fn start_cell(&mut self, position: usize) {
        let number = self.next_serial();
        let kernel = self.resident.take().or_else(|| self.spare.take());
        let kernel = kernel.map_or_else(|| Kernel::boot(&self.launcher, &self.drivers), Ok);
        let run = &mut self.runs[position];
        run.state_lost |= std::mem::take(&mut self.unreported_loss);
        let mut kernel = match kernel {
            Ok(kernel) => kernel,
            Err(failure) => return run.end(Err(failure), None),
        };
        for (pump, pipe) in run.output.iter_mut().zip(&kernel.output) {
            pump.attach(Rc::clone(pipe));
        }
        let Some(request) = run.begin_cell(number) else {
            return;
        };
        if let Err(error) = kernel.start_cell(number, request) {
            // Its end, which follows, ends the run.
            log(&format!("kernel takes no cell: {error}"));
            kernel.signal(nix::sys::signal::Signal::SIGKILL);
        }
        self.resident = Some(kernel);
    }

    pub(super) fn boot_spare(&mut self) {
        if !std::mem::take(&mut self.spare_due) || self.spare.is_some() {
            return;
        }
        match Kernel::boot(&self.launcher, &self.drivers) {
            Ok(kernel) => self.spare = Some(kernel),
            // The run that needs one starts its interpreter itself, and reports what is wrong.
            Err(failure) => log(&failure.message),
        }
    }
}

fn queue_cell(id: StreamId, source: Vec<u8>, common: Common) -> Result<Run, Failure> {
    let (stdin, near) = match common.stdin {
        Stdin::Empty => (None, None),
        _ => {
            let (reader, writer) = stdin(true)?;
            (Some(reader), writer)
        }
    };
    let request = CellRequest {
        source,
        env: common.env,
        cwd: common.cwd,
        stdin,
        timeout: common.timeout,
        again: false,
    };
    let output = idle_pumps(common.output_limit);
    let mut run = Run::new(
        id,
        Work::Waiting(request),
        output,
        input(near, common.stdin),
    );
    run.sweep = common.sweep;
    Ok(run)
}

/// Processor time that a child has taken so far, in microseconds; 0 where it has ended.
fn cpu_us(pid: Pid) -> u64 {
    let taken = clock_getcpuclockid(pid).and_then(clock_gettime);
    taken.map_or(0, |time| {
        u64::try_from(time.num_microseconds()).unwrap_or(0)
    })
}

/// The far end for a program, and the near one where it reads something.
fn stdin(reads: bool) -> Result<(OwnedFd, Option<OwnedFd>), Failure> {
    let failed = |error| internal("standard input failed", error);
    if reads {
        let (reader, writer) = pipe(Near::Writer).map_err(failed)?;
        Ok((reader, Some(writer)))
    } else {
        Ok((null().map_err(failed)?, None))
    }
}

fn input(pipe: Option<OwnedFd>, stdin: Stdin) -> Input {
    match (pipe, stdin) {
        (None, _) | (_, Stdin::Empty) => Input::empty(),
        (Some(pipe), Stdin::Bytes(bytes)) => Input::known(pipe, bytes),
        (Some(pipe), Stdin::Piped) => Input::piped(pipe),
    }
}

fn pumps(pipes: &[Rc<OwnedFd>; 2], limit: Option<u64>) -> [Pump; 2] {
    let [stdout, stderr] = pipes;
    [
        Pump::new(OutputStream::Stdout, Rc::clone(stdout), limit),
        Pump::new(OutputStream::Stderr, Rc::clone(stderr), limit),
    ]
}

/// What no kind of program can be started with.
fn check_spec(spec: &RunSpec) -> Result<(), Failure> {
    let refused = |text: String| Err(failure(FailureKind::Refused, text));
    for (name, value) in &spec.env {
        if !is_variable_name(name) || value.contains('\0') {
            return refused(format!("environment variable {name:?} cannot be set"));
        }
    }
    if let Some(cwd) = &spec.cwd
        && (!cwd.starts_with('/') || cwd.contains('\0'))
    {
        return refused(format!("working directory {cwd:?} is not absolute"));
    }
    Ok(())
}

/// The status of a run that was ended from outside.
pub(super) const ENDED_BY_FORCE: ExitStatus = ExitStatus::Signal(libc::SIGKILL);
