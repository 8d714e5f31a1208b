//! Moves the input of a program from the host to the program.

use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};

use isol8_protocol::{Stdin, WINDOW};
use nix::errno::Errno;
use nix::unistd::write;

use super::terminal::end_of_input;
use crate::write_buffer::WriteBuffer;

/// A run's standard input.
#[derive(Debug)]
pub(crate) struct Input {
    pipe: Option<OwnedFd>,
    /// Whether the pipe is a terminal, whose input ends with a key and not with a close.
    is_terminal: bool,
    /// The last byte of the input so far.
    last: Option<u8>,
    /// Set until the pipe exists.
    unattached: bool,
    pending: WriteBuffer,
    /// Whether the program may have read some of the input.
    touched: bool,
    ended: bool,
    /// Bytes that the host may still send.
    window: u32,
}

impl Input {
    /// Returns an input that is empty.
    pub(crate) fn empty() -> Self {
        Self {
            pipe: None,
            is_terminal: false,
            last: None,
            unattached: false,
            pending: WriteBuffer::default(),
            touched: false,
            ended: true,
            window: 0,
        }
    }

    /// Returns the input of a run that has no pipe yet.
    pub(crate) fn unattached(stdin: Stdin) -> Self {
        let (pending, ended, window) = match stdin {
            Stdin::Empty => return Self::empty(),
            Stdin::Bytes(bytes) => (bytes, true, 0),
            Stdin::Piped => (Vec::new(), false, WINDOW),
        };
        Self {
            unattached: true,
            pending: WriteBuffer::new(pending),
            ended,
            window,
            ..Self::empty()
        }
    }

    /// Returns the input of a run at a terminal.
    pub(crate) fn at_terminal(stdin: Stdin, terminal: OwnedFd) -> Self {
        let mut input = Self::unattached(stdin);
        input.last = input.pending.rest().last().copied();
        input.is_terminal = true;
        input.attach(terminal);
        if input.ended {
            input.type_end();
        }
        input
    }

    /// Whether the program may ever get input.
    pub(crate) fn is_wanted(&self) -> bool {
        self.unattached || self.pipe.is_some()
    }

    /// Takes bytes of the host; returns `false` if the host exceeded its credit.
    pub(crate) fn push(&mut self, bytes: &[u8]) -> bool {
        let size = u32::try_from(bytes.len()).unwrap_or(u32::MAX);
        let Some(window) = self.window.checked_sub(size) else {
            return false;
        };
        if self.ended {
            return false;
        }
        self.window = window;
        self.pending.push(bytes);
        self.last = bytes.last().copied().or(self.last);
        true
    }

    /// Marks the end of the input.
    pub(crate) fn end(&mut self) {
        if !self.ended && self.is_terminal {
            self.type_end();
        }
        self.ended = true;
    }

    fn type_end(&mut self) {
        if let Some(terminal) = &self.pipe {
            let keys = end_of_input(terminal.as_fd(), self.last);
            self.pending.push(&keys);
        }
    }

    /// Returns the pipe if there are bytes to write to it.
    pub(crate) fn waits_for(&self) -> Option<BorrowedFd<'_>> {
        let pipe = self.pipe.as_ref().filter(|_| !self.pending.is_empty());
        pipe.map(|pipe| pipe.as_fd())
    }

    /// Whether the program cannot have read any of the input.
    pub(crate) fn is_untouched(&self) -> bool {
        !self.touched && (self.is_wanted() || self.pending.is_empty())
    }

    /// Sets the pipe, to which the input is written from its first byte on.
    pub(crate) fn attach(&mut self, pipe: OwnedFd) {
        self.unattached = false;
        self.pipe = Some(pipe);
    }

    /// Writes as much as the pipe takes now, and closes it after the last byte. Returns the credit in bytes to grant to
    /// the host.
    pub(crate) fn feed(&mut self) -> u32 {
        if self.unattached {
            return 0;
        }
        let mut taken = 0;
        while let Some(pipe) = self.waits_for() {
            match write(pipe, self.pending.rest()) {
                Ok(count) => {
                    taken += count;
                    self.pending.take(count);
                    self.touched = true;
                }
                Err(Errno::EAGAIN) => break,
                Err(Errno::EINTR) => {}
                // The program has closed its input.
                Err(_) => self.pipe = None,
            }
        }
        if self.pipe.is_none() {
            taken += self.pending.rest().len();
            self.pending.clear();
        }
        if self.ended {
            if self.pending.is_empty() {
                self.pipe = None;
            }
            return 0;
        }
        let taken = u32::try_from(taken).unwrap_or(u32::MAX);
        self.window += taken;
        taken
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::process::{GuestSide, pipe};

    fn directed(stdin: Stdin, pipe: OwnedFd) -> Input {
        let mut input = Input::unattached(stdin);
        input.attach(pipe);
        input
    }

    #[test]
    fn credit_is_given_back_as_the_program_reads() {
        let (reader, writer) = pipe(GuestSide::Writer).unwrap();
        let mut input = directed(Stdin::Piped, writer);
        assert!(input.push(&[7; 100_000]));
        let first = input.feed();
        assert!(first > 0 && first < 100_000, "a pipe holds {first}");
        let mut buffer = vec![0; 200_000];
        assert_eq!(read_some(&reader, &mut buffer), first as usize);
        assert_eq!(input.feed(), 100_000 - first);
    }

    fn read_some(reader: &OwnedFd, buffer: &mut [u8]) -> usize {
        nix::unistd::read(reader, buffer).unwrap()
    }

    #[test]
    fn a_program_that_never_catches_up_costs_a_window_at_most() {
        let (reader, writer) = pipe(GuestSide::Writer).unwrap();
        let mut input = directed(Stdin::Piped, writer);
        let mut buffer = vec![0; WINDOW as usize];
        for _ in 0..100 {
            assert!(input.push(&buffer[..input.window as usize]));
            assert!(input.pending.len() <= WINDOW as usize);
            input.feed();
            read_some(&reader, &mut buffer[..4096]);
            input.feed();
        }
        assert!(!input.is_untouched());
    }

    #[test]
    fn more_than_the_window_is_refused() {
        let (_reader, writer) = pipe(GuestSide::Writer).unwrap();
        let mut input = directed(Stdin::Piped, writer);
        assert!(!input.push(&vec![0; WINDOW as usize + 1]));
        assert!(input.push(&[0; 10]));
        assert!(!input.push(&vec![0; WINDOW as usize]));
    }

    #[test]
    fn input_that_is_not_read_is_dropped_and_does_not_stall_the_host() {
        let (reader, writer) = pipe(GuestSide::Writer).unwrap();
        drop(reader);
        let mut input = directed(Stdin::Piped, writer);
        assert!(input.push(&[1; 500]));
        assert_eq!(input.feed(), 500);
        assert!(input.push(&[1; 300]));
        assert_eq!(input.feed(), 300);
    }

    #[test]
    fn known_input_ends_behind_its_last_byte() {
        let (reader, writer) = pipe(GuestSide::Writer).unwrap();
        let mut input = directed(Stdin::Bytes(b"abc".to_vec()), writer);
        assert_eq!(input.feed(), 0);
        let mut buffer = [0; 8];
        assert_eq!(read_some(&reader, &mut buffer), 3);
        assert_eq!(read_some(&reader, &mut buffer), 0, "at its end");
    }
}
