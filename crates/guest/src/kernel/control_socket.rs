//! The control descriptor of a kernel: short lines of text, in both directions.
//!
//! Messages of an interpreter are hostile once it has run user code. A line counts if it is short and of a known form;
//! anything else is passed over, and can do no more than end the sender's own run.

use std::io;
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};

use isol8_protocol::ExitStatus;
use nix::errno::Errno;
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::sys::socket::{AddressFamily, SockFlag, SockType, socketpair};
use nix::unistd::{Pid, read, write};

/// Longest line, in bytes.
const MAX_LINE: usize = 256;

/// Lines of one kernel that are looked at before others get their turn.
const LINES_AT_ONCE: u32 = 64;

/// A message of an interpreter.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Message {
    /// The interpreter is booted and waits; its process, if it says so.
    Ready(Option<Pid>),
    /// The script begins.
    Started,
    /// The script's working directory cannot be entered.
    NoDirectory,
    /// The script has ended with this code, and all that it printed was written.
    Ended(i32),
    /// The same, unless it has written to standard error: then the code may be another, and more
    /// may follow.
    EndedIfQuiet(i32),
    /// Code of the cell of this number is about to be executed.
    Begun(u64),
    /// The cell of this number has ended.
    Cell(u64, CellEnd),
}

/// How a cell ended, as the kernel tells it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum CellEnd {
    /// With this status.
    Ended(ExitStatus),
    /// Not started: its working directory cannot be entered.
    NoDirectory,
}

/// The guest's end.
#[derive(Debug)]
pub(crate) struct ControlSocket {
    socket: OwnedFd,
    received: Vec<u8>,
}

impl ControlSocket {
    /// A line, and the kernel's end of it, which blocks.
    pub(crate) fn pair() -> io::Result<(Self, OwnedFd)> {
        let family = AddressFamily::Unix;
        let (socket, far) = socketpair(family, SockType::Stream, None, SockFlag::SOCK_CLOEXEC)?;
        fcntl(&socket, FcntlArg::F_SETFL(OFlag::O_NONBLOCK))?;
        let line = Self {
            socket,
            received: Vec::new(),
        };
        Ok((line, far))
    }

    pub(crate) fn readable(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }

    /// Sends a line. A single request is under way at a time, so there is room for it; an interpreter without room does
    /// not work.
    pub(crate) fn send(&self, line: &str) -> io::Result<()> {
        if write(&self.socket, line.as_bytes())? == line.len() {
            Ok(())
        } else {
            Err(io::ErrorKind::WouldBlock.into())
        }
    }

    /// The next message, if it is there. An error says that the kernel let go of its end.
    pub(crate) fn next(&mut self) -> io::Result<Option<Message>> {
        let mut passed_over = 0;
        loop {
            while let Some(end) = self.received.iter().position(|byte| *byte == b'\n') {
                let line: Vec<u8> = self.received.drain(..=end).collect();
                if let Some(message) = parse(&line[..end]) {
                    return Ok(Some(message));
                }
                passed_over += 1;
            }
            if passed_over >= LINES_AT_ONCE {
                return Ok(None);
            }
            if self.received.len() > MAX_LINE {
                // Too long to be a message, and so is what follows up to the line's end.
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

fn parse(line: &[u8]) -> Option<Message> {
    let words: Vec<&str> = std::str::from_utf8(line).ok()?.split(' ').collect();
    let message = match words[..] {
        ["ready"] => Message::Ready(None),
        ["ready", pid] => Message::Ready(Some(Pid::from_raw(
            pid.parse().ok().filter(|pid| *pid > 1)?,
        ))),
        ["started"] => Message::Started,
        ["directory"] => Message::NoDirectory,
        ["ended", code] => Message::Ended(code.parse::<i32>().ok()? & 0xff),
        ["ended", code, "quiet"] => Message::EndedIfQuiet(code.parse::<i32>().ok()? & 0xff),
        ["begun", number] => Message::Begun(number.parse().ok()?),
        ["cell", number, ref end @ ..] => Message::Cell(number.parse().ok()?, parse_end(end)?),
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
        let (mut line, far) = ControlSocket::pair().unwrap();
        let say = |bytes: &[u8]| write(&far, bytes).unwrap();
        say(b"ready 7\nbeg");
        assert_eq!(
            line.next().unwrap(),
            Some(Message::Ready(Some(Pid::from_raw(7))))
        );
        assert_eq!(line.next().unwrap(), None);
        say(b"un 3\ncell 3 code 256\ncell 3 signal 2\n");
        assert_eq!(line.next().unwrap(), Some(Message::Begun(3)));
        let end = CellEnd::Ended(ExitStatus::Code(0));
        assert_eq!(line.next().unwrap(), Some(Message::Cell(3, end)));
        let end = CellEnd::Ended(ExitStatus::Signal(2));
        assert_eq!(line.next().unwrap(), Some(Message::Cell(3, end)));
        drop(far);
        assert!(line.next().is_err());
    }

    #[test]
    fn what_is_no_message_is_passed_over() {
        let (mut line, far) = ControlSocket::pair().unwrap();
        let noise =
            b"\nready x\nready 1\nready -1\ncell 1\ncell 1 signal 70\n\xff\nended\nstarted\n";
        write(&far, noise).unwrap();
        assert_eq!(line.next().unwrap(), Some(Message::Started));
    }

    #[test]
    fn a_flood_without_an_end_takes_no_memory_and_no_other_s_turn() {
        let (mut line, far) = ControlSocket::pair().unwrap();
        write(&far, &[b'x'; 100_000]).unwrap();
        assert_eq!(line.next().unwrap(), None);
        assert!(line.received.len() <= 2 * MAX_LINE);
        write(&far, b"\nstarted\n").unwrap();
        let mut next = || (0..100).find_map(|_| line.next().unwrap());
        assert_eq!(next(), Some(Message::Started));
    }
}
