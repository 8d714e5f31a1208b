//! The lease of a sandbox that the pool has handed out.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use actix::prelude::*;
use isol8_api::TenantId;

use crate::sandbox::PooledSandbox;
use crate::supervisor::WeakRecipient;

/// The pool's decision about a returned sandbox.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Fate {
    /// The sandbox is treated as the pool's strategy says.
    Return,
    /// The sandbox is destroyed, whatever the strategy.
    Discard,
    /// The sandbox has another owner, and the pool forgets it.
    Taken,
}

/// A lease has ended.
#[derive(Debug, Message)]
#[rtype(result = "()")]
pub(super) struct Release {
    pub(super) held: PooledSandbox,
    pub(super) tenant: TenantId,
    pub(super) fate: Fate,
}

/// The right to use a sandbox of the pool. Dropping the lease returns the sandbox.
#[derive(Debug)]
pub struct Lease {
    /// The sandbox.
    pub held: PooledSandbox,
    tenant: TenantId,
    fate: Fate,
    pool: WeakRecipient<Release>,
    counted: Arc<AtomicUsize>,
}

impl Lease {
    pub(super) fn new(
        held: PooledSandbox,
        tenant: TenantId,
        leased: &Arc<AtomicUsize>,
        pool: WeakRecipient<Release>,
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

    /// Returns the sandbox to be destroyed, because it must not be used again.
    pub fn discard(mut self) {
        self.fate = Fate::Discard;
    }

    /// Makes the caller the owner of the sandbox. The pool forgets it.
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
