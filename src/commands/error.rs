//! The error of a command.

use std::fmt::Display;

use crate::cli::with_flags;

/// The error of a command; the text is for its user.
#[derive(Debug)]
pub(super) struct CommandError(pub(super) String);

impl<E: Display> From<E> for CommandError {
    fn from(error: E) -> Self {
        Self(error.to_string())
    }
}

impl CommandError {
    /// Replaces request members, which the command made from flags, by those flags.
    pub(super) fn with_flags(self) -> Self {
        Self(with_flags(&self.0).into_owned())
    }
}
