//! Interpreters that were booted before there is anything to run.
//!
//! A kernel starts as a spare. A script releases it, and it becomes that run's process; a cell
//! makes it resident, and it serves cells until it dies. [`interpreters`] tells how each interpreter is
//! started, and how it is made to wait; Python's are forked from a [`zygote`]. Requests lie in a
//! mailbox, a file in memory, so that their size never fills the [`control_socket`]. The guest reads
//! nothing from the mailbox.

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

use isol8_protocol::{Failure, KernelKind};
use nix::fcntl::{FcntlArg, SealFlag, fcntl};
use nix::sys::memfd::{MFdFlags, memfd_create};
use nix::sys::signal::{Signal, kill, killpg};
use nix::unistd::Pid;

use crate::failure::{internal, occupied};
use crate::lockdown::{Privileges, Role};
use crate::process::{Child, Environment, Launcher, Near, user_pipe};
use crate::run::{CellRequest, Start};
use control_socket::{ControlSocket, Message};
use driver_files::DriverDirectory;
use interpreters::{Driver, Interpreter};

/// The one of the drivers' variables that lists options.
const OPTIONS: &str = "NODE_OPTIONS";

/// Names and values of variables.
pub(crate) type Variables = Vec<(String, String)>;

/// The script that a Python kernel was started on.
const SCRIPT: &str = "/sandbox/main.py";

/// Working directory of programs and cells for which the host names none.
const HOME: &str = "/sandbox";

/// The files that Python interpreters boot with, which no process can change.
#[derive(Debug)]
pub(crate) struct Drivers {
    archive: OwnedFd,
    /// For an interpreter that is started on a script.
    fresh: OwnedFd,
    extension: OwnedFd,
}

impl Drivers {
    pub(crate) fn new() -> io::Result<Self> {
        let archive = zip::archive(&[
            ("sitecustomize.py", include_str!("driver.py")),
            ("cell.py", include_str!("cell.py")),
            ("finish.py", include_str!("finish.py")),
            ("loop.py", include_str!("loop.py")),
            ("stdout.py", include_str!("stdout.py")),
            ("names.py", include_str!("names.py")),
            ("packages.py", include_str!("packages.py")),
            ("workers.py", include_str!("workers.py")),
            ("zygote.py", include_str!("zygote.py")),
        ]);
        let fresh = zip::archive(&[
            ("sitecustomize.py", include_str!("fresh.py")),
            ("packages.py", include_str!("packages.py")),
            ("stdout.py", include_str!("stdout.py")),
        ]);
        Ok(Self {
            archive: sealed(&archive)?,
            fresh: sealed(&fresh)?,
            extension: sealed(include_bytes!(env!("ISOL8_CONFINE")))?,
        })
    }
}

impl Drivers {
    /// Returns the file that an interpreter which is started on a script finds as its descriptor 3, and the environment
    /// that has it look there; `None` if it needs no file.
    pub(crate) fn for_fresh(&self, start: &Start) -> Option<(BorrowedFd<'_>, Environment)> {
        if start.language != Some(KernelKind::Python) {
            return None;
        }
        let environment = with_modules_of(b"/proc/self/fd/3", &start.environment);
        Some((self.fresh.as_fd(), environment))
    }
}

fn sealed(content: &[u8]) -> io::Result<OwnedFd> {
    let flags = MFdFlags::MFD_CLOEXEC | MFdFlags::MFD_ALLOW_SEALING;
    let file = fs::File::from(memfd_create("kernel", flags)?);
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

/// An environment with an archive as the first place of modules.
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

/// The driver's value of a variable that lists options, with those that were there.
fn with_options_of(environment: &Environment, name: &str, value: &str) -> Vec<u8> {
    let mut options = value.as_bytes().to_vec();
    if let Some(own) = environment.get(name.as_bytes()).filter(|_| name == OPTIONS) {
        options.push(b' ');
        options.extend_from_slice(own);
    }
    options
}

/// The report of a released spare interpreter before it was reaped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Release {
    /// The script has started.
    Started,
    /// Its working directory could not be entered.
    NoDirectory,
    /// Nothing: no code of the run was executed.
    Never,
}

/// The guest's ends of what connects it with a kernel.
#[derive(Debug)]
struct Ends {
    output: [Rc<OwnedFd>; 2],
    input: OwnedFd,
    line: ControlSocket,
}

/// The kernel's.
#[derive(Debug)]
struct FarEnds {
    stdin: OwnedFd,
    stdout: OwnedFd,
    stderr: OwnedFd,
    line: OwnedFd,
}

impl Ends {
    fn new(privileges: Privileges) -> io::Result<(Self, FarEnds)> {
        let (stdin, input) = user_pipe(privileges, Near::Writer)?;
        let (stdout_near, stdout) = user_pipe(privileges, Near::Reader)?;
        let (stderr_near, stderr) = user_pipe(privileges, Near::Reader)?;
        let (line, far) = ControlSocket::pair()?;
        let near = Self {
            output: [Rc::new(stdout_near), Rc::new(stderr_near)],
            input,
            line,
        };
        let far = FarEnds {
            stdin,
            stdout,
            stderr,
            line: far,
        };
        Ok((near, far))
    }
}

/// A booted, or still booting, interpreter.
#[derive(Debug)]
pub(crate) struct Kernel {
    pub(crate) kind: KernelKind,
    /// Process id: known from the start, or from the message of an interpreter that is forked from another.
    pid: Option<Pid>,
    /// The start of the process, unless it was forked from another.
    child: Option<Child>,
    pub(crate) output: [Rc<OwnedFd>; 2],
    pub(crate) input: Option<OwnedFd>,
    line: ControlSocket,
    mailbox: fs::File,
    files: Option<DriverDirectory>,
    /// Variables that it was started with, beside those that every program gets.
    pub(crate) started_with: Variables,
    /// There were files of configuration when it was booted.
    is_configured: bool,
    pub(crate) is_ready: bool,
    /// Set once the interpreter has closed its control socket.
    pub(crate) is_silent: bool,
    release: Release,
    /// Cells that it was given, and the last one that it took up.
    cells: u64,
    begun: u64,
}

impl Kernel {
    fn new(kind: KernelKind, ends: Ends, mailbox: fs::File) -> Self {
        Self {
            kind,
            pid: None,
            child: None,
            output: ends.output,
            input: Some(ends.input),
            line: ends.line,
            mailbox,
            files: None,
            started_with: Variables::new(),
            is_configured: false,
            is_ready: false,
            is_silent: false,
            release: Release::Never,
            cells: 0,
            begun: 0,
        }
    }

    /// Starts an interpreter with these variables, which boots while the guest goes on.
    pub(crate) fn boot(
        launcher: &Launcher,
        drivers: &Drivers,
        kind: KernelKind,
        variables: &Variables,
    ) -> Result<Self, Failure> {
        let what = "kernel cannot be booted";
        let failed = |error: io::Error| internal(what, error);
        let driver = &Interpreter::of(kind).driver;
        let is_configured = Interpreter::of(kind).is_configured_in(HOME);
        let (ends, far) = Ends::new(launcher.privileges).map_err(failed)?;
        let mut single = Fields::default();
        single.push(b"single");
        let mailbox = mailbox(&single.0).map_err(failed)?;
        let mut files = vec![
            far.stdin.as_fd(),
            far.stdout.as_fd(),
            far.stderr.as_fd(),
            far.line.as_fd(),
            mailbox.as_fd(),
        ];
        let mut installed = None;
        let mut environment = launcher.user_of(kind == KernelKind::Python).with(variables);
        let mut opened = None;
        let (argv, cwd) = match driver {
            Driver::Python => {
                files.push(drivers.archive.as_fd());
                environment = with_modules_of(b"/proc/self/fd/5", &environment);
                let argv = vec!["python3".to_owned(), SCRIPT.to_owned()];
                (argv, "/sandbox".to_owned())
            }
            Driver::Files(driver) => {
                let made = DriverDirectory::make(driver, launcher.privileges);
                let made = made.map_err(|error| occupied(what, error))?;
                for (name, value) in driver.env {
                    let value = with_options_of(&environment, name, value);
                    environment.set(name.as_bytes(), &value);
                }
                if let Some(name) = driver.open {
                    opened = Some(made.open(name).map_err(|error| occupied(what, error))?);
                }
                let argv = driver.argv.iter().map(|word| made.fill_in(word)).collect();
                let cwd = made.fill_in(driver.cwd);
                installed = Some(made);
                (argv, cwd)
            }
        };
        files.extend(opened.as_ref().map(fs::File::as_fd));
        let argv: Vec<&[u8]> = argv.iter().map(String::as_bytes).collect();
        let child = launcher.start(&argv, &environment, &cwd, &files, Role::UserCode)?;
        drop(files);
        let mut kernel = Self::new(kind, ends, mailbox);
        kernel.pid = Some(child.pid);
        kernel.child = Some(child);
        kernel.files = installed;
        kernel.started_with.clone_from(variables);
        kernel.is_configured = is_configured;
        Ok(kernel)
    }

    pub(crate) fn pid(&self) -> Option<Pid> {
        self.pid
    }

    pub(crate) fn line(&self) -> BorrowedFd<'_> {
        self.line.readable()
    }

    /// Returns why the interpreter was not started, if it was not. Valid once it was reaped.
    pub(crate) fn start_failure(&self) -> Option<Failure> {
        self.child.as_ref().and_then(Child::start_failure)
    }

    /// Whether files of configuration came after it was booted, which the first cell expects it to have read.
    pub(crate) fn lacks_configuration(&self) -> bool {
        !self.is_configured && Interpreter::of(self.kind).is_configured_in(HOME)
    }

    /// Lets a spare run its script.
    pub(crate) fn release(&mut self, start: &Start) -> io::Result<()> {
        let (request, line) = match self.kind {
            KernelKind::Bash => (shell::script(start), shell::SCRIPT.to_owned()),
            _ => {
                let path = start.path.as_bytes();
                let fields = Fields::of(iter::once(path).chain(start.fields()));
                let line = format!("S {}\n", fields.len());
                (fields, line)
            }
        };
        self.put(&request)?;
        self.line.send(&line)
    }

    /// Returns the number of the next cell, from 1. Traces and `linecache` show it.
    pub(crate) fn next_cell(&mut self) -> u64 {
        self.cells += 1;
        self.cells
    }

    /// Whether a released one may say that its script has ended before its process does: some hold that back
    /// until all is written, and others have nothing more to say.
    pub(crate) fn may_tell_end(&self) -> bool {
        !self.is_silent && !matches!(self.kind, KernelKind::Python | KernelKind::Bash)
    }

    /// Starts the cell of this number.
    pub(crate) fn start_cell(&mut self, number: u64, cell: &CellRequest) -> io::Result<()> {
        let stdin = cell.stdin.as_ref().map_or("", |named| named.path());
        let (request, line) = match self.kind {
            KernelKind::Bash => (shell::cell(number, cell, stdin), shell::lines(number)),
            _ => {
                let fields = Fields::of(cell.fields(stdin));
                // Those that wait for what a cell has started answer before its timeout; 0 for none.
                let limit = cell.timeout.map_or(0, |timeout| timeout.as_millis());
                let line = format!("C {number} {} {limit}\n", fields.len());
                (fields, line)
            }
        };
        self.put(&request)?;
        // Only a script reads from the pipe that it was booted with.
        self.input = None;
        self.line.send(&line)
    }

    /// Whether the cell of this number was taken up: the kernel says so before it runs any of it.
    pub(crate) fn took_cell(&self, number: u64) -> bool {
        self.begun == number
    }

    /// Whether there was a cell before the last one, so that there is state to lose.
    pub(crate) fn has_state(&self) -> bool {
        self.cells > 1
    }

    /// Returns the report of a released spare interpreter. Valid once it was reaped.
    pub(crate) fn release_report(&mut self) -> Release {
        while let Ok(Some(_)) = self.next() {}
        self.release
    }

    /// The next message, if it is there. An error says that the kernel let go of its line.
    pub(crate) fn next(&mut self) -> io::Result<Option<Message>> {
        let message = self.line.next().inspect_err(|_| self.is_silent = true)?;
        match message {
            Some(Message::Ready(pid)) if !self.is_ready => {
                self.is_ready = true;
                self.files = None;
                self.pid = self.pid.or(pid);
            }
            // A second message of this kind comes from user code.
            Some(Message::Ready(_)) => return Ok(None),
            Some(Message::Started) => self.release = Release::Started,
            Some(Message::NoDirectory) => self.release = Release::NoDirectory,
            Some(Message::Begun(number)) => self.begun = number,
            _ => {}
        }
        Ok(message)
    }

    /// Sends a signal to the kernel and to what it started in its own group.
    pub(crate) fn signal(&self, signal: Signal) {
        // The process may be gone; then its end tells everything.
        if let Some(pid) = self.pid {
            let _ = killpg(pid, signal);
        }
    }

    /// Ends the process, and no other.
    pub(crate) fn end(&self) {
        if let Some(pid) = self.pid {
            let _ = kill(pid, Signal::SIGKILL);
        }
    }

    /// Keeps the process from going on, until it is ended with all others.
    pub(crate) fn stop(&self) {
        if let Some(pid) = self.pid {
            let _ = kill(pid, Signal::SIGSTOP);
        }
    }

    fn put(&self, bytes: &[u8]) -> io::Result<()> {
        self.mailbox.set_len(0)?;
        self.mailbox.write_all_at(bytes, 0)
    }
}

/// Strings of bytes, each behind its length.
#[derive(Default)]
struct Fields(Vec<u8>);

impl Fields {
    fn of<'a>(all: impl Iterator<Item = &'a [u8]>) -> Vec<u8> {
        let mut fields = Self::default();
        all.for_each(|field| fields.push(field));
        fields.0
    }

    fn push(&mut self, field: &[u8]) {
        // Every field came in one frame, so none is longer than that.
        self.0
            .extend_from_slice(&(field.len() as u32).to_le_bytes());
        self.0.extend_from_slice(field);
    }
}
