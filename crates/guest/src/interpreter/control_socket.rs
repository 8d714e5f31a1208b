//! The control socket of an interpreter: short lines of text, in both directions.
//!
//! Messages of an interpreter are hostile once it has run user code. A line counts if it is short and of a known form;
//! any other line is ignored. The worst that a message can do is to end the sender's own run.

use std::io;
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};

use isol8_protocol::ExitStatus;
use nix::errno::Errno;
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::sys::socket::{AddressFamily, SockFlag, SockType, socketpair};
use nix::unistd::{Pid, read, write};

/// Longest line, in bytes.
const MAX_LINE: usize = 256;

/// Highest number of ignored lines of one interpreter before other descriptors are served.
const MAX_LINES_AT_ONCE: u32 = 64;

/// A message of an interpreter.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum InterpreterMessage {
    /// The interpreter is booted and waits; with its process id, if it sends that.
    Ready(Option<Pid>),
    /// The script starts.
    ScriptStarted,
    /// The script's working directory cannot be entered.
    NoDirectory,
    /// The script has ended with this code, and all of its output was written.
    ScriptEnded(i32),
    /// The script has ended with this code, if it has written nothing to standard error. If it has, the code may be
    /// another, and more output may follow.
    ScriptEndedIfQuiet(i32),
    /// The code of the cell with this number is about to be executed.
    CellStarted(u64),
    /// The cell with this number has ended.
    CellEnded(u64, CellEnd),
}

/// The end of a cell, as the interpreter reports it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum CellEnd {
    /// The cell ended with this status.
    Ended(ExitStatus),
    /// The cell was not started, because its working directory cannot be entered.
    NoDirectory,
}

/// The guest's end of the control socket.
#[derive(Debug)]
pub(crate) struct ControlSocket {
    socket: OwnedFd,
    received: Vec<u8>,
}

impl ControlSocket {
    /// Makes the guest's end, and the interpreter's end, which blocks.
    pub(crate) fn pair() -> io::Result<(Self, OwnedFd)> {
        let family = AddressFamily::Unix;
        let (socket, far) = socketpair(family, SockType::Stream, None, SockFlag::SOCK_CLOEXEC)?;
        fcntl(&socket, FcntlArg::F_SETFL(OFlag::O_NONBLOCK))?;
        let near = Self {
            socket,
            received: Vec::new(),
        };
        Ok((near, far))
    }

    pub(crate) fn readable(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }

    /// Sends a line. Only one request is in progress at a time, so the socket has room for it, unless the interpreter
    /// does not read.
    pub(crate) fn send(&self, line: &str) -> io::Result<()> {
        if write(&self.socket, line.as_bytes())? == line.len() {
            Ok(())
        } else {
            Err(io::ErrorKind::WouldBlock.into())
        }
    }

    /// Returns the next message, if one was received. The error means that the interpreter has closed its end.
    pub(crate) fn next(&mut self) -> io::Result<Option<InterpreterMessage>> {
        let mut passed_over = 0;
        loop {
            while let Some(end) = self.received.iter().position(|byte| *byte == b'\n') {
                let line: Vec<u8> = self.received.drain(..=end).collect();
                if let Some(message) = parse(&line[..end]) {
                    return Ok(Some(message));
                }
                passed_over += 1;
            }
            if passed_over >= MAX_LINES_AT_ONCE {
                return Ok(None);
            }
            if self.received.len() > MAX_LINE {
                // The line is too long to be a message. A byte of it is kept, so that the rest of the line is no
                // message either.
                self.received.truncate(1);
                passed_over += 1;
            }
            let mut piece = [0; MAX_LINE];
            match read(&self.socket, &mut piece) {
                Ok(0) => return Err(Errno::EPIPE.into()),
                Ok(size) => self.received.extend_from_slice(&piece[..size]),
                Err(Errno::EAGAIN) => return Ok(None),
                Err(Errno::EINTR) => {}
                Err(error) => return Err(error.into()),
            }
        }
    }
}

fn parse(line: &[u8]) -> Option<InterpreterMessage> {
    let words: Vec<&str> = std::str::from_utf8(line).ok()?.split(' ').collect();
    let message = match words[..] {
        ["ready"] => InterpreterMessage::Ready(None),
        ["ready", pid] => InterpreterMessage::Ready(Some(Pid::from_raw(
            pid.parse().ok().filter(|pid| *pid > 1)?,
        ))),
        ["started"] => InterpreterMessage::ScriptStarted,
        ["directory"] => InterpreterMessage::NoDirectory,
        ["ended", code] => InterpreterMessage::ScriptEnded(code.parse::<i32>().ok()? & 0xff),
        ["ended", code, "quiet"] => {
            InterpreterMessage::ScriptEndedIfQuiet(code.parse::<i32>().ok()? & 0xff)
        }
        ["begun", number] => InterpreterMessage::CellStarted(number.parse().ok()?),
        ["cell", number, ref end @ ..] => {
            InterpreterMessage::CellEnded(number.parse().ok()?, parse_end(end)?)
        }
        _ => return None,
    };
    Some(message)
}

fn parse_end(words: &[&str]) -> Option<CellEnd> {
    let value: Option<i32> = words.get(1).and_then(|value| value.parse().ok());
    match (words.first(), value) {
        (Some(&"code"), Some(code)) => Some(CellEnd::Ended(ExitStatus::Code(code & 0xff))),
        (Some(&"signal"), Some(signal)) if (1..=64).contains(&signal) => {
            Some(CellEnd::Ended(ExitStatus::Signal(signal)))
        }
        (Some(&"directory"), _) => Some(CellEnd::NoDirectory),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_read_however_they_are_cut() {
        let (mut socket, far) = ControlSocket::pair().unwrap();
        let say = |bytes: &[u8]| write(&far, bytes).unwrap();
        say(b"ready 7\nbeg");
        assert_eq!(
            socket.next().unwrap(),
            Some(InterpreterMessage::Ready(Some(Pid::from_raw(7))))
        );
        assert_eq!(socket.next().unwrap(), None);
        say(b"un 3\ncell 3 code 256\ncell 3 signal 2\n");
        assert_eq!(
            socket.next().unwrap(),
            Some(InterpreterMessage::CellStarted(3))
        );
        let end = CellEnd::Ended(ExitStatus::Code(0));
        assert_eq!(
            socket.next().unwrap(),
            Some(InterpreterMessage::CellEnded(3, end))
        );
        let end = CellEnd::Ended(ExitStatus::Signal(2));
        assert_eq!(
            socket.next().unwrap(),
            Some(InterpreterMessage::CellEnded(3, end))
        );
        drop(far);
        assert!(socket.next().is_err());
    }

    #[test]
    fn what_is_no_message_is_passed_over() {
        let (mut socket, far) = ControlSocket::pair().unwrap();
        let noise =
            b"\nready x\nready 1\nready -1\ncell 1\ncell 1 signal 70\n\xff\nended\nstarted\n";
        write(&far, noise).unwrap();
        assert_eq!(
            socket.next().unwrap(),
            Some(InterpreterMessage::ScriptStarted)
        );
    }

    #[test]
    fn a_flood_without_an_end_takes_no_memory_and_no_other_s_turn() {
        let (mut socket, far) = ControlSocket::pair().unwrap();
        write(&far, &[b'x'; 100_000]).unwrap();
        assert_eq!(socket.next().unwrap(), None);
        assert!(socket.received.len() <= 2 * MAX_LINE);
        write(&far, b"\nstarted\n").unwrap();
        let mut next = || (0..100).find_map(|_| socket.next().unwrap());
        assert_eq!(next(), Some(InterpreterMessage::ScriptStarted));
    }
}
