//! The hosts that a run could not reach, and why: programs tell of it in their own words, or not at all.

use std::sync::{Mutex, PoisonError};

use crate::FetchError;
use crate::dial::DialError;

/// Most problems of one run that are kept.
const MAX_PROBLEMS: usize = 8;

/// A host that was not reached.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NetworkProblem {
    /// The kind of problem.
    pub kind: NetworkProblemKind,
    /// The host and what happened, as a sentence without its end.
    pub text: String,
}

/// Kinds of problems, each with a setting that changes it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NetworkProblemKind {
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
pub struct NetworkProblems(Mutex<Vec<NetworkProblem>>);

impl NetworkProblems {
    /// The first ones, each once.
    #[must_use]
    pub fn all(&self) -> Vec<NetworkProblem> {
        self.0
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }

    /// Keeps a problem of the server's own fetch.
    pub fn add_fetch(&self, error: &FetchError) {
        let kind = match error {
            FetchError::NotPublic(_) => NetworkProblemKind::NotPublic,
            FetchError::Untrusted(_) => NetworkProblemKind::Untrusted,
            FetchError::Denied(_) | FetchError::Scheme(_) => NetworkProblemKind::Denied,
            FetchError::Unreachable(_) | FetchError::TimedOut(_) => NetworkProblemKind::Unreachable,
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
            DialError::NotPublic(_) | DialError::NoAddress(_) => NetworkProblemKind::NotPublic,
            DialError::Unreachable(..) | DialError::TimedOut(_) => NetworkProblemKind::Unreachable,
        };
        self.add(kind, error.to_string());
    }

    pub(crate) fn add(&self, kind: NetworkProblemKind, text: String) {
        let mut kept = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let problem = NetworkProblem { kind, text };
        if kept.len() < MAX_PROBLEMS && !kept.contains(&problem) {
            kept.push(problem);
        }
    }
}
