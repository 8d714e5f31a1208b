//! The terminal that this command runs at.

use isol8_actors::TerminalSize;
use rustix::termios;

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
