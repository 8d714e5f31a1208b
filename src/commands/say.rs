//! What isol8 itself has to say, apart from what programs write.

use std::io::{self, IsTerminal as _, Write as _};

/// What stands before a message. Colours are for people only.
pub(super) fn prefix() -> &'static str {
    let plain = std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
    if io::stderr().is_terminal() && !plain {
        "\x1b[1;31misol8:\x1b[0m "
    } else {
        "isol8: "
    }
}

/// Writes to standard error. Whoever closed it wants to know nothing.
pub(super) fn to_stderr(text: &str) {
    let _ = io::stderr().write_all(text.as_bytes());
}
