//! The hosts that a run could not reach, and why: programs tell of it in their own words, or not at all.

use std::sync::{Mutex, PoisonError};

use crate::FetchError;
use crate::dial::DialError;

/// Most problems of one run that are kept.
const KEPT: usize = 8;

/// A host that was not reached.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    /// The kind of problem.
    pub kind: ProblemKind,
    /// The host and what happened, as a sentence without its end.
    pub text: String,
}

/// Kinds of problems, each with a setting that changes it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ProblemKind {
    /// The host has no address that is public.
    NotPublic,
    /// A filter refuses the host or the port.
    Denied,
    /// The host's certificate is not trusted.
    Untrusted,
    /// The host does not answer.
    Unreachable,
}

/// The problems of one run.
#[derive(Debug, Default)]
pub struct Problems(Mutex<Vec<Problem>>);

impl Problems {
    /// The first ones, each once.
    #[must_use]
    pub fn all(&self) -> Vec<Problem> {
        self.0
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }

    /// Keeps a problem of the server's own fetch.
    pub fn add_fetch(&self, error: &FetchError) {
        let kind = match error {
            FetchError::NotPublic(_) => ProblemKind::NotPublic,
            FetchError::Untrusted(_) => ProblemKind::Untrusted,
            FetchError::Denied(_) | FetchError::Scheme(_) => ProblemKind::Denied,
            FetchError::Unreachable(_) | FetchError::TimedOut(_) => ProblemKind::Unreachable,
            FetchError::InvalidUrl(_)
            | FetchError::Status { .. }
            | FetchError::Redirect(_)
            | FetchError::TooLarge(_)
            | FetchError::Setup(_) => return,
        };
        self.add(kind, error.to_string());
    }

    pub(crate) fn add_dial(&self, error: &DialError) {
        let kind = match error {
            DialError::NotPublic(_) | DialError::NoAddress(_) => ProblemKind::NotPublic,
            DialError::Unreachable(..) | DialError::TimedOut(_) => ProblemKind::Unreachable,
        };
        self.add(kind, error.to_string());
    }

    pub(crate) fn add(&self, kind: ProblemKind, text: String) {
        let mut kept = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let problem = Problem { kind, text };
        if kept.len() < KEPT && !kept.contains(&problem) {
            kept.push(problem);
        }
    }
}
