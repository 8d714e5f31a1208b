//! Messages to a session, and the state that it reports.

use std::sync::Arc;
use std::time::Duration;

use actix::prelude::*;
use isol8_api::{ExecutionResult, Runtime, SessionId, TenantId};
use serde::Serialize;
use tokio::sync::oneshot;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::permit::TransferPermit;
use crate::error::ExecuteError;
use crate::job::Job;
use crate::pool::{Lease, PoolError};
use crate::run::Attachment;
use crate::sandbox::PooledSandbox;

/// Identifies a session among the sessions of all tenants.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct SessionKey {
    /// The tenant that owns the session.
    pub tenant: TenantId,
    /// The tenant's name for the session.
    pub id: SessionId,
}

pub(super) type Reply = oneshot::Sender<Result<ExecutionResult, ExecuteError>>;

/// Queues a job. Accepted in every state; a session that has ended answers with an error.
#[derive(Debug, Message)]
#[rtype(result = "()")]
pub(crate) struct RunJob {
    pub(crate) job: Arc<Job>,
    /// The client that follows the run, if there is one.
    pub(crate) attachment: Option<Attachment>,
    /// Triggered when the caller has gone.
    pub(crate) cancel: CancellationToken,
    pub(crate) received: Instant,
    pub(crate) reply: Reply,
}

/// Ends the session and its jobs. Answered when the sandbox is gone.
#[derive(Debug, Message)]
#[rtype(result = "()")]
pub(crate) struct Delete;

/// Ends the session, and leaves the sandbox to the next server.
#[derive(Debug, Message)]
#[rtype(result = "()")]
pub(crate) struct LeaveForAdoption;

/// Asks for permission to transfer one file. Accepted in every state; a session without a sandbox answers that it does
/// not exist.
#[derive(Clone, Copy, Debug, Message)]
#[rtype(result = "Result<TransferPermit, ExecuteError>")]
pub(crate) struct BeginTransfer;

/// Persists the time of the last use, and ends the session if it has been idle for `max_idle` and no request waits.
#[derive(Clone, Copy, Debug, Message)]
#[rtype(result = "()")]
pub(crate) struct HealthCheck {
    pub(crate) max_idle: Option<Duration>,
}

/// Asks for a [`SessionState`].
#[derive(Debug, Message)]
#[rtype(result = "SessionState")]
pub struct Observe;

/// The sandbox is dead.
#[derive(Debug, Message)]
#[rtype(result = "()")]
pub(super) struct Died(pub(super) String);

/// The pool's answer to the session's request for a sandbox.
#[derive(Debug, Message)]
#[rtype(result = "()")]
pub(super) struct Acquired(pub(super) Result<Lease, PoolError>);

/// The running job has ended.
#[derive(Debug, Message)]
#[rtype(result = "()")]
pub(super) struct JobEnded {
    pub(super) result: Result<ExecutionResult, ExecuteError>,
    /// The sandbox after the job; `None` if the job's task panicked.
    pub(super) held: Option<PooledSandbox>,
}

/// The state that a session reports.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, MessageResponse)]
#[serde(rename_all = "camelCase")]
pub struct SessionState {
    /// The present activity of the session.
    pub phase: Phase,
    /// The runtime that the session is bound to.
    pub runtime: Runtime,
    /// Number of jobs that wait for their turn.
    pub waiting: usize,
}

/// The activity of a session.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Phase {
    /// The session has no sandbox yet.
    Starting,
    /// The session waits for a job.
    Idle,
    /// The session runs a job.
    Running,
    /// The session has ended.
    Ended,
}
