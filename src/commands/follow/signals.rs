//! Signals to this process, and their effect on a run.

use std::io;

use isol8_actors::Signal as ToProgram;
use tokio::signal::unix::{Signal, SignalKind, signal};

use super::input::UserInput;
use crate::commands::terminal;

/// Why a run was ended before its program.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::commands) enum StopReason {
    /// The second Ctrl-C.
    Interrupted,
    /// SIGTERM.
    Terminated,
    /// SIGQUIT.
    Quit,
    /// The terminal is gone.
    HungUp,
    /// Standard output has no reader any more.
    ReaderGone,
}

impl StopReason {
    /// Returns the exit code that a shell reports for a program ended by the signal.
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

/// The signals that would end this process, and the signal for a new terminal size. Once this value exists, they
/// have no other effect.
#[derive(Debug)]
pub(in crate::commands) struct Signals {
    interrupt: Signal,
    terminate: Signal,
    quit: Signal,
    hang_up: Signal,
    resize: Signal,
}

impl Signals {
    /// Starts to listen for the signals.
    pub(in crate::commands) fn new() -> io::Result<Self> {
        Ok(Self {
            interrupt: signal(SignalKind::interrupt())?,
            terminate: signal(SignalKind::terminate())?,
            quit: signal(SignalKind::quit())?,
            hang_up: signal(SignalKind::hangup())?,
            resize: signal(SignalKind::window_change())?,
        })
    }

    /// Completes at the first signal that ends the command; used before and after a run.
    pub(in crate::commands) async fn stop(&mut self) -> StopReason {
        tokio::select! {
            _ = self.interrupt.recv() => StopReason::Interrupted,
            _ = self.terminate.recv() => StopReason::Terminated,
            _ = self.quit.recv() => StopReason::Quit,
            _ = self.hang_up.recv() => StopReason::HungUp,
        }
    }

    /// Passes signals on to the program, and returns when the run must end.
    pub(super) async fn pass_on(&mut self, user_input: &UserInput) -> StopReason {
        let mut interrupted = false;
        loop {
            tokio::select! {
                _ = self.interrupt.recv() => {
                    if interrupted {
                        return StopReason::Interrupted;
                    }
                    interrupted = true;
                    user_input.signal(ToProgram::Interrupt);
                }
                _ = self.terminate.recv() => return StopReason::Terminated,
                _ = self.quit.recv() => return StopReason::Quit,
                _ = self.hang_up.recv() => return StopReason::HungUp,
                _ = self.resize.recv(), if user_input.is_at_terminal() => {
                    if let Some(size) = terminal::size() {
                        user_input.resize(size);
                    }
                }
            }
        }
    }
}
