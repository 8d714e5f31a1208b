//! Signals to this process, and what they mean to a run.

use std::io;

use isol8_actors::Signal as ToProgram;
use tokio::signal::unix::{Signal, SignalKind, signal};

use super::hand::Hand;
use crate::commands::terminal;

/// Why a run was ended before its program was.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::commands) enum Stop {
    /// Ctrl-C, for the second time.
    Interrupted,
    /// SIGTERM.
    Terminated,
    /// SIGQUIT.
    Quit,
    /// The terminal is gone.
    HungUp,
    /// Nobody reads the output any more.
    ReaderGone,
}

impl Stop {
    /// What a shell reports of a program that the signal ended.
    pub(in crate::commands) fn exit_code(self) -> u8 {
        match self {
            Self::HungUp => 129,
            Self::Interrupted => 130,
            Self::Quit => 131,
            Self::ReaderGone => 141,
            Self::Terminated => 143,
        }
    }
}

/// The signals that would end this process, and that of its terminal's size. From its making on they do
/// nothing else.
#[derive(Debug)]
pub(in crate::commands) struct Signals {
    interrupt: Signal,
    terminate: Signal,
    quit: Signal,
    hang_up: Signal,
    resize: Signal,
}

impl Signals {
    /// Begins to listen.
    pub(in crate::commands) fn new() -> io::Result<Self> {
        Ok(Self {
            interrupt: signal(SignalKind::interrupt())?,
            terminate: signal(SignalKind::terminate())?,
            quit: signal(SignalKind::quit())?,
            hang_up: signal(SignalKind::hangup())?,
            resize: signal(SignalKind::window_change())?,
        })
    }

    /// Done at the first signal that is to end the command; for what comes before a run, or after it.
    pub(in crate::commands) async fn stop(&mut self) -> Stop {
        tokio::select! {
            _ = self.interrupt.recv() => Stop::Interrupted,
            _ = self.terminate.recv() => Stop::Terminated,
            _ = self.quit.recv() => Stop::Quit,
            _ = self.hang_up.recv() => Stop::HungUp,
        }
    }

    /// Passes on what is the program's, until it is time to end the run.
    pub(super) async fn pass_on(&mut self, hand: &Hand) -> Stop {
        let mut interrupted = false;
        loop {
            tokio::select! {
                _ = self.interrupt.recv() => {
                    if interrupted {
                        return Stop::Interrupted;
                    }
                    interrupted = true;
                    hand.signal(ToProgram::Interrupt);
                }
                _ = self.terminate.recv() => return Stop::Terminated,
                _ = self.quit.recv() => return Stop::Quit,
                _ = self.hang_up.recv() => return Stop::HungUp,
                _ = self.resize.recv(), if hand.is_at_terminal() => {
                    if let Some(size) = terminal::size() {
                        hand.resize(size);
                    }
                }
            }
        }
    }
}
