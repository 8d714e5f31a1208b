//! The hosts that a run could not reach, with the reasons, which are kept because programs report such errors in their
//! own words, or not at all.

use std::sync::{Mutex, PoisonError};

use crate::FetchError;
use crate::dial::DialError;

/// Maximum number of problems that are kept for one run.
const MAX_PROBLEMS: usize = 8;

/// A host that a run could not reach.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NetworkProblem {
    /// The kind of problem.
    pub kind: NetworkProblemKind,
    /// The host and what happened, as a sentence without its full stop.
    pub text: String,
}

/// Kinds of problems, each of which the operator fixes by another setting.
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
    /// Returns the first problems, without duplicates.
    #[must_use]
    pub fn all(&self) -> Vec<NetworkProblem> {
        self.0
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }

    /// Adds a failed fetch of the server itself, if its reason is one of the kinds.
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
