//! A weakness of the host, and the files that show it.

use std::fmt;
use std::fs;
use std::path::Path;

/// A weakness of the host's settings, and its fix.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Warning {
    /// The setting and its effect.
    pub problem: String,
    /// A command, or a sentence.
    pub fix: String,
}

impl fmt::Display for Warning {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}; fix: {}", self.problem, self.fix)
    }
}

/// Reads a file of `/proc` or `/sys`, without its trailing newline.
pub(super) fn read(path: &Path) -> Option<String> {
    let text = fs::read_to_string(path).ok()?;
    Some(text.trim_end().to_owned())
}
