//! What the user does to a run, on the way there.

use std::io::{self, IsTerminal as _, Read as _};
use std::thread;

use isol8_actors::{Input, Signal, TerminalSize};
use rustix::process::getpgrp;
use rustix::termios::tcgetpgrp;
use tokio::sync::{mpsc, watch};

/// Most bytes of standard input that are read at once.
const PIECE: usize = 16 * 1024;

/// The user's end of a run. What comes too late for it is dropped.
#[derive(Debug)]
pub(in crate::commands) struct Hand {
    stdin: Option<mpsc::Sender<Vec<u8>>>,
    signals: mpsc::Sender<Signal>,
    /// Of a run at a terminal. Only the last size counts.
    size: Option<watch::Sender<TerminalSize>>,
}

impl Hand {
    /// Both ends. Standard input ends at once, unless [`Self::type_stdin`] is called.
    pub(in crate::commands) fn new(terminal: Option<TerminalSize>) -> (Self, Input) {
        let (sender, input) = Input::channel(terminal);
        let hand = Self {
            stdin: Some(sender.stdin),
            signals: sender.signals,
            size: sender.size,
        };
        (hand, input)
    }

    /// Has the program read this process's standard input, or nothing.
    pub(in crate::commands) fn type_stdin(&mut self, whether: bool) -> io::Result<()> {
        let Some(sender) = self.stdin.take() else {
            return Ok(());
        };
        if whether {
            // Nobody waits for this thread: it ends with the process where there is nothing to read.
            let read = thread::Builder::new().name("stdin".to_owned());
            read.spawn(move || read_stdin(&sender))?;
        }
        Ok(())
    }

    /// Sends a signal to the program.
    pub(super) fn signal(&self, signal: Signal) {
        // So many that wait already say as much.
        let _ = self.signals.try_send(signal);
    }

    /// Whether the run is at a terminal.
    pub(super) fn is_at_terminal(&self) -> bool {
        self.size.is_some()
    }

    /// Tells of the terminal's new size.
    pub(super) fn resize(&self, size: TerminalSize) {
        if let Some(sender) = &self.size {
            sender.send_replace(size);
        }
    }
}

fn read_stdin(to: &mpsc::Sender<Vec<u8>>) {
    let mut piece = vec![0; PIECE];
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

/// Whether there is somebody, or something, whose input a program is to have. A command in the
/// background would be stopped if it read from its terminal.
pub(in crate::commands) fn is_stdin_for_the_program() -> bool {
    let stdin = io::stdin();
    !stdin.is_terminal() || tcgetpgrp(&stdin).is_ok_and(|foreground| foreground == getpgrp())
}
