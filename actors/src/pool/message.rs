//! Messages to the pool, and the state that it reports.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use actix::prelude::*;
use isol8_api::{Runtime, TenantId};
use isol8_backend::{BackendError, Sandbox, SandboxId, SandboxSpec};
use serde::Serialize;
use tokio::sync::oneshot;

use super::lease::Fate;
use super::{Kind, Lease, Pool, PoolConfig, PooledSandbox};
use crate::error::ExecuteError;
use crate::supervisor::{ATTEMPTS, Supervised};

/// Why there is no sandbox.
#[derive(Clone, Debug, thiserror::Error)]
pub enum PoolError {
    /// The pool gives out no more.
    #[error("pool is shutting down")]
    Closed,
    /// The backend could not make one.
    #[error(transparent)]
    Backend(Arc<BackendError>),
    /// The backend took too long to make one.
    #[error("sandbox was not created within {} s", .0.as_secs())]
    TimedOut(Duration),
    /// A bug in the backend.
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

/// Takes a sandbox for `tenant` out of the pool. Dropping the future gives up the request, and
/// gives back a sandbox that was already on its way.
///
/// # Errors
/// Any [`PoolError`].
pub async fn acquire(
    pool: &Supervised<Pool>,
    tenant: TenantId,
    spec: SandboxSpec,
) -> Result<Lease, PoolError> {
    for _ in 0..ATTEMPTS {
        let (reply, answer) = oneshot::channel();
        pool.do_send(Acquire {
            tenant: tenant.clone(),
            spec: spec.clone(),
            reply,
        });
        // No answer at all: the pool panicked over this request or one before it, or is gone.
        if let Ok(answer) = answer.await {
            return answer;
        }
    }
    Err(PoolError::Closed)
}

/// Hands out a sandbox. Legal in every state; a draining pool answers `Closed`.
///
/// The answer has a channel of its own, which tells the pool that the requester has gone.
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

/// As [`Acquire`], where no waiting sandbox will do.
#[derive(Debug, Message)]
#[rtype(result = "()")]
pub(super) struct Create(pub(super) Acquire);

/// The making of a sandbox has ended.
#[derive(Debug, Message)]
#[rtype(result = "()")]
pub(super) struct Created {
    pub(super) made: Result<Arc<dyn Sandbox>, PoolError>,
    pub(super) spec: SandboxSpec,
    /// Its order; none ahead of time.
    pub(super) order: Option<u64>,
    pub(super) took: Duration,
}

/// The reset of a sandbox has ended.
#[derive(Debug, Message)]
#[rtype(result = "()")]
pub(super) struct Cleaned {
    pub(super) cleaned: Result<PooledSandbox, String>,
    /// The sandbox as it was before.
    pub(super) held: PooledSandbox,
    pub(super) owner: TenantId,
    pub(super) took: Duration,
}

/// A sandbox was removed, or the wait for its removal timed out.
#[derive(Debug, Message)]
#[rtype(result = "()")]
pub(super) struct Removed;

/// Asks the pool to look again for requests that wait too long.
#[derive(Debug, Message)]
#[rtype(result = "()")]
pub(super) struct Evict(pub(super) Kind);

/// A sandbox that was handed out has begun to work, so the pool may make its replacement.
#[derive(Debug, Message)]
#[rtype(result = "()")]
pub(super) struct Refill;

/// Has the pool look again at the requests that wait.
#[derive(Debug, Message)]
#[rtype(result = "()")]
pub(super) struct Supply;

/// Asks the pool to check the age and the health of idle sandboxes.
#[derive(Debug, Message)]
#[rtype(result = "()")]
pub(super) struct HealthCheck;

/// Asks the pool to try again to make sandboxes ahead.
#[derive(Debug, Message)]
#[rtype(result = "()")]
pub(super) struct Retry(pub(super) Kind);

/// A lease has ended.
#[derive(Debug, Message)]
#[rtype(result = "()")]
pub(super) struct Release {
    pub(super) held: PooledSandbox,
    pub(super) tenant: TenantId,
    pub(super) fate: Fate,
}

/// A waiting sandbox is dead.
#[derive(Debug, Message)]
#[rtype(result = "()")]
pub(super) struct Died {
    pub(super) kind: Kind,
    pub(super) id: SandboxId,
    pub(super) reason: String,
}

/// Gives out no more sandboxes, destroys those that wait, and answers once every lease has ended
/// and nothing is left.
#[derive(Debug, Message)]
#[rtype(result = "()")]
pub struct Shutdown;

/// Replaces the bounds. Sandboxes that fit them no longer go, those in use once they come back.
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
    /// By runtime; those that nothing happened to are left out.
    pub runtimes: BTreeMap<Runtime, SubPoolState>,
    /// By image, of those that are no runtime's own; those that nothing happened to are left out.
    pub images: BTreeMap<String, SubPoolState>,
    /// Sandboxes handed out.
    pub leased: usize,
    /// Sandboxes being destroyed.
    pub destroying: usize,
    /// Whether as many waited as should, once; what cannot be made does not count.
    pub was_full: bool,
    /// Whether the pool gives out no more.
    pub draining: bool,
}

/// The state that the pool reports for one runtime.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct SubPoolState {
    /// Never used sandboxes that wait.
    pub clean: usize,
    /// Used ones that were reset and wait for their tenant.
    pub used: usize,
    /// Used ones being reset.
    pub cleaning: usize,
    /// Being made, on demand or ahead of time.
    pub creating: usize,
    /// Requests waiting for one.
    pub waiting: usize,
    /// Failures in a row of making one ahead of time.
    pub failures: u32,
    /// Whether the backend says that it cannot run this runtime.
    pub unavailable: bool,
}
