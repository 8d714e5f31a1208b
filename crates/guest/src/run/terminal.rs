//! A run's terminal: the guest's end of a pseudo-terminal, and how a program gets the other.

use std::io;
use std::os::fd::{AsFd as _, AsRawFd as _, BorrowedFd, FromRawFd as _, OwnedFd};
use std::rc::Rc;

use isol8_protocol::{Failure, FailureKind, TerminalSize};
use nix::fcntl::{OFlag, open};
use nix::sys::signal::{Signal, killpg};
use nix::sys::stat::Mode;
use nix::sys::termios::{
    InputFlags, LocalFlags, SetArg, SpecialCharacterIndices, tcgetattr, tcsetattr,
};
use nix::unistd::{Pid, tcgetpgrp};

use crate::failure::{failure, internal, is_exhausted};
use crate::lockdown::Privileges;

/// The device that makes the sandbox's pseudo-terminals.
const MULTIPLEXER: &str = "/dev/ptmx";

/// The type of terminal that a program sees unless a variable names another.
pub(crate) const TERM: (&[u8], &[u8]) = (b"TERM", b"xterm-256color");

/// The terminal of one run.
#[derive(Debug)]
pub(crate) struct Terminal {
    near: Rc<OwnedFd>,
    /// Kept open for as long as the run goes on: a terminal that no process has open is reported as gone by the kernel,
    /// but a program that closed it may open it again.
    far: OwnedFd,
}

impl Terminal {
    /// A new one, which is user code's own.
    pub(crate) fn open(privileges: Privileges, size: TerminalSize) -> Result<Self, Failure> {
        let made = privileges.as_sandbox_user(|| make(size)).and_then(|it| it);
        made.map_err(|error| {
            let none_left = error.raw_os_error() == Some(libc::ENOSPC);
            if none_left || is_exhausted(&error) {
                let text = "no terminal is left in the sandbox, end what holds them";
                return failure(FailureKind::Exhausted, text);
            }
            let text = format!("terminal cannot be opened: {error}");
            failure(FailureKind::Refused, text)
        })
    }

    /// The end that the program reads from and writes to.
    pub(crate) fn far(&self) -> BorrowedFd<'_> {
        self.far.as_fd()
    }

    /// The end from which the program's output is read.
    pub(crate) fn output(&self) -> Rc<OwnedFd> {
        Rc::clone(&self.near)
    }

    /// The end to which the program's input is written.
    pub(crate) fn input(&self) -> Result<OwnedFd, Failure> {
        let input = self.near.try_clone();
        input.map_err(|error| internal("terminal cannot be written to", error))
    }

    /// Changes the size. If the size differs, the kernel signals the foreground processes.
    pub(crate) fn resize(&self, size: TerminalSize) {
        // Cannot fail for a terminal that is open.
        let _ = set_size(&self.near, size);
    }

    /// Tells the program and what is in the foreground that the terminal is gone.
    pub(crate) fn hang_up(&self, program: Pid) {
        let foreground = tcgetpgrp(&self.near).ok().filter(|it| it.as_raw() > 1);
        for group in [Some(program), foreground].into_iter().flatten() {
            // A stopped process has to go on to end.
            for signal in [Signal::SIGHUP, Signal::SIGCONT] {
                let _ = killpg(group, signal);
            }
        }
    }

    /// Sends a signal to the foreground processes, as a key would; one that asks for the end also to
    /// the group of the program itself, which a shell with job control is alone in.
    pub(crate) fn signal(&self, program: Pid, signal: Signal) {
        let foreground = tcgetpgrp(&self.near).ok().filter(|it| it.as_raw() > 1);
        if let Some(group) = foreground {
            let _ = killpg(group, signal);
        }
        if foreground.is_none() || (signal == Signal::SIGTERM && foreground != Some(program)) {
            let _ = killpg(program, signal);
        }
    }
}

/// The bytes that end the input behind `last`. Within a line the first Ctrl-D only hands over the beginning of the
/// line.
pub(crate) fn end_of_input(terminal: BorrowedFd<'_>, last: Option<u8>) -> Vec<u8> {
    let Ok(settings) = tcgetattr(terminal) else {
        return Vec::new();
    };
    let key = settings.control_chars[SpecialCharacterIndices::VEOF as usize];
    let by_lines = settings.local_flags.contains(LocalFlags::ICANON);
    let within_line = by_lines && last.is_some_and(|last| last != b'\n');
    match key {
        // The program has switched it off.
        0 => Vec::new(),
        _ => vec![key; if within_line { 2 } else { 1 }],
    }
}

fn make(size: TerminalSize) -> io::Result<Terminal> {
    let flags = OFlag::O_RDWR | OFlag::O_NOCTTY | OFlag::O_NONBLOCK | OFlag::O_CLOEXEC;
    let near = open(MULTIPLEXER, flags, Mode::empty())?;
    let locked: libc::c_int = 0;
    // SAFETY: an open terminal, and a number that is valid through the call.
    check(unsafe { libc::ioctl(near.as_raw_fd(), libc::TIOCSPTLCK, &raw const locked) })?;
    let flags = libc::O_RDWR | libc::O_NOCTTY | libc::O_CLOEXEC;
    // No path leads there: this is the other end, whatever is mounted at `/dev/pts`.
    // SAFETY: as above; the argument is a number.
    let far = check(unsafe { libc::ioctl(near.as_raw_fd(), libc::TIOCGPTPEER, flags) })?;
    // SAFETY: just opened, and without another owner.
    let far = unsafe { OwnedFd::from_raw_fd(far) };
    let mut settings = tcgetattr(&far)?;
    // A key that erases takes a character, and not a byte of it.
    settings.input_flags |= InputFlags::IUTF8;
    tcsetattr(&far, SetArg::TCSANOW, &settings)?;
    set_size(&far, size)?;
    let near = Rc::new(near);
    Ok(Terminal { near, far })
}

fn set_size(terminal: &OwnedFd, size: TerminalSize) -> io::Result<()> {
    let size = libc::winsize {
        ws_row: size.rows,
        ws_col: size.columns,
        ws_xpixel: 0,
        ws_ypixel: 0,
    };
    // SAFETY: an open terminal, and a structure that is valid through the call.
    check(unsafe { libc::ioctl(terminal.as_raw_fd(), libc::TIOCSWINSZ, &raw const size) }).map(drop)
}

fn check(result: libc::c_int) -> io::Result<libc::c_int> {
    if result < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(result)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use nix::unistd::{read, write};

    fn terminal() -> Terminal {
        let (columns, rows) = (100, 30);
        make(TerminalSize { columns, rows }).unwrap()
    }

    #[test]
    fn what_ends_the_input_depends_on_the_line() {
        let terminal = terminal();
        let near = terminal.near.as_fd();
        assert_eq!(end_of_input(near, None), [4]);
        assert_eq!(end_of_input(near, Some(b'\n')), [4]);
        assert_eq!(end_of_input(near, Some(b'x')), [4, 4]);
        let mut settings = tcgetattr(near).unwrap();
        settings.local_flags.remove(LocalFlags::ICANON);
        tcsetattr(near, SetArg::TCSANOW, &settings).unwrap();
        assert_eq!(end_of_input(near, Some(b'x')), [4]);
    }

    #[test]
    fn a_line_that_is_typed_is_echoed_and_read() {
        let terminal = terminal();
        write(&terminal.near, b"hi\n").unwrap();
        let mut buffer = [0; 16];
        let count = read(terminal.far(), &mut buffer).unwrap();
        assert_eq!(&buffer[..count], b"hi\n");
        let count = read(&terminal.near, &mut buffer).unwrap();
        assert_eq!(&buffer[..count], b"hi\r\n");
    }
}
