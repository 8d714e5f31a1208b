//! Events of a session that its registry handles.

use actix::prelude::*;

use super::message::{RunJob, SessionKey};

/// An event that a session reports to its registry.
#[derive(Debug, Message)]
#[rtype(result = "()")]
pub(crate) enum SessionEvent {
    /// The session has ended.
    Ended(SessionEnd),
    /// A request was told of the session's loss after the session had ended.
    LossReported(SessionKey),
    /// A job has arrived after the end of a session that never had a sandbox. The job runs in a new session.
    Requeue(SessionKey, RunJob),
}

/// The end of a session.
#[derive(Debug)]
pub(crate) struct SessionEnd {
    pub(crate) key: SessionKey,
    pub(crate) generation: u64,
    /// Reason of a loss that no request has been told yet.
    pub(crate) lost: Option<String>,
}
