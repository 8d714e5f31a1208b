//! Patterns of names.

use regex::Regex;

/// Compiles a pattern that matches a whole name.
#[allow(clippy::expect_used)] // All patterns are constants, and a test compiles each.
pub(super) fn pattern(text: &str) -> Regex {
    Regex::new(&format!("^(?:{text})$")).expect("a constant pattern compiles")
}
