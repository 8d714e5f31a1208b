//! The facts about a session that are read without a message to it.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use isol8_api::Runtime;
use isol8_backend::{Claim, SandboxId};
use tokio::sync::Semaphore;

/// Highest number of concurrent file transfers of one session. Each transfer has a window of memory on both sides.
pub(crate) const MAX_TRANSFERS: usize = 16;

/// The facts about a session that are read without a message to it.
#[derive(Debug)]
pub(crate) struct SessionStatus {
    pub(crate) runtime: Runtime,
    pub(crate) created_at: u64,
    pub(crate) last_accessed_at: AtomicU64,
    pub(crate) is_active: AtomicBool,
    /// Permits for further file transfers.
    pub(crate) transfers: Arc<Semaphore>,
    /// Name of the sandbox; set once the session has one.
    pub(crate) container: OnceLock<String>,
    /// Set once the session has ended, with the reason of a loss that no request has been told yet.
    pub(crate) ended: OnceLock<Option<String>>,
}

impl SessionStatus {
    /// Returns the status of a session that an earlier process created.
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

fn milliseconds_since_1970() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    since.map_or(0, |since| {
        u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
    })
}
