//! The terminal that this command runs at.

use std::io;

use isol8_actors::TerminalSize;
use rustix::termios::{self, OptionalActions, Termios};

/// Most characters in a line, and most lines, that a run's terminal may have.
const LONGEST_SIDE: u16 = 1000;

/// Its size, where there is one.
pub(super) fn size() -> Option<TerminalSize> {
    let size = termios::tcgetwinsize(std::io::stdout())
        .or_else(|_| termios::tcgetwinsize(std::io::stdin()))
        .ok()?;
    // One that was never told its size says 0.
    let side = |given: u16, usual| match given {
        0 => usual,
        given => given.min(LONGEST_SIDE),
    };
    Some(TerminalSize {
        columns: side(size.ws_col, 80),
        rows: side(size.ws_row, 24),
    })
}

/// A terminal that passes on what is typed, as it is typed, and prints what it is told. Dropping this
/// makes it as it was.
#[derive(Debug)]
pub(super) struct Raw {
    before: Termios,
}

impl Raw {
    /// Makes the terminal of standard input raw.
    ///
    /// # Errors
    /// Where standard input is no terminal.
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
        // Where that fails, the terminal is gone.
        let _ = termios::tcsetattr(io::stdin(), OptionalActions::Drain, &self.before);
    }
}
