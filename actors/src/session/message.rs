//! Messages to a session, the state that it reports, and its settings.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use actix::prelude::*;
use isol8_api::{ExecutionResult, Runtime, SessionId, TenantId};
use isol8_backend::{Claim, SandboxId, SandboxSpec, SessionDefaults};
use serde::Serialize;
use tokio::sync::{Semaphore, oneshot};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::admission::Admission;
use crate::error::ExecuteError;
use crate::files::{MAX_TRANSFERS, TransferPermit};
use crate::job::Job;
use crate::pool::{Lease, Pool, PoolError, PooledSandbox};
use crate::registry::Registry;
use crate::run::Attachment;
use crate::supervisor::{Supervised, WeakSupervised};

/// Names a session among all tenants'.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct SessionKey {
    /// The tenant that owns the session.
    pub tenant: TenantId,
    /// The tenant's name for it.
    pub id: SessionId,
}

/// The facts about a session that are read without a message to it.
#[derive(Debug)]
pub(crate) struct Status {
    pub(crate) runtime: Runtime,
    pub(crate) created_at: u64,
    pub(crate) last_accessed_at: AtomicU64,
    pub(crate) is_active: AtomicBool,
    /// File transfers that may still begin.
    pub(crate) transfers: Arc<Semaphore>,
    /// Set once there is a sandbox.
    pub(crate) container: OnceLock<String>,
    /// Set once the session has ended, with the reason of a loss that no request has been told yet.
    pub(crate) ended: OnceLock<Option<String>>,
}

impl Status {
    /// The status of a session that an earlier process made.
    pub(crate) fn adopted(claim: &Claim, idle: Duration, container: &SandboxId) -> Self {
        let idle = u64::try_from(idle.as_millis()).unwrap_or(u64::MAX);
        let used = milliseconds_since_1970().saturating_sub(idle);
        Self {
            created_at: claim.created_at,
            last_accessed_at: AtomicU64::new(used.max(claim.created_at)),
            container: OnceLock::from(container.to_string()),
            ..Self::new(claim.spec.runtime)
        }
    }

    pub(crate) fn new(runtime: Runtime) -> Self {
        let now = milliseconds_since_1970();
        Self {
            runtime,
            created_at: now,
            last_accessed_at: AtomicU64::new(now),
            is_active: AtomicBool::new(false),
            transfers: Arc::new(Semaphore::new(MAX_TRANSFERS)),
            container: OnceLock::new(),
            ended: OnceLock::new(),
        }
    }

    pub(super) fn set_active(&self, active: bool) {
        self.is_active.store(active, Ordering::Relaxed);
        self.note_use();
    }

    pub(crate) fn has_transfers(&self) -> bool {
        self.transfers.available_permits() < MAX_TRANSFERS
    }

    pub(crate) fn note_use(&self) {
        let now = milliseconds_since_1970();
        self.last_accessed_at.store(now, Ordering::Relaxed);
    }
}

pub(super) type Reply = oneshot::Sender<Result<ExecutionResult, ExecuteError>>;

/// Runs a job in its turn. Legal in every state; a session that has ended answers so.
#[derive(Debug, Message)]
#[rtype(result = "()")]
pub(crate) struct Run {
    pub(crate) job: Arc<Job>,
    /// The client that follows the run, if there is one.
    pub(crate) live: Option<Attachment>,
    /// Triggered when the requester has gone.
    pub(crate) cancel: CancellationToken,
    pub(crate) received: Instant,
    pub(crate) reply: Reply,
}

/// Ends the session, and what runs in it; answered when its sandbox is gone.
#[derive(Debug, Message)]
#[rtype(result = "()")]
pub(crate) struct Delete;

/// Ends the session, and leaves its sandbox to the next server.
#[derive(Debug, Message)]
#[rtype(result = "()")]
pub(crate) struct Leave;

/// Asks for permission to transfer one file. Accepted in every state; a session without a sandbox answers that it does
/// not exist.
#[derive(Clone, Copy, Debug, Message)]
#[rtype(result = "Result<TransferPermit, ExecuteError>")]
pub(crate) struct Open;

/// A file transfer has ended.
#[derive(Clone, Copy, Debug, Message)]
#[rtype(result = "()")]
pub(crate) struct Used;

/// Persists the time of the last use. Ends the session if it has been idle for this long and no request waits.
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

/// The job that ran has ended.
#[derive(Debug, Message)]
#[rtype(result = "()")]
pub(super) struct TurnEnded {
    pub(super) result: Result<ExecutionResult, ExecuteError>,
    /// The sandbox as it is now; none where the run panicked.
    pub(super) held: Option<PooledSandbox>,
}

/// The state that a session reports.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, MessageResponse)]
#[serde(rename_all = "camelCase")]
pub struct SessionState {
    /// The present activity of the session.
    pub phase: Phase,
    /// The runtime it is bound to.
    pub runtime: Runtime,
    /// Jobs that wait for their turn.
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

/// The settings that a session is made with.
#[derive(Clone, Debug)]
pub(crate) struct SessionContext {
    pub(crate) key: SessionKey,
    /// Tells this session from others of the same key, before and after it.
    pub(crate) generation: u64,
    pub(crate) spec: SandboxSpec,
    /// Settings of its jobs that do not say otherwise.
    pub(crate) defaults: Option<SessionDefaults>,
    pub(crate) queue_limit: usize,
    pub(crate) status: Arc<Status>,
    pub(crate) pool: Supervised<Pool>,
    pub(crate) admission: Admission,
    pub(crate) registry: WeakSupervised<Registry>,
}

fn milliseconds_since_1970() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    since.map_or(0, |since| {
        u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
    })
}
