//! A sandbox that the pool has handed out.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use isol8_api::TenantId;
use isol8_backend::{BackendError, Limits, Sandbox, SandboxSpec};

use tokio::time::Instant;

use super::Pool;
use super::message::Release;
use crate::run::SandboxHistory;
use crate::supervisor::WeakSupervised;

/// How long changing limits may take: a few writes to files of the kernel, or one engine call.
const LIMITS_TIMEOUT: Duration = Duration::from_secs(10);

/// A sandbox, and what is known about it.
#[derive(Clone, Debug)]
pub struct PooledSandbox {
    /// The sandbox.
    pub sandbox: Arc<dyn Sandbox>,
    /// When it was made.
    pub made: Instant,
    /// The specification it was made for, with the limits that hold now.
    pub spec: SandboxSpec,
    /// Facts about its last run.
    pub memory: SandboxHistory,
}

impl PooledSandbox {
    /// Makes `limits` hold.
    ///
    /// # Errors
    /// The old limits may hold in part, so the sandbox should go.
    pub async fn set_limits(&mut self, limits: Limits) -> Result<(), BackendError> {
        if self.spec.limits == limits {
            return Ok(());
        }
        tokio::time::timeout(LIMITS_TIMEOUT, self.sandbox.set_limits(&limits))
            .await
            .map_err(|_| BackendError::Limits("no answer in time".to_owned()))??;
        self.spec.limits = limits;
        Ok(())
    }
}

/// The pool's decision about a returned sandbox.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Fate {
    /// Used as its strategy says.
    Return,
    /// Destroyed, whatever its strategy.
    Discard,
    /// Nothing: it has another owner.
    Taken,
}

/// A sandbox for one use. Dropping it gives the sandbox back.
#[derive(Debug)]
pub struct Lease {
    /// The sandbox.
    pub held: PooledSandbox,
    tenant: TenantId,
    fate: Fate,
    pool: WeakSupervised<Pool>,
    counted: Arc<AtomicUsize>,
}

impl Lease {
    pub(super) fn new(
        held: PooledSandbox,
        tenant: TenantId,
        leased: &Arc<AtomicUsize>,
        pool: WeakSupervised<Pool>,
    ) -> Self {
        leased.fetch_add(1, Ordering::AcqRel);
        Self {
            held,
            tenant,
            fate: Fate::Return,
            pool,
            counted: Arc::clone(leased),
        }
    }

    /// Returns a sandbox that must not be used again.
    pub fn discard(mut self) {
        self.fate = Fate::Discard;
    }

    /// Makes the caller the sandbox's owner; the pool forgets it.
    #[must_use]
    pub fn take(mut self) -> PooledSandbox {
        self.fate = Fate::Taken;
        self.held.clone()
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        self.counted.fetch_sub(1, Ordering::AcqRel);
        // If the pool is gone, dropping the sandbox removes it.
        self.pool.do_send(Release {
            held: self.held.clone(),
            tenant: self.tenant.clone(),
            fate: self.fate,
        });
    }
}
