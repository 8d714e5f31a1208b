//! The terminal that this command runs in.

use std::io;

use isol8_actors::TerminalSize;
use rustix::termios::{self, OptionalActions, Termios};

/// Largest number of columns or rows of a run's terminal.
const MAX_SIDE: u16 = 1000;

/// Returns the terminal's size, if there is a terminal.
pub(super) fn size() -> Option<TerminalSize> {
    let size = termios::tcgetwinsize(std::io::stdout())
        .or_else(|_| termios::tcgetwinsize(std::io::stdin()))
        .ok()?;
    // A terminal whose size was never set reports 0.
    let side = |given: u16, usual| match given {
        0 => usual,
        given => given.min(MAX_SIDE),
    };
    Some(TerminalSize {
        columns: side(size.ws_col, 80),
        rows: side(size.ws_row, 24),
    })
}

/// The terminal of standard input in raw mode: it passes on each key at once, and prints output unchanged. Dropping
/// the value restores the previous mode.
#[derive(Debug)]
pub(super) struct Raw {
    before: Termios,
}

impl Raw {
    /// Puts the terminal of standard input into raw mode.
    ///
    /// # Errors
    /// Returns an error if standard input is not a terminal.
    pub(super) fn enter() -> io::Result<Self> {
        let before = termios::tcgetattr(io::stdin())?;
        let mut raw = before.clone();
        raw.make_raw();
        termios::tcsetattr(io::stdin(), OptionalActions::Now, &raw)?;
        Ok(Self { before })
    }
}

impl Drop for Raw {
    fn drop(&mut self) {
        // Ignore the error: the terminal is gone.
        let _ = termios::tcsetattr(io::stdin(), OptionalActions::Drain, &self.before);
    }
}
