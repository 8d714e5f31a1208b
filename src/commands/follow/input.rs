//! The user's input to a run: standard input, signals and the terminal's size.

use std::io::{self, IsTerminal as _, Read as _};
use std::thread;

use isol8_actors::{Input, Signal, TerminalSize};
use rustix::process::getpgrp;
use rustix::termios::tcgetpgrp;
use tokio::sync::{mpsc, watch};

/// Size of one read of standard input, in bytes.
const CHUNK_SIZE: usize = 16 * 1024;

/// The sending end of a run's input. Input that arrives after the run's end is dropped.
#[derive(Debug)]
pub(in crate::commands) struct UserInput {
    stdin: Option<mpsc::Sender<Vec<u8>>>,
    signals: mpsc::Sender<Signal>,
    /// Size of the run's terminal, if it has one. Only the last size counts.
    size: Option<watch::Sender<TerminalSize>>,
}

impl UserInput {
    /// Returns both ends of the channel. Standard input ends at once, unless [`Self::forward_stdin`] is called.
    pub(in crate::commands) fn new(terminal: Option<TerminalSize>) -> (Self, Input) {
        let (sender, input) = Input::channel(terminal);
        let user_input = Self {
            stdin: Some(sender.stdin),
            signals: sender.signals,
            size: sender.size,
        };
        (user_input, input)
    }

    /// Forwards this process's standard input to the program if `is_forwarded`, or closes the program's.
    pub(in crate::commands) fn forward_stdin(&mut self, is_forwarded: bool) -> io::Result<()> {
        let Some(sender) = self.stdin.take() else {
            return Ok(());
        };
        if is_forwarded {
            // Do not join this thread: without input it blocks until the process ends.
            let read = thread::Builder::new().name("stdin".to_owned());
            read.spawn(move || read_stdin(&sender))?;
        }
        Ok(())
    }

    /// Sends a signal to the program.
    pub(super) fn signal(&self, signal: Signal) {
        // Ignore a full queue: the signals in it already tell the program the same.
        let _ = self.signals.try_send(signal);
    }

    /// Returns whether the run has a terminal.
    pub(super) fn is_at_terminal(&self) -> bool {
        self.size.is_some()
    }

    /// Reports the terminal's new size.
    pub(super) fn resize(&self, size: TerminalSize) {
        if let Some(sender) = &self.size {
            sender.send_replace(size);
        }
    }
}

fn read_stdin(to: &mpsc::Sender<Vec<u8>>) {
    let mut piece = vec![0; CHUNK_SIZE];
    loop {
        match io::stdin().lock().read(&mut piece) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Ok(count) if count > 0 => {
                if to.blocking_send(piece[..count].to_vec()).is_err() {
                    return;
                }
            }
            Ok(_) | Err(_) => return,
        }
    }
}

/// Returns whether standard input is meant for the program: it is not a terminal, or this command runs in the
/// foreground. A background command that reads from its terminal would be stopped.
pub(in crate::commands) fn is_stdin_for_program() -> bool {
    let stdin = io::stdin();
    !stdin.is_terminal() || tcgetpgrp(&stdin).is_ok_and(|foreground| foreground == getpgrp())
}
