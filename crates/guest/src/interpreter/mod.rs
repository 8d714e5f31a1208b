//! Interpreters that are booted before there is code to run.
//!
//! An interpreter starts as a *spare*. A script *releases* it, and it becomes the process of that run; a cell makes it
//! *resident*, and it serves cells until it dies. [`interpreters`] lists how each interpreter is started, and how it is
//! made to wait; those of Python are forked from a [`zygote`]. Requests are written to a mailbox, a file in memory, so
//! that they never fill the [`control_socket`]. The guest reads nothing from the mailbox.

pub(crate) mod control_socket;
pub(crate) mod driver_files;
pub(crate) mod interpreters;
mod shell;
mod zip;
pub(crate) mod zygote;

use std::fs;
use std::io;
use std::iter;
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::os::unix::fs::FileExt as _;
use std::rc::Rc;

use isol8_protocol::{Failure, Runtime};
use isol8_runtimes::{CellRequests, Interpreter as InterpreterFacts};
use nix::fcntl::{FcntlArg, SealFlag, fcntl};
use nix::sys::memfd::{MFdFlags, memfd_create};
use nix::sys::signal::{Signal, kill, killpg};
use nix::unistd::Pid;

use crate::failure::{internal, occupied};
use crate::lockdown::{Privileges, Role};
use crate::process::{Child, Environment, GuestSide, ProgramLauncher, user_pipe};
use crate::run::{CellRequest, ProgramStart};
use control_socket::{ControlSocket, InterpreterMessage};
use driver_files::DriverDirectory;
use interpreters::{Driver, InterpreterSpec};

/// The variable of a driver that lists options, to which the environment's own options are added.
const OPTIONS: &str = "NODE_OPTIONS";

/// Names and values of variables.
pub(crate) type Variables = Vec<(String, String)>;

/// The script that a spare Python is started with.
const SCRIPT: &str = "/sandbox/main.py";

/// Working directory of programs and cells for which the host specifies none.
const HOME: &str = "/sandbox";

/// Returns the name and the content of a file of the Python driver.
macro_rules! python_file {
    ($name:literal) => {
        python_file!($name, $name)
    };
    ($name:literal, $file:literal) => {
        ($name, include_str!(concat!("../../drivers/python/", $file)))
    };
}

/// The driver of an interpreter that waits for its first code. `driver.py` lists the parts.
const SPARE_FILES: &[(&str, &str)] = &[
    python_file!("sitecustomize.py", "driver.py"),
    python_file!("boot.py"),
    python_file!("cells.py"),
    python_file!("environment.py"),
    python_file!("event_loop.py"),
    python_file!("finish.py"),
    python_file!("late_modules.py"),
    python_file!("names.py"),
    python_file!("packages.py"),
    python_file!("stdout.py"),
    python_file!("streams.py"),
    python_file!("traces.py"),
    python_file!("workers.py"),
    python_file!("zygote.py"),
];

/// The driver of an interpreter that is started on a script.
const FRESH_FILES: &[(&str, &str)] = &[
    python_file!("sitecustomize.py", "fresh.py"),
    python_file!("packages.py"),
    python_file!("stdout.py"),
];

/// The files that Python interpreters boot with. The files are sealed, so no process can change them.
#[derive(Debug)]
pub(crate) struct Drivers {
    archive: OwnedFd,
    /// The archive for an interpreter that is started on a script.
    fresh: OwnedFd,
    extension: OwnedFd,
}

impl Drivers {
    pub(crate) fn new() -> io::Result<Self> {
        let archive = zip::archive(SPARE_FILES);
        let fresh = zip::archive(FRESH_FILES);
        Ok(Self {
            archive: sealed(&archive)?,
            fresh: sealed(&fresh)?,
            extension: sealed(include_bytes!(env!("ISOL8_CONFINE")))?,
        })
    }
}

impl Drivers {
    /// Returns the file that an interpreter started on a script gets as its descriptor 3, and the environment that
    /// makes it load the file; `None` if it needs no file.
    pub(crate) fn for_fresh(&self, start: &ProgramStart) -> Option<(BorrowedFd<'_>, Environment)> {
        let spec = InterpreterSpec::of(start.language?);
        if !matches!(spec.driver, Driver::Python) {
            return None;
        }
        let environment = with_modules_of(b"/proc/self/fd/3", &start.environment);
        Some((self.fresh.as_fd(), environment))
    }
}

fn sealed(content: &[u8]) -> io::Result<OwnedFd> {
    let flags = MFdFlags::MFD_CLOEXEC | MFdFlags::MFD_ALLOW_SEALING;
    let file = fs::File::from(memfd_create("driver", flags)?);
    file.write_all_at(content, 0)?;
    let seals = SealFlag::F_SEAL_SEAL
        | SealFlag::F_SEAL_SHRINK
        | SealFlag::F_SEAL_GROW
        | SealFlag::F_SEAL_WRITE;
    fcntl(&file, FcntlArg::F_ADD_SEALS(seals))?;
    Ok(file.into())
}

fn mailbox(content: &[u8]) -> io::Result<fs::File> {
    let file = fs::File::from(memfd_create("mailbox", MFdFlags::MFD_CLOEXEC)?);
    file.write_all_at(content, 0)?;
    Ok(file)
}

/// Returns the environment with an archive as the first entry of the module path.
pub(super) fn with_modules_of(archive: &[u8], environment: &Environment) -> Environment {
    let mut path = archive.to_vec();
    if let Some(own) = environment.get(b"PYTHONPATH") {
        path.push(b':');
        path.extend_from_slice(own);
    }
    let mut environment = environment.clone();
    environment.set(b"PYTHONPATH", &path);
    environment
}

/// Returns the driver's value of a variable. If the variable lists options, those of the environment are appended.
fn with_options_of(environment: &Environment, name: &str, value: &str) -> Vec<u8> {
    let mut options = value.as_bytes().to_vec();
    if let Some(own) = environment.get(name.as_bytes()).filter(|_| name == OPTIONS) {
        options.push(b' ');
        options.extend_from_slice(own);
    }
    options
}

/// How far a released interpreter came with its script.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum ReleaseReport {
    /// The script has started.
    Started,
    /// The script's working directory could not be entered.
    NoDirectory,
    /// No code of the run was executed.
    Never,
}

/// The guest's ends of an interpreter's streams and control socket.
#[derive(Debug)]
struct GuestEnds {
    output: [Rc<OwnedFd>; 2],
    input: OwnedFd,
    control: ControlSocket,
}

/// The interpreter's ends of its streams and control socket.
#[derive(Debug)]
struct InterpreterEnds {
    stdin: OwnedFd,
    stdout: OwnedFd,
    stderr: OwnedFd,
    control: OwnedFd,
}

impl GuestEnds {
    fn new(privileges: Privileges) -> io::Result<(Self, InterpreterEnds)> {
        let (stdin, input) = user_pipe(privileges, GuestSide::Writer)?;
        let (stdout_near, stdout) = user_pipe(privileges, GuestSide::Reader)?;
        let (stderr_near, stderr) = user_pipe(privileges, GuestSide::Reader)?;
        let (control, far) = ControlSocket::pair()?;
        let near = Self {
            output: [Rc::new(stdout_near), Rc::new(stderr_near)],
            input,
            control,
        };
        let far = InterpreterEnds {
            stdin,
            stdout,
            stderr,
            control: far,
        };
        Ok((near, far))
    }
}

/// An interpreter that boots or is booted.
#[derive(Debug)]
pub(crate) struct Interpreter {
    pub(crate) kind: Runtime,
    /// Process id. For an interpreter that was forked from a zygote, it is known once its first message has arrived.
    pid: Option<Pid>,
    /// The child process, unless it was forked from a zygote.
    child: Option<Child>,
    pub(crate) output: [Rc<OwnedFd>; 2],
    pub(crate) input: Option<OwnedFd>,
    control: ControlSocket,
    mailbox: fs::File,
    files: Option<DriverDirectory>,
    /// Variables that it was started with, in addition to those that every program gets.
    pub(crate) started_with: Variables,
    /// Whether there were configuration files when it was booted.
    is_configured: bool,
    pub(crate) is_ready: bool,
    /// Set once the interpreter has closed its control socket.
    pub(crate) is_silent: bool,
    release: ReleaseReport,
    /// Number of the last cell that it was given, and of the last cell that it started.
    cells: u64,
    started_cell: u64,
}

impl Interpreter {
    fn new(kind: Runtime, ends: GuestEnds, mailbox: fs::File) -> Self {
        Self {
            kind,
            pid: None,
            child: None,
            output: ends.output,
            input: Some(ends.input),
            control: ends.control,
            mailbox,
            files: None,
            started_with: Variables::new(),
            is_configured: false,
            is_ready: false,
            is_silent: false,
            release: ReleaseReport::Never,
            cells: 0,
            started_cell: 0,
        }
    }

    /// Starts an interpreter with these variables. Does not wait until it is booted.
    pub(crate) fn boot(
        launcher: &ProgramLauncher,
        drivers: &Drivers,
        kind: Runtime,
        variables: &Variables,
    ) -> Result<Self, Failure> {
        let what = "interpreter cannot be booted";
        let failed = |error: io::Error| internal(what, error);
        let InterpreterSpec { facts, driver, .. } = InterpreterSpec::of(kind);
        let boot = &facts.boot;
        let is_configured = InterpreterSpec::of(kind).is_configured_in(HOME);
        let (ends, far) = GuestEnds::new(launcher.privileges).map_err(failed)?;
        let mut single = Fields::default();
        single.push(b"single");
        let mailbox = mailbox(&single.0).map_err(failed)?;
        let mut files = vec![
            far.stdin.as_fd(),
            far.stdout.as_fd(),
            far.stderr.as_fd(),
            far.control.as_fd(),
            mailbox.as_fd(),
        ];
        let mut installed = None;
        let mut environment = launcher.environment_of(Some(kind)).with(variables);
        let mut opened = None;
        let (argv, cwd) = match driver {
            Driver::Python => {
                files.push(drivers.archive.as_fd());
                environment = with_modules_of(b"/proc/self/fd/5", &environment);
                let argv: Vec<_> = boot.argv.iter().map(|word| (*word).to_owned()).collect();
                (argv, boot.cwd.to_owned())
            }
            Driver::Files(driver) => {
                let made = DriverDirectory::make(driver, boot.placeholder, launcher.privileges);
                let made = made.map_err(|error| occupied(what, error))?;
                for (name, value) in boot.env {
                    let value = with_options_of(&environment, name, value);
                    environment.set(name.as_bytes(), &value);
                }
                if let Some(name) = boot.open {
                    opened = Some(made.open(name).map_err(|error| occupied(what, error))?);
                }
                let argv = boot.argv.iter().map(|word| made.fill_in(word)).collect();
                let cwd = made.fill_in(boot.cwd);
                installed = Some(made);
                (argv, cwd)
            }
        };
        files.extend(opened.as_ref().map(fs::File::as_fd));
        let argv: Vec<&[u8]> = argv.iter().map(String::as_bytes).collect();
        let child = launcher.start(&argv, &environment, &cwd, &files, Role::UserCode)?;
        drop(files);
        let mut interpreter = Self::new(kind, ends, mailbox);
        interpreter.pid = Some(child.pid);
        interpreter.child = Some(child);
        interpreter.files = installed;
        interpreter.started_with.clone_from(variables);
        interpreter.is_configured = is_configured;
        Ok(interpreter)
    }

    fn facts(&self) -> &'static InterpreterFacts {
        &self.kind.facts().interpreter
    }

    pub(crate) fn pid(&self) -> Option<Pid> {
        self.pid
    }

    pub(crate) fn control(&self) -> BorrowedFd<'_> {
        self.control.readable()
    }

    /// Returns why the interpreter was not started, if it was not. Valid once it was reaped.
    pub(crate) fn start_failure(&self) -> Option<Failure> {
        self.child.as_ref().and_then(Child::start_failure)
    }

    /// Whether configuration files were added after it was booted. The first cell expects that it has read them.
    pub(crate) fn lacks_configuration(&self) -> bool {
        !self.is_configured && InterpreterSpec::of(self.kind).is_configured_in(HOME)
    }

    /// Makes a spare run a script.
    pub(crate) fn release(&mut self, start: &ProgramStart) -> io::Result<()> {
        let (request, line) = match self.facts().requests {
            CellRequests::ShellCommands => (shell::script(start), shell::SCRIPT.to_owned()),
            CellRequests::Fields => {
                let path = start.path.as_bytes();
                let fields = Fields::of(iter::once(path).chain(start.fields()));
                let line = format!("S {}\n", fields.len());
                (fields, line)
            }
        };
        self.put(&request)?;
        self.control.send(&line)
    }

    /// Returns the number of the next cell, from 1. Tracebacks and `linecache` show the number.
    pub(crate) fn next_cell(&mut self) -> u64 {
        self.cells += 1;
        self.cells
    }

    /// Whether a released interpreter may report the end of its script before its process ends.
    pub(crate) fn may_tell_end(&self) -> bool {
        !self.is_silent && self.facts().may_report_end
    }

    /// Starts the cell with this number.
    pub(crate) fn start_cell(&mut self, number: u64, cell: &CellRequest) -> io::Result<()> {
        let stdin = cell.stdin.as_ref().map_or("", |named| named.path());
        let (request, line) = match self.facts().requests {
            CellRequests::ShellCommands => (shell::cell(number, cell, stdin), shell::lines(number)),
            CellRequests::Fields => {
                let fields = Fields::of(cell.fields(stdin));
                // The timeout in milliseconds, 0 for none. A driver that waits for work that the cell started answers
                // before it.
                let limit = cell.timeout.map_or(0, |timeout| timeout.as_millis());
                let line = format!("C {number} {} {limit}\n", fields.len());
                (fields, line)
            }
        };
        self.put(&request)?;
        // Only scripts read from the pipe that the interpreter was booted with.
        self.input = None;
        self.control.send(&line)
    }

    /// Whether the interpreter has started the cell with this number, which it reports before it executes the cell's
    /// code.
    pub(crate) fn has_started_cell(&self, number: u64) -> bool {
        self.started_cell == number
    }

    /// Whether it has run a cell before the last one, so that state can be lost.
    pub(crate) fn has_state(&self) -> bool {
        self.cells > 1
    }

    /// Returns how far a released interpreter came. Valid once its process was reaped.
    pub(crate) fn release_report(&mut self) -> ReleaseReport {
        while let Ok(Some(_)) = self.next() {}
        self.release
    }

    /// Returns the next message, if one was received. The error means that the interpreter has closed its control
    /// socket.
    pub(crate) fn next(&mut self) -> io::Result<Option<InterpreterMessage>> {
        let message = self.control.next().inspect_err(|_| self.is_silent = true)?;
        match message {
            Some(InterpreterMessage::Ready(pid)) if !self.is_ready => {
                self.is_ready = true;
                self.files = None;
                self.pid = self.pid.or(pid);
            }
            // A second `ready` comes from user code.
            Some(InterpreterMessage::Ready(_)) => return Ok(None),
            Some(InterpreterMessage::ScriptStarted) => self.release = ReleaseReport::Started,
            Some(InterpreterMessage::NoDirectory) => self.release = ReleaseReport::NoDirectory,
            Some(InterpreterMessage::CellStarted(number)) => self.started_cell = number,
            _ => {}
        }
        Ok(message)
    }

    /// Sends a signal to the interpreter's process group.
    pub(crate) fn signal(&self, signal: Signal) {
        // The process may have ended, which the guest handles when it is reaped.
        if let Some(pid) = self.pid {
            let _ = killpg(pid, signal);
        }
    }

    /// Kills the interpreter's process, and no other.
    pub(crate) fn kill(&self) {
        if let Some(pid) = self.pid {
            let _ = kill(pid, Signal::SIGKILL);
        }
    }

    /// Stops the process (SIGSTOP) until the next sweep kills it.
    pub(crate) fn suspend(&self) {
        if let Some(pid) = self.pid {
            let _ = kill(pid, Signal::SIGSTOP);
        }
    }

    fn put(&self, bytes: &[u8]) -> io::Result<()> {
        self.mailbox.set_len(0)?;
        self.mailbox.write_all_at(bytes, 0)
    }
}

/// Byte strings, each preceded by its length as 4 bytes, little-endian.
#[derive(Default)]
struct Fields(Vec<u8>);

impl Fields {
    fn of<'a>(all: impl Iterator<Item = &'a [u8]>) -> Vec<u8> {
        let mut fields = Self::default();
        all.for_each(|field| fields.push(field));
        fields.0
    }

    fn push(&mut self, field: &[u8]) {
        // Every field came in one frame, so its length fits.
        self.0
            .extend_from_slice(&(field.len() as u32).to_le_bytes());
        self.0.extend_from_slice(field);
    }
}
