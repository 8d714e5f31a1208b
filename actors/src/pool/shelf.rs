//! What waits for one runtime: sandboxes, and requests for one.

use std::collections::VecDeque;

use isol8_api::TenantId;
use isol8_backend::SandboxId;

use super::lease::Held;
use super::message::Acquire;
use crate::watch::DeathWatch;

/// A sandbox on the shelf.
#[derive(Debug)]
pub(super) struct Warm {
    pub(super) held: Held,
    /// Notices its death while nobody uses it.
    pub(super) _watch: DeathWatch,
}

impl Warm {
    fn is_alive(&self) -> bool {
        !self.held.sandbox.control().is_closed()
    }
}

/// One runtime's part of the pool.
#[derive(Debug, Default)]
pub(super) struct Shelf {
    /// Never used, or used by nobody but the pool.
    pub(super) fresh: VecDeque<Warm>,
    /// Used before and reset, each for its tenant alone; the one that waits longest is first.
    pub(super) used: VecDeque<(TenantId, Warm)>,
    /// Requests that no waiting sandbox could serve, in order of arrival, each with the ticket of
    /// the sandbox that is being made for it.
    pub(super) waiters: VecDeque<(u64, Acquire)>,
    /// Sandboxes being made for a request.
    pub(super) ordered: usize,
    /// Sandboxes being made ahead of time.
    pub(super) refilling: usize,
    /// Used sandboxes being reset.
    pub(super) cleaning: usize,
    /// Failures in a row of making one ahead of time.
    pub(super) failures: u32,
    /// Nothing is made ahead of time for now.
    pub(super) backing_off: bool,
    /// The backend cannot run this runtime; nothing is made ahead of time until it could.
    pub(super) unavailable: bool,
}

impl Shelf {
    /// A living sandbox for `tenant`. Its own used ones first, so that others' are left fresh
    /// ones; the latest of them, whose pages are most likely in the caches. Dead ones are left to
    /// their watch.
    pub(super) fn pick(&mut self, tenant: &TenantId) -> Option<Held> {
        let own = self
            .used
            .iter()
            .rposition(|(owner, warm)| owner == tenant && warm.is_alive());
        if let Some(at) = own {
            return self.used.remove(at).map(|(_, warm)| warm.held);
        }
        let at = self.fresh.iter().position(Warm::is_alive)?;
        self.fresh.remove(at).map(|warm| warm.held)
    }

    /// Takes out one sandbox by its name.
    pub(super) fn remove(&mut self, id: &SandboxId) -> Option<Held> {
        let is_it = |warm: &Warm| warm.held.sandbox.id() == id;
        if let Some(at) = self.fresh.iter().position(is_it) {
            return self.fresh.remove(at).map(|warm| warm.held);
        }
        let at = self.used.iter().position(|(_, warm)| is_it(warm))?;
        self.used.remove(at).map(|(_, warm)| warm.held)
    }

    /// Takes out all sandboxes.
    pub(super) fn clear(&mut self) -> Vec<Held> {
        let used = self.used.drain(..).map(|(_, warm)| warm);
        self.fresh
            .drain(..)
            .chain(used)
            .map(|warm| warm.held)
            .collect()
    }

    /// The request that a sandbox should go to: the one it was made for, else the first that it
    /// fits. `owner` is whose it was before.
    pub(super) fn waiter_for(
        &mut self,
        held: &Held,
        ticket: Option<u64>,
        owner: Option<&TenantId>,
    ) -> Option<Acquire> {
        self.waiters.retain(|(_, waiter)| !waiter.reply.is_closed());
        let fits = |(_, waiter): &(u64, Acquire)| {
            waiter.spec.sandbox_size == held.spec.sandbox_size
                && waiter.spec.tmp_size == held.spec.tmp_size
                && owner.is_none_or(|owner| *owner == waiter.tenant)
        };
        let own = self.position(ticket);
        let at = own.or_else(|| self.waiters.iter().position(fits))?;
        self.waiters.remove(at).map(|(_, waiter)| waiter)
    }

    /// Takes out the request with this ticket, where it still waits.
    pub(super) fn take_waiter(&mut self, ticket: Option<u64>) -> Option<Acquire> {
        let at = self.position(ticket)?;
        self.waiters.remove(at).map(|(_, waiter)| waiter)
    }

    fn position(&self, ticket: Option<u64>) -> Option<usize> {
        let ticket = ticket?;
        self.waiters.iter().position(|(of, _)| *of == ticket)
    }
}
