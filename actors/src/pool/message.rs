//! Messages to the pool, and the state that it reports.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use actix::prelude::*;
use isol8_api::{Runtime, TenantId};
use isol8_backend::{BackendError, Sandbox, SandboxId, SandboxSpec};
use serde::Serialize;
use tokio::sync::oneshot;

use super::config::{Kind, PoolConfig};
use super::lease::Lease;
use crate::error::ExecuteError;
use crate::sandbox::PooledSandbox;

/// The reason why a request gets no sandbox.
#[derive(Clone, Debug, thiserror::Error)]
pub enum PoolError {
    /// The pool is shutting down.
    #[error("pool is shutting down")]
    Closed,
    /// The backend could not create a sandbox.
    #[error(transparent)]
    Backend(Arc<BackendError>),
    /// The backend took longer than this to create a sandbox.
    #[error("sandbox was not created within {} s", .0.as_secs())]
    TimedOut(Duration),
    /// The backend panicked, which is a bug.
    #[error("creating a sandbox panicked")]
    Panicked,
}

impl From<PoolError> for ExecuteError {
    fn from(error: PoolError) -> Self {
        match &error {
            PoolError::Closed => Self::ShuttingDown,
            PoolError::Backend(cause) => Self::from(cause.as_ref()),
            PoolError::TimedOut(_) => Self::BackendUnavailable(error.to_string()),
            PoolError::Panicked => Self::Internal(error.to_string()),
        }
    }
}

/// Asks for a sandbox. Accepted in every state; a pool that is shutting down answers `Closed`.
///
/// The answer has a channel of its own, by which the pool learns that the requester has gone.
#[derive(Debug, Message)]
#[rtype(result = "()")]
pub(super) struct Acquire {
    pub(super) tenant: TenantId,
    pub(super) spec: SandboxSpec,
    pub(super) reply: oneshot::Sender<Result<Lease, PoolError>>,
}

impl Acquire {
    pub(super) fn refuse(self, error: PoolError) {
        // Ignore a closed channel: the requester has gone.
        let _ = self.reply.send(Err(error));
    }
}

/// As [`Acquire`], for a request that no idle sandbox can serve.
#[derive(Debug, Message)]
#[rtype(result = "()")]
pub(super) struct Create(pub(super) Acquire);

/// The creation of a sandbox has ended.
#[derive(Debug, Message)]
#[rtype(result = "()")]
pub(super) struct Created {
    pub(super) made: Result<Arc<dyn Sandbox>, PoolError>,
    pub(super) spec: SandboxSpec,
    /// Id of the pending creation; `None` for a sandbox created ahead of time.
    pub(super) pending: Option<u64>,
    pub(super) took: Duration,
}

/// The reset of a sandbox has ended.
#[derive(Debug, Message)]
#[rtype(result = "()")]
pub(super) struct ResetEnded {
    pub(super) result: Result<PooledSandbox, String>,
    /// The sandbox before the reset.
    pub(super) held: PooledSandbox,
    pub(super) owner: TenantId,
    pub(super) took: Duration,
}

/// A sandbox was removed, or the wait for its removal timed out.
#[derive(Debug, Message)]
#[rtype(result = "()")]
pub(super) struct Removed;

/// Asks the pool to look again for sandboxes that have been idle for too long.
#[derive(Debug, Message)]
#[rtype(result = "()")]
pub(super) struct Evict(pub(super) Kind);

/// The delay after a sandbox was handed out is over, so the pool may create its replacement.
#[derive(Debug, Message)]
#[rtype(result = "()")]
pub(super) struct Refill;

/// Asks the pool to check again which waiting requests need a new sandbox.
#[derive(Debug, Message)]
#[rtype(result = "()")]
pub(super) struct Supply;

/// Asks the pool to check the age and the health of idle sandboxes.
#[derive(Debug, Message)]
#[rtype(result = "()")]
pub(super) struct HealthCheck;

/// Asks the pool to try again to create sandboxes ahead of time.
#[derive(Debug, Message)]
#[rtype(result = "()")]
pub(super) struct Retry(pub(super) Kind);

/// An idle sandbox has died.
#[derive(Debug, Message)]
#[rtype(result = "()")]
pub(super) struct Died {
    pub(super) kind: Kind,
    pub(super) id: SandboxId,
    pub(super) reason: String,
}

/// Refuses further requests, destroys the idle sandboxes, and answers once every lease has ended and no sandbox is
/// left.
#[derive(Debug, Message)]
#[rtype(result = "()")]
pub struct Shutdown;

/// Replaces the configuration. Sandboxes that no longer fit it are destroyed: idle ones at once, leased ones when they
/// are returned.
#[derive(Debug, Message)]
#[rtype(result = "()")]
pub struct Configure(pub PoolConfig);

/// Asks for a [`PoolState`].
#[derive(Debug, Message)]
#[rtype(result = "PoolState")]
pub struct Observe;

/// The state that the pool reports.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, MessageResponse)]
#[serde(rename_all = "camelCase")]
pub struct PoolState {
    /// State of the runtimes. Runtimes that the pool has not dealt with yet are left out.
    pub runtimes: BTreeMap<Runtime, SubPoolState>,
    /// State of the images that are not a runtime's own. Images that the pool has not dealt with yet are left out.
    pub images: BTreeMap<String, SubPoolState>,
    /// Number of leased sandboxes.
    pub leased: usize,
    /// Number of sandboxes being destroyed.
    pub destroying: usize,
    /// Whether as many sandboxes as configured have been idle once. Kinds that the backend cannot create do not count.
    pub was_full: bool,
    /// Whether the pool is shutting down.
    pub draining: bool,
}

/// The state that the pool reports for one runtime or image.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct SubPoolState {
    /// Number of idle sandboxes that no client has used.
    pub clean: usize,
    /// Number of used sandboxes that were reset and are idle for their tenant.
    pub used: usize,
    /// Number of used sandboxes being reset.
    pub cleaning: usize,
    /// Number of sandboxes being created, on demand or ahead of time.
    pub creating: usize,
    /// Number of requests that wait for a sandbox.
    pub waiting: usize,
    /// Number of failures in a row to create a sandbox ahead of time.
    pub failures: u32,
    /// Whether the backend cannot run this runtime or image.
    pub unavailable: bool,
}
