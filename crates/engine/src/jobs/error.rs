//! The error of a request that cannot become a job.

use std::fmt::Display;

use isol8_api::ErrorCode;

/// Longest part of a path or variable name that an error repeats, in characters.
const MAX_SHOWN: usize = 80;

/// A request that cannot become a job.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{path}: {problem}")]
pub struct JobError {
    /// The member at fault, such as `request.timeoutMs`.
    pub path: String,
    /// The given value and the valid range.
    pub problem: String,
    /// The error code of the contract.
    pub code: ErrorCode,
}

impl JobError {
    pub(crate) fn invalid(path: impl Into<String>, problem: impl Display) -> Self {
        Self {
            path: path.into(),
            problem: problem.to_string(),
            code: ErrorCode::InvalidRequest,
        }
    }

    pub(crate) fn unsupported(path: &str, problem: &str) -> Self {
        Self {
            code: ErrorCode::Unsupported,
            ..Self::invalid(path, problem)
        }
    }
}

/// Returns a number of a request if it is in its range.
pub(super) fn at_most<T>(path: &str, given: T, least: T, most: T) -> Result<T, JobError>
where
    T: PartialOrd + Display,
{
    if least <= given && given <= most {
        return Ok(given);
    }
    let problem = format!("{given} is out of range, expected {least} to {most}");
    Err(JobError::invalid(path, problem))
}

/// Returns the beginning of a client's text, for an error.
pub(crate) fn shown(text: &str) -> String {
    let mut shown: String = text.chars().take(MAX_SHOWN).collect();
    if shown.len() < text.len() {
        shown.push('…');
    }
    shown
}
