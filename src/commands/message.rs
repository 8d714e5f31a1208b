//! Messages of isol8 itself, as opposed to the output of programs.

use std::io::{self, IsTerminal as _, Write as _};

/// Returns the prefix of a message, in colour only if a user reads it at a terminal.
pub(super) fn prefix() -> &'static str {
    let plain = std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
    if io::stderr().is_terminal() && !plain {
        "\x1b[1;31misol8:\x1b[0m "
    } else {
        "isol8: "
    }
}

/// Writes to standard error. Ignores errors, because the reader may have closed it.
pub(crate) fn to_stderr(text: &str) {
    let _ = io::stderr().write_all(text.as_bytes());
}

/// Writes to standard output. Ignores a closed pipe, as in `isol8 doctor | head -1`, on which `println!` panics.
pub(crate) fn to_stdout(text: &str) {
    let _ = io::stdout().write_all(text.as_bytes());
}
