//! The way of a program's output to the host.

use std::io;
use std::os::fd::AsFd as _;
use std::os::fd::{AsRawFd as _, BorrowedFd, OwnedFd};
use std::rc::Rc;

use isol8_protocol::OutputStream;
use nix::errno::Errno;
use nix::unistd::read;

/// Bytes that a terminal may hold that were not read: more than the 12 KiB or so of the kernel's
/// buffers, which it does not tell of.
const TERMINAL_HOLDS: u64 = 64 * 1024;

/// One of a run's two output streams.
///
/// Without credit nothing is read, so the pipe fills and the program waits. Beyond the limit
/// everything is read, counted and dropped, so the program does not wait.
#[derive(Debug)]
pub(crate) struct Pump {
    pub(crate) stream: OutputStream,
    pipe: Option<Rc<OwnedFd>>,
    is_terminal: bool,
    /// Sent before what the pipe has.
    head: Vec<u8>,
    total: u64,
    /// Bytes that will still be sent; `None` for no bound.
    allowance: Option<u64>,
    /// Bytes that the run left in the pipe at its end; `None` before. Later bytes do not belong to it.
    left: Option<u64>,
}

impl Pump {
    /// A pump of a run that has not started.
    pub(crate) fn idle(stream: OutputStream, limit: Option<u64>) -> Self {
        Self {
            stream,
            pipe: None,
            is_terminal: false,
            head: Vec::new(),
            total: 0,
            allowance: limit,
            left: None,
        }
    }

    pub(crate) fn attach(&mut self, pipe: Rc<OwnedFd>) {
        self.pipe = Some(pipe);
    }

    pub(crate) fn attach_terminal(&mut self, terminal: Rc<OwnedFd>) {
        self.is_terminal = true;
        self.pipe = Some(terminal);
    }

    /// Sends these bytes before what is read.
    pub(crate) fn begin_with(&mut self, head: Vec<u8>) {
        self.head = head;
    }

    pub(crate) fn has_head(&self) -> bool {
        !self.head.is_empty()
    }

    /// Bytes written so far.
    pub(crate) fn total(&self) -> u64 {
        self.total
    }

    /// Whether nothing was written so far.
    pub(crate) fn is_silent(&self) -> bool {
        self.total == 0 && self.unread() == 0
    }

    fn unread(&self) -> u64 {
        let mut count: libc::c_int = 0;
        if let Some(pipe) = &self.pipe {
            // SAFETY: the pipe is open, and the result is valid through the call. If it fails, the pipe is taken to be
            // empty.
            unsafe { libc::ioctl(pipe.as_raw_fd(), libc::FIONREAD, &raw mut count) };
        }
        u64::try_from(count).unwrap_or_default()
    }

    /// From here on nothing is sent.
    pub(crate) fn discard(&mut self) {
        self.allowance = Some(0);
    }

    fn is_dropping(&self) -> bool {
        self.allowance == Some(0)
    }

    /// Whether there is credit for reading on, or none is needed.
    pub(crate) fn may_read(&self, credit: u64) -> bool {
        credit > 0 || self.is_dropping()
    }

    pub(crate) fn pipe(&self) -> Option<BorrowedFd<'_>> {
        self.pipe.as_ref().map(|pipe| pipe.as_fd())
    }

    /// Notes that the run has ended: the bytes in the pipe now are the rest of its output. Another process may write to
    /// the pipe forever, so waiting until it is empty would not do. A terminal is empty once a read says so, or has
    /// given as much as one can hold.
    pub(crate) fn mark_end(&mut self) {
        if self.left.is_none() {
            let is_terminal = self.is_terminal;
            self.left = Some(if is_terminal {
                TERMINAL_HOLDS
            } else {
                self.unread()
            });
        }
    }

    /// Whether all that the ended run wrote was taken.
    pub(crate) fn is_drained(&self) -> bool {
        self.head.is_empty() && (self.pipe.is_none() || self.left == Some(0))
    }

    /// Reads once. Returns the bytes to send, `None` if there is nothing to read now.
    pub(crate) fn read<'a>(&mut self, credit: &mut u64, buffer: &'a mut [u8]) -> Option<&'a [u8]> {
        if !self.head.is_empty() {
            return self.read_head(credit, buffer);
        }
        let pipe = self.pipe.as_ref()?;
        let mut room = buffer.len() as u64;
        if !self.is_dropping() {
            room = room.min(*credit);
        }
        let room = room.min(self.left.unwrap_or(u64::MAX)) as usize;
        if room == 0 {
            // Reading nothing would look like the end.
            return None;
        }
        let count = match read(pipe, &mut buffer[..room]) {
            Ok(0) => {
                self.pipe = None;
                return None;
            }
            Ok(count) => count as u64,
            Err(Errno::EAGAIN) => {
                self.left = self.left.map(|_| 0);
                return None;
            }
            Err(Errno::EINTR) => return Some(&[]),
            Err(_) => {
                self.pipe = None;
                return None;
            }
        };
        self.left = self.left.map(|left| left.saturating_sub(count));
        let sent = self.account(count, credit);
        Some(&buffer[..sent as usize])
    }

    /// Counts bytes of the program. Returns how many of them are to be sent.
    fn account(&mut self, count: u64, credit: &mut u64) -> u64 {
        self.total += count;
        let sent = count.min(self.allowance.unwrap_or(u64::MAX));
        self.allowance = self.allowance.map(|allowance| allowance - sent);
        *credit -= sent;
        sent
    }

    fn read_head<'a>(&mut self, credit: &mut u64, buffer: &'a mut [u8]) -> Option<&'a [u8]> {
        let mut room = buffer.len();
        if !self.is_dropping() {
            room = room.min(usize::try_from(*credit).unwrap_or(usize::MAX));
        }
        let count = room.min(self.head.len());
        if count == 0 {
            return None;
        }
        for (place, byte) in buffer.iter_mut().zip(self.head.drain(..count)) {
            *place = byte;
        }
        let sent = self.account(count as u64, credit);
        Some(&buffer[..sent as usize])
    }

    /// Gives the pipe away.
    pub(crate) fn detach(&mut self) -> Option<Rc<OwnedFd>> {
        self.pipe.take()
    }
}

/// Reads and forgets. Returns whether the pipe is still open.
pub(crate) fn drop_output(pipe: BorrowedFd<'_>, buffer: &mut [u8]) -> bool {
    read_piece(pipe, buffer).is_some()
}

/// Reads what is there now, which may be nothing; `None` where the pipe is closed.
pub(crate) fn read_piece<'a>(pipe: BorrowedFd<'_>, buffer: &'a mut [u8]) -> Option<&'a [u8]> {
    match read(pipe, buffer) {
        Ok(0) => None,
        Ok(count) => Some(&buffer[..count]),
        Err(Errno::EAGAIN | Errno::EINTR) => Some(&[]),
        Err(error) if io::Error::from(error).kind() == io::ErrorKind::Interrupted => Some(&[]),
        Err(_) => None,
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use super::*;
    use crate::process::{Near, pipe};

    fn pump(limit: Option<u64>) -> (Pump, std::fs::File) {
        let (reader, writer) = pipe(Near::Reader).unwrap();
        let mut pump = Pump::idle(OutputStream::Stdout, limit);
        pump.attach(Rc::new(reader));
        (pump, writer.into())
    }

    #[test]
    fn the_limit_cuts_what_is_sent_and_not_what_is_counted() {
        let (mut pump, mut writer) = pump(Some(5));
        writer.write_all(b"0123456789").unwrap();
        let (mut credit, mut buffer) = (100, [0; 64]);
        assert_eq!(pump.read(&mut credit, &mut buffer), Some(&b"01234"[..]));
        assert_eq!((pump.total(), credit), (10, 95));
        writer.write_all(b"more").unwrap();
        assert_eq!(pump.read(&mut credit, &mut buffer), Some(&b""[..]));
        assert_eq!((pump.total(), credit), (14, 95));
    }

    #[test]
    fn no_more_is_read_than_there_is_credit_for() {
        let (mut pump, mut writer) = pump(None);
        writer.write_all(b"0123456789").unwrap();
        let (mut credit, mut buffer) = (4, [0; 64]);
        assert_eq!(pump.read(&mut credit, &mut buffer), Some(&b"0123"[..]));
        assert!(!pump.may_read(credit));
    }

    #[test]
    fn what_was_written_ends_the_silence_read_or_not() {
        let (mut pump, mut writer) = pump(None);
        assert!(pump.is_silent());
        writer.write_all(b"x").unwrap();
        assert!(!pump.is_silent());
        pump.read(&mut 100, &mut [0; 64]);
        assert!(!pump.is_silent());
    }

    #[test]
    fn a_head_is_sent_first_within_credit_and_limit() {
        let (mut pump, mut writer) = pump(Some(8));
        pump.begin_with(b"late\n".to_vec());
        writer.write_all(b"cell").unwrap();
        let (mut credit, mut buffer) = (3, [0; 64]);
        assert_eq!(pump.read(&mut credit, &mut buffer), Some(&b"lat"[..]));
        assert_eq!(pump.read(&mut credit, &mut buffer), None);
        pump.mark_end();
        credit = 100;
        assert_eq!(pump.read(&mut credit, &mut buffer), Some(&b"e\n"[..]));
        assert!(!pump.is_drained());
        assert_eq!(pump.read(&mut credit, &mut buffer), Some(&b"cel"[..]));
        assert!(pump.is_drained());
        assert_eq!(pump.total(), 9);
    }

    #[test]
    fn what_others_write_after_the_end_is_not_the_run_s() {
        let (mut pump, mut writer) = pump(None);
        writer.write_all(b"mine").unwrap();
        pump.mark_end();
        writer.write_all(b"theirs").unwrap();
        let (mut credit, mut buffer) = (100, [0; 64]);
        assert_eq!(pump.read(&mut credit, &mut buffer), Some(&b"mine"[..]));
        assert!(pump.is_drained());
    }
}
