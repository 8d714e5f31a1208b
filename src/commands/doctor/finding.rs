//! The findings, as lines of the report.

use std::fmt::Display;
use std::time::Duration;

use crate::commands::message;

/// Longest wait for a probe, a program that prints one line.
pub(super) const PROBE_TIMEOUT: Duration = Duration::from_secs(20);

/// The result of one check.
#[derive(Clone, Debug)]
pub(super) struct Finding {
    pub(super) subject: String,
    pub(super) text: String,
    /// The fix; `None` if the check passed.
    pub(super) fix: Option<String>,
}

impl Finding {
    pub(super) fn good(subject: impl Into<String>, text: impl Into<String>) -> Self {
        Self {
            subject: subject.into(),
            text: text.into(),
            fix: None,
        }
    }

    pub(super) fn bad(
        subject: impl Into<String>,
        text: impl Into<String>,
        fix: impl Into<String>,
    ) -> Self {
        Self {
            fix: Some(fix.into()),
            ..Self::good(subject, text)
        }
    }

    pub(super) fn show(&self) {
        let Self { subject, text, fix } = self;
        let verdict = if fix.is_none() { "ok" } else { "no" };
        line(format_args!("  {subject:<9} {verdict}: {text}"));
        if let Some(fix) = fix {
            line(format_args!("  fix       {fix}"));
        }
    }
}

/// Prints a line of the report.
pub(super) fn line(text: impl Display) {
    message::to_stdout(&format!("{text}\n"));
}
