//! The way of a program's input from the host to the program.

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
    /// The pipe is a terminal, whose input has no end but the key for it.
    is_terminal: bool,
    /// The last byte that was sent.
    last: Option<u8>,
    /// Set while there is no pipe.
    parked: bool,
    pending: WriteBuffer,
    /// The program may have read some.
    touched: bool,
    ended: bool,
    /// Bytes that the host may still send.
    window: u32,
}

impl Input {
    /// Nothing to read.
    pub(crate) fn empty() -> Self {
        Self {
            pipe: None,
            is_terminal: false,
            last: None,
            parked: false,
            pending: WriteBuffer::default(),
            touched: false,
            ended: true,
            window: 0,
        }
    }

    /// The input of a run, before there is a pipe for it.
    pub(crate) fn parked(stdin: Stdin) -> Self {
        let (pending, ended, window) = match stdin {
            Stdin::Empty => return Self::empty(),
            Stdin::Bytes(bytes) => (bytes, true, 0),
            Stdin::Piped => (Vec::new(), false, WINDOW),
        };
        Self {
            parked: true,
            pending: WriteBuffer::new(pending),
            ended,
            window,
            ..Self::empty()
        }
    }

    /// The input that is typed at a terminal.
    pub(crate) fn typed(stdin: Stdin, terminal: OwnedFd) -> Self {
        let mut input = Self::parked(stdin);
        input.last = input.pending.rest().last().copied();
        input.is_terminal = true;
        input.direct(terminal);
        if input.ended {
            input.type_end();
        }
        input
    }

    /// Whether there may ever be something to read.
    pub(crate) fn is_wanted(&self) -> bool {
        self.parked || self.pipe.is_some()
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

    /// There will be no more.
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

    /// The pipe, if there are bytes to write to it.
    pub(crate) fn waits_for(&self) -> Option<BorrowedFd<'_>> {
        let pipe = self.pipe.as_ref().filter(|_| !self.pending.is_empty());
        pipe.map(|pipe| pipe.as_fd())
    }

    /// Whether the program cannot have read any of it.
    pub(crate) fn is_untouched(&self) -> bool {
        !self.touched && (self.is_wanted() || self.pending.is_empty())
    }

    /// Puts what it has into a pipe, from the start.
    pub(crate) fn direct(&mut self, pipe: OwnedFd) {
        self.parked = false;
        self.pipe = Some(pipe);
    }

    /// Writes as much as the program takes now, and closes the pipe behind the last byte. Returns
    /// the bytes that the host may send again.
    pub(crate) fn feed(&mut self) -> u32 {
        if self.parked {
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
    use crate::process::{Near, pipe};

    fn directed(stdin: Stdin, pipe: OwnedFd) -> Input {
        let mut input = Input::parked(stdin);
        input.direct(pipe);
        input
    }

    #[test]
    fn credit_is_given_back_as_the_program_reads() {
        let (reader, writer) = pipe(Near::Writer).unwrap();
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
        let (reader, writer) = pipe(Near::Writer).unwrap();
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
        let (_reader, writer) = pipe(Near::Writer).unwrap();
        let mut input = directed(Stdin::Piped, writer);
        assert!(!input.push(&vec![0; WINDOW as usize + 1]));
        assert!(input.push(&[0; 10]));
        assert!(!input.push(&vec![0; WINDOW as usize]));
    }

    #[test]
    fn what_nobody_reads_is_dropped_and_does_not_stall_the_host() {
        let (reader, writer) = pipe(Near::Writer).unwrap();
        drop(reader);
        let mut input = directed(Stdin::Piped, writer);
        assert!(input.push(&[1; 500]));
        assert_eq!(input.feed(), 500);
        assert!(input.push(&[1; 300]));
        assert_eq!(input.feed(), 300);
    }

    #[test]
    fn known_input_ends_behind_its_last_byte() {
        let (reader, writer) = pipe(Near::Writer).unwrap();
        let mut input = directed(Stdin::Bytes(b"abc".to_vec()), writer);
        assert_eq!(input.feed(), 0);
        let mut buffer = [0; 8];
        assert_eq!(read_some(&reader, &mut buffer), 3);
        assert_eq!(read_some(&reader, &mut buffer), 0, "at its end");
    }
}
