//! Starting a program: fork, confine, exec.
//!
//! The guest has a single thread, so a forked child may make any call. The child still allocates nothing: all that it
//! needs is prepared before the fork. The guest does not wait for the exec, because user code with the same user id
//! could stop the child before its exec, and would then stop the guest too. The child reports a failed start over a
//! pipe, which the guest reads once the child was reaped.

use std::ffi::{CStr, CString, c_char, c_int};
use std::io::{self, Read as _};
use std::os::fd::{AsRawFd as _, BorrowedFd, FromRawFd as _, OwnedFd, RawFd};
use std::os::unix::ffi::OsStringExt as _;

use isol8_protocol::{Failure, FailureKind, Runtime};
use isol8_runtimes::Variables as RuntimeVariables;
use nix::fcntl::OFlag;
use nix::unistd::{ForkResult, Pid, fork, pipe2};

use crate::failure::{failure, internal, is_exhausted};
use crate::lockdown::{Privileges, Role};

/// Default variables, used where the guest's own environment does not set them, beside the runtimes' `quiet` ones.
const DEFAULTS: [(&str, &str); 2] = [
    (
        "PATH",
        "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
    ),
    ("LANG", "C.UTF-8"),
];

/// The variable that tells programs to print no colours, <https://no-color.org>.
const NO_COLOR: (&[u8], &[u8]) = (b"NO_COLOR", b"1");

/// Variables that ask for colours even if the output is no terminal.
const COLORS: [&[u8]; 2] = [b"FORCE_COLOR", b"CLICOLOR_FORCE"];

/// Variables that describe the user of programs. The values replace the guest's own, in which container engines
/// describe the guest's user.
const USER: [(&str, &str); 3] = [
    ("HOME", "/sandbox"),
    ("USER", "sandbox"),
    ("LOGNAME", "sandbox"),
];

/// Returns facts about the environment variables of every runtime.
fn of_all_runtimes<T: Copy + 'static>(
    facts: impl Fn(&'static RuntimeVariables) -> &'static [T],
) -> impl Iterator<Item = T> {
    let all = Runtime::ALL.into_iter();
    all.flat_map(move |runtime| facts(&runtime.facts().variables).iter().copied())
}

/// Lowest descriptor to which the child moves its sources before it gives programs the descriptors below.
const ABOVE_TARGETS: RawFd = 64;

/// An environment: names and values in order, each name once.
#[derive(Clone, Debug, Default)]
pub(crate) struct Environment(Vec<(Vec<u8>, Vec<u8>)>);

impl Environment {
    /// Returns the guest's own environment with [`USER`], and with the variables of [`DEFAULTS`] that it lacks.
    pub(crate) fn base() -> Self {
        let mut base = Self::default();
        for (name, value) in std::env::vars_os() {
            base.set(&name.into_vec(), &value.into_vec());
        }
        base.set_missing(DEFAULTS.into_iter());
        base.set_missing(of_all_runtimes(|variables| variables.quiet));
        for (name, value) in USER {
            base.set(name.as_bytes(), value.as_bytes());
        }
        base
    }

    /// Returns the environment for programs without a terminal, with `NO_COLOR` unless a variable asks for colours.
    pub(crate) fn without_colors(&self) -> Self {
        let mut plain = self.clone();
        let names = COLORS.iter().chain([&NO_COLOR.0]);
        if names.copied().all(|name| self.get(name).is_none()) {
            plain.set(NO_COLOR.0, NO_COLOR.1);
        }
        plain
    }

    /// Returns the environment for user code, whose `PATH` includes the programs that user code installs. Their
    /// directories are last in `PATH`, so that none of the programs shadows a program of the system.
    pub(crate) fn for_user_code(&self) -> Self {
        let mut environment = self.clone();
        let mut path = environment.get(b"PATH").unwrap_or_default().to_vec();
        for directory in of_all_runtimes(|variables| variables.program_directories) {
            path.push(b':');
            path.extend_from_slice(directory.as_bytes());
        }
        environment.set(b"PATH", &path);
        environment.set_missing(of_all_runtimes(|variables| variables.user_installation));
        environment
    }

    /// Returns the environment with further variables. If these ask for colours, `NO_COLOR` is removed.
    pub(crate) fn with(&self, overlay: &[(String, String)]) -> Self {
        let mut merged = self.clone();
        if overlay
            .iter()
            .any(|(name, _)| COLORS.contains(&name.as_bytes()))
        {
            merged.0.retain(|(name, _)| name != NO_COLOR.0);
        }
        for (name, value) in overlay {
            merged.set(name.as_bytes(), value.as_bytes());
        }
        merged
    }

    pub(crate) fn get(&self, name: &[u8]) -> Option<&[u8]> {
        let found = self.0.iter().find(|(key, _)| key == name);
        found.map(|(_, value)| value.as_slice())
    }

    pub(crate) fn set(&mut self, name: &[u8], value: &[u8]) {
        match self.0.iter_mut().find(|(key, _)| key == name) {
            Some((_, old)) => *old = value.to_vec(),
            None => self.0.push((name.to_vec(), value.to_vec())),
        }
    }

    /// Returns the environment with the variables `of_other_programs` of every runtime but one.
    fn for_others_than(&self, except: Option<Runtime>) -> Self {
        let mut environment = self.clone();
        for runtime in Runtime::ALL {
            if Some(runtime) != except {
                let variables = runtime.facts().variables.of_other_programs.iter();
                environment.set_missing(variables.copied());
            }
        }
        environment
    }

    /// Sets those variables that have no value yet.
    fn set_missing<'a>(&mut self, variables: impl Iterator<Item = (&'a str, &'a str)>) {
        for (name, value) in variables {
            if self.get(name.as_bytes()).is_none() {
                self.set(name.as_bytes(), value.as_bytes());
            }
        }
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = (&[u8], &[u8])> {
        self.0.iter().map(|(name, value)| (&name[..], &value[..]))
    }

    fn to_c(&self) -> Result<Vec<CString>, Failure> {
        let pairs = self.iter();
        pairs
            .map(|(name, value)| c_string(&[name, b"=", value].concat(), "environment"))
            .collect()
    }
}

/// Whether `name` can name an environment variable.
pub(crate) fn is_variable_name(name: &str) -> bool {
    !name.is_empty() && !name.contains(['=', '\0'])
}

pub(crate) fn c_string(bytes: &[u8], what: &str) -> Result<CString, Failure> {
    CString::new(bytes)
        .map_err(|_| failure(FailureKind::Refused, format!("{what} holds a zero byte")))
}

/// The settings that all programs of a sandbox have in common.
#[derive(Debug)]
pub(crate) struct ProgramLauncher {
    pub(crate) privileges: Privileges,
    /// The environment of the guest's own programs. Nothing in it leads to files that user code writes, unless the
    /// image's variables do.
    pub(crate) base: Environment,
    /// The environments of interpreters without a terminal that the guest starts, for runtimes whose interpreters do
    /// not get all variables of other programs.
    interpreters: Vec<(Runtime, Environment)>,
    /// The environment of any other program of user code without a terminal.
    pub(crate) user: Environment,
    /// The environment of user code at a terminal.
    pub(crate) at_terminal: Environment,
}

impl ProgramLauncher {
    pub(crate) fn new(privileges: Privileges, base: Environment) -> Self {
        let at_terminal = base.for_user_code();
        let plain = at_terminal.without_colors();
        let differing = Runtime::ALL
            .into_iter()
            .filter(|runtime| !runtime.facts().variables.of_other_programs.is_empty());
        let interpreters = differing.map(|runtime| (runtime, plain.for_others_than(Some(runtime))));
        Self {
            privileges,
            base,
            interpreters: interpreters.collect(),
            user: plain.for_others_than(None),
            at_terminal,
        }
    }

    /// Returns the environment of an interpreter that the guest starts, or of a program if none is named.
    pub(crate) fn environment_of(&self, interpreter: Option<Runtime>) -> &Environment {
        let mut differing = self.interpreters.iter();
        let found = differing.find(|(runtime, _)| Some(*runtime) == interpreter);
        found.map_or(&self.user, |(_, environment)| environment)
    }
}

/// A forked child that is, or is about to become, the program; its exec may still fail.
#[derive(Debug)]
pub(crate) struct Child {
    pub(crate) pid: Pid,
    report: OwnedFd,
    program: String,
    cwd: String,
}

impl Child {
    /// Returns why the program was not started, if it was not. Valid once the child was reaped.
    pub(crate) fn start_failure(&self) -> Option<Failure> {
        let mut text = [0; 5];
        let report = self.report.try_clone().ok()?;
        // The child is dead, so the read neither blocks nor returns only a part.
        std::fs::File::from(report).read_exact(&mut text).ok()?;
        let [stage, error @ ..] = text;
        let error = io::Error::from_raw_os_error(i32::from_ne_bytes(error));
        let missing = matches!(error.raw_os_error(), Some(libc::ENOENT | libc::ENOTDIR));
        let kind = match error.raw_os_error() {
            _ if missing => FailureKind::NotFound,
            Some(libc::EACCES | libc::E2BIG | libc::ENOEXEC | libc::EPERM | libc::ELOOP) => {
                FailureKind::Refused
            }
            Some(libc::ENAMETOOLONG) => FailureKind::Refused,
            _ if is_exhausted(&error) => FailureKind::Exhausted,
            _ => FailureKind::Internal,
        };
        let (program, cwd) = (&self.program, &self.cwd);
        let text = match Stage::of(stage) {
            Stage::Confine => {
                return Some(failure(
                    FailureKind::Internal,
                    format!("program could not be confined: {error}"),
                ));
            }
            Stage::Directory => format!("working directory {cwd} cannot be entered: {error}"),
            Stage::Exec if missing => format!("program {program} not found in the sandbox"),
            Stage::Exec => format!("program {program} cannot be started: {error}"),
        };
        Some(failure(kind, text))
    }
}

#[derive(Clone, Copy)]
enum Stage {
    Confine = 0,
    Directory = 1,
    Exec = 2,
}

impl Stage {
    fn of(byte: u8) -> Self {
        match byte {
            0 => Self::Confine,
            1 => Self::Directory,
            _ => Self::Exec,
        }
    }
}

impl ProgramLauncher {
    /// Starts a program with `files` as its descriptors from 0 on, and no others.
    pub(crate) fn start(
        &self,
        argv: &[&[u8]],
        environment: &Environment,
        cwd: &str,
        files: &[BorrowedFd<'_>],
        role: Role,
    ) -> Result<Child, Failure> {
        let program = *argv
            .first()
            .filter(|program| !program.is_empty())
            .ok_or_else(|| failure(FailureKind::Refused, "command is empty"))?;
        let arguments = argv
            .iter()
            .map(|argument| c_string(argument, "argument"))
            .collect::<Result<Vec<_>, _>>()?;
        let paths = candidates(program, environment)?;
        let variables = environment.to_c()?;
        let directory = c_string(cwd.as_bytes(), "working directory")?;
        let (report, child_report) =
            pipe2(OFlag::O_CLOEXEC).map_err(|error| internal("pipe failed", error))?;
        let plan = ChildPlan {
            launcher: self,
            paths: &paths,
            arguments: &pointers(&arguments),
            variables: &pointers(&variables),
            directory: &directory,
            files,
            role,
            report: child_report.as_raw_fd(),
        };
        // SAFETY: this process has a single thread, so the child is a whole copy of it.
        match unsafe { fork() }.map_err(|error| {
            internal(
                "no process can be started, end some or raise pidsLimit",
                error,
            )
        })? {
            ForkResult::Parent { child } => Ok(Child {
                pid: child,
                report,
                program: String::from_utf8_lossy(program).into_owned(),
                cwd: cwd.to_owned(),
            }),
            ForkResult::Child => plan.carry_out(),
        }
    }
}

/// Returns the paths to try for a program, in order.
fn candidates(program: &[u8], environment: &Environment) -> Result<Vec<CString>, Failure> {
    if program.contains(&b'/') {
        return Ok(vec![c_string(program, "program")?]);
    }
    let path = environment.get(b"PATH").unwrap_or(b"/bin:/usr/bin");
    let directories = path.split(|byte| *byte == b':');
    directories
        .map(|directory| match directory {
            // An empty entry is the working directory.
            b"" => c_string(program, "program"),
            _ => c_string(&[directory, b"/", program].concat(), "program"),
        })
        .collect()
}

/// Returns the strings in the form for exec: pointers, closed by a null.
fn pointers(strings: &[CString]) -> Vec<*const c_char> {
    let strings = strings.iter().map(|string| string.as_ptr());
    strings.chain([std::ptr::null()]).collect()
}

/// Everything that the child needs, prepared before the fork.
struct ChildPlan<'a> {
    launcher: &'a ProgramLauncher,
    paths: &'a [CString],
    arguments: &'a [*const c_char],
    variables: &'a [*const c_char],
    directory: &'a CStr,
    files: &'a [BorrowedFd<'a>],
    role: Role,
    report: RawFd,
}

impl ChildPlan<'_> {
    fn carry_out(mut self) -> ! {
        let (stage, error) = self.try_carry_out();
        let mut text = [0; 5];
        text[0] = stage as u8;
        text[1..].copy_from_slice(&error.raw_os_error().unwrap_or(libc::EIO).to_ne_bytes());
        // SAFETY: the buffer is valid; a failed write leaves the exit code as the only report.
        unsafe { libc::write(self.report, text.as_ptr().cast(), text.len()) };
        // SAFETY: ends this process without running what belongs to the guest.
        unsafe { libc::_exit(127) }
    }

    /// Confines the child and executes the program. Returns only if a step failed.
    fn try_carry_out(&mut self) -> (Stage, io::Error) {
        if let Err(error) = self.confine() {
            return (Stage::Confine, error);
        }
        // SAFETY: the path ends in a zero byte.
        if unsafe { libc::chdir(self.directory.as_ptr()) } != 0 {
            return (Stage::Directory, io::Error::last_os_error());
        }
        (Stage::Exec, self.exec())
    }

    fn confine(&mut self) -> io::Result<()> {
        // SAFETY: plain system calls; a signal set is plain data that sigemptyset fills in. The
        // guest changed the disposition of SIGPIPE only.
        unsafe {
            if libc::setsid() < 0 {
                return Err(io::Error::last_os_error());
            }
            libc::signal(libc::SIGPIPE, libc::SIG_DFL);
            let mut none: libc::sigset_t = std::mem::zeroed();
            libc::sigemptyset(&raw mut none);
            libc::sigprocmask(libc::SIG_SETMASK, &raw const none, std::ptr::null_mut());
            libc::umask(0o022);
        }
        self.arrange_files()?;
        if self.role == Role::Interactive {
            // SAFETY: descriptor 0 is open; this process leads a session that has no terminal yet.
            check(unsafe { libc::ioctl(0, libc::TIOCSCTTY, 0) })?;
        }
        self.launcher.privileges.confine(self.role)
    }

    /// Puts `files` at 0, 1, …, the report behind them, and closes the rest.
    fn arrange_files(&mut self) -> io::Result<()> {
        let mut moved = [0; 8];
        let (moved, _) = moved.split_at_mut(self.files.len());
        for (to, from) in moved.iter_mut().zip(self.files) {
            *to = duplicate_above(from.as_raw_fd())?;
        }
        let report = duplicate_above(self.report)?;
        let mut next: RawFd = 0;
        for from in moved.iter() {
            // SAFETY: `from` is open. The dup replaces the child's copy of `next` only; the guest keeps its own.
            check(unsafe { libc::dup3(*from, next, 0) })?;
            next += 1;
        }
        // SAFETY: as above.
        self.report = check(unsafe { libc::dup3(report, next, libc::O_CLOEXEC) })?;
        let first = next + 1;
        // SAFETY: closes descriptors that this process never uses again. Neither nix nor rustix has this call.
        let closed = unsafe { libc::syscall(libc::SYS_close_range, first, libc::c_uint::MAX, 0) };
        check(closed as c_int).map(drop)
    }

    fn exec(&self) -> io::Error {
        let mut refused = None;
        for path in self.paths {
            // SAFETY: both arrays are closed by a null, and all strings outlive the call.
            unsafe {
                libc::execve(
                    path.as_ptr(),
                    self.arguments.as_ptr(),
                    self.variables.as_ptr(),
                );
            }
            let error = io::Error::last_os_error();
            match error.raw_os_error() {
                Some(libc::ENOENT | libc::ENOTDIR) => {}
                Some(libc::EACCES) => refused = Some(error),
                _ => return error,
            }
        }
        refused.unwrap_or_else(|| io::Error::from_raw_os_error(libc::ENOENT))
    }
}

fn check(result: c_int) -> io::Result<c_int> {
    if result < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(result)
    }
}

fn duplicate_above(file: RawFd) -> io::Result<RawFd> {
    // SAFETY: duplicates an open descriptor.
    check(unsafe { libc::fcntl(file, libc::F_DUPFD_CLOEXEC, ABOVE_TARGETS) })
}

/// Makes a pipe whose guest end does not block. The other end blocks, as programs expect.
pub(crate) fn pipe(near: GuestSide) -> io::Result<(OwnedFd, OwnedFd)> {
    let (reader, writer) = pipe2(OFlag::O_CLOEXEC)?;
    let near = match near {
        GuestSide::Reader => &reader,
        GuestSide::Writer => &writer,
    };
    // SAFETY: an open descriptor that this function owns. Each end of a pipe has flags of its own.
    check(unsafe { libc::fcntl(near.as_raw_fd(), libc::F_SETFL, libc::O_NONBLOCK) })?;
    Ok((reader, writer))
}

/// Makes a pipe that user code may open by a path such as `/dev/stdin`.
pub(crate) fn user_pipe(privileges: Privileges, near: GuestSide) -> io::Result<(OwnedFd, OwnedFd)> {
    let (reader, writer) = pipe(near)?;
    privileges.hand_over(&reader)?;
    Ok((reader, writer))
}

/// The end of a pipe that stays with the guest.
#[derive(Clone, Copy, Debug)]
pub(crate) enum GuestSide {
    /// The guest reads.
    Reader,
    /// The guest writes.
    Writer,
}

/// Opens `/dev/null` for reading.
pub(crate) fn null() -> io::Result<OwnedFd> {
    let path = c"/dev/null";
    // SAFETY: the path ends in a zero byte.
    let file = check(unsafe { libc::open(path.as_ptr(), libc::O_RDONLY | libc::O_CLOEXEC) })?;
    // SAFETY: just opened, and without another owner.
    Ok(unsafe { OwnedFd::from_raw_fd(file) })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn environment(pairs: &[(&str, &str)]) -> Environment {
        let mut environment = Environment::default();
        for (name, value) in pairs {
            environment.set(name.as_bytes(), value.as_bytes());
        }
        environment
    }

    #[test]
    fn a_run_s_variables_replace_those_of_the_base_in_place() {
        let base = environment(&[("A", "1"), ("B", "2")]);
        let merged = base.with(&[("A".into(), "3".into()), ("C".into(), "4".into())]);
        let pairs: Vec<_> = merged.iter().collect();
        assert_eq!(
            pairs,
            [
                (&b"A"[..], &b"3"[..]),
                (&b"B"[..], &b"2"[..]),
                (&b"C"[..], &b"4"[..])
            ]
        );
    }

    #[test]
    fn user_code_finds_what_it_installs_behind_the_programs_of_the_system() {
        let base = environment(&[("PATH", "/usr/bin"), ("PIP_BREAK_SYSTEM_PACKAGES", "0")]);
        let user = base.for_user_code();
        let path = String::from_utf8_lossy(user.get(b"PATH").unwrap()).into_owned();
        assert!(path.starts_with("/usr/bin:/sandbox/.local/bin:"), "{path}");
        assert_eq!(user.get(b"PIP_BREAK_SYSTEM_PACKAGES"), Some(&b"0"[..]));
        assert_eq!(base.get(b"PATH"), Some(&b"/usr/bin"[..]));
    }

    #[test]
    fn only_a_python_that_another_program_starts_is_told_not_to_buffer() {
        let plain = environment(&[("PATH", "/usr/bin")]);
        let python = plain.for_others_than(Some(Runtime::Python));
        assert_eq!(python.get(b"PYTHONUNBUFFERED"), None);
        for other in [None, Some(Runtime::Node)] {
            let environment = plain.for_others_than(other);
            assert_eq!(environment.get(b"PYTHONUNBUFFERED"), Some(&b"1"[..]));
        }
    }

    #[test]
    fn a_program_without_a_slash_is_looked_for_in_the_path_of_its_environment() {
        let environment = environment(&[("PATH", "/a::/b")]);
        assert_eq!(
            candidates(b"x", &environment).unwrap(),
            [c"/a/x".into(), c"x".into(), c"/b/x".into()] as [CString; 3]
        );
        assert_eq!(
            candidates(b"./x", &environment).unwrap(),
            [CString::from(c"./x")]
        );
    }
}
