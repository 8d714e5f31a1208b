//! The part of the pool that serves one kind of sandbox (a runtime, or an image of it): its idle sandboxes and the
//! requests waiting for one.

use std::collections::VecDeque;
use std::time::Duration;

use isol8_api::{ByteSize, TenantId};
use isol8_backend::{SandboxId, SandboxSpec};
use tokio::time::Instant;

use super::circulation::Circulation;
use super::demand::Demand;
use super::message::Acquire;
use crate::sandbox::PooledSandbox;
use crate::watch::DeathWatch;

/// An idle sandbox of the pool.
#[derive(Debug)]
pub(super) struct IdleSandbox {
    pub(super) held: PooledSandbox,
    /// When the sandbox became idle.
    pub(super) since: Instant,
    /// When the sandbox was last known to be healthy.
    pub(super) checked: Instant,
    /// Reports the sandbox's death while it is idle.
    pub(super) _watch: DeathWatch,
}

impl IdleSandbox {
    fn is_alive(&self) -> bool {
        !self.held.sandbox.control().is_closed()
    }

    fn is_prepared(&self) -> bool {
        self.held.sandbox.control().is_prepared()
    }

    fn is_ready(&self) -> bool {
        self.is_alive() && self.is_prepared()
    }
}

/// A request that no idle sandbox could serve.
#[derive(Debug)]
pub(super) struct Waiter {
    /// Number of the request, unique in the pool.
    pub(super) ticket: u64,
    pub(super) wanted: Acquire,
}

/// A sandbox that is being created for a request. If another sandbox serves the request earlier, this one serves the
/// next request of its sizes.
#[derive(Debug)]
pub(super) struct PendingCreate {
    pub(super) id: u64,
    /// Ticket of the request.
    pub(super) ticket: u64,
    pub(super) sizes: Sizes,
    pub(super) started: Instant,
}

/// The properties that cannot be changed while a sandbox lives: the sizes of `/sandbox` and `/tmp`, and whether it uses
/// the host's network.
pub(super) type Sizes = (ByteSize, ByteSize, bool);

pub(super) fn sizes(spec: &SandboxSpec) -> Sizes {
    (spec.sandbox_size, spec.tmp_size, spec.host_network)
}

/// The idle sandboxes and the waiting requests of one kind.
#[derive(Debug, Default)]
pub(super) struct SubPool {
    /// Idle sandboxes that no client has used.
    pub(super) clean: VecDeque<IdleSandbox>,
    /// Idle sandboxes that were used and reset, each for its tenant only. The longest idle is first.
    pub(super) dirty: VecDeque<(TenantId, IdleSandbox)>,
    /// Requests that no idle sandbox could serve, in order of arrival.
    pub(super) waiters: VecDeque<Waiter>,
    /// Sandboxes being created for requests.
    pub(super) pending_creates: Vec<PendingCreate>,
    /// Number of sandboxes being created ahead of time.
    pub(super) refilling: usize,
    /// When the last creation ahead of time was started.
    pub(super) refilled: Option<Instant>,
    /// Used sandboxes that are leased or being reset.
    pub(super) circulation: Circulation,
    /// Number of failures in a row to create a sandbox ahead of time.
    pub(super) failures: u32,
    /// Set while no sandbox is created ahead of time, after a failure.
    pub(super) backing_off: bool,
    /// Demand for clean sandboxes.
    pub(super) demand: Demand,
    /// An `Evict` message is under way.
    pub(super) eviction_is_scheduled: bool,
    /// Set if the backend cannot run this kind. No sandbox is created ahead of time until a creation has succeeded.
    pub(super) unavailable: bool,
}

impl SubPool {
    /// Takes an idle sandbox for `tenant`, in this order of preference:
    /// - one that the tenant has used, so that unused ones are left for others; of these the latest one whose
    ///   interpreter is ready, because its pages are most likely in the caches, else the one that has waited longest;
    /// - for runtimes whose interpreters boot slowly, an unused one whose interpreter is ready comes before a used one
    ///   without;
    /// - an unused one, unless `spares_clean` is set.
    ///
    /// Dead sandboxes are skipped; their watch removes them.
    pub(super) fn pick(
        &mut self,
        tenant: &TenantId,
        boots_slowly: bool,
        spares_clean: bool,
    ) -> Option<PooledSandbox> {
        let is_own = |(owner, idle): &(TenantId, IdleSandbox)| owner == tenant && idle.is_alive();
        let is_ready = |one: &(TenantId, IdleSandbox)| is_own(one) && one.1.is_prepared();
        let any_used =
            !boots_slowly || spares_clean || !self.clean.iter().any(IdleSandbox::is_ready);
        let ready = self.dirty.iter().rposition(is_ready);
        let oldest = || self.dirty.iter().position(is_own).filter(|_| any_used);
        if let Some(at) = ready.or_else(oldest) {
            return self.dirty.remove(at).map(|(_, idle)| idle.held);
        }
        if spares_clean {
            return None;
        }
        self.pick_clean()
    }

    /// Takes a living sandbox that no tenant has used, preferably one whose interpreter is ready.
    pub(super) fn pick_clean(&mut self) -> Option<PooledSandbox> {
        self.demand.note_taken();
        let ready = self.clean.iter().position(IdleSandbox::is_ready);
        let at = ready.or_else(|| self.clean.iter().position(IdleSandbox::is_alive))?;
        self.clean.remove(at).map(|idle| idle.held)
    }

    /// Takes out one sandbox by its id.
    pub(super) fn remove(&mut self, id: &SandboxId) -> Option<PooledSandbox> {
        let is_it = |idle: &IdleSandbox| idle.held.sandbox.id() == id;
        if let Some(at) = self.clean.iter().position(is_it) {
            return self.clean.remove(at).map(|idle| idle.held);
        }
        let at = self.dirty.iter().position(|(_, idle)| is_it(idle))?;
        self.dirty.remove(at).map(|(_, idle)| idle.held)
    }

    /// Returns the sandbox to evict first: the longest idle dirty one, or else the longest idle clean one if there are
    /// more than `clean` of them.
    pub(super) fn oldest(&self, clean: usize) -> Option<&IdleSandbox> {
        let fresh = (self.clean.len() > clean).then(|| self.clean.front());
        let used = self.dirty.front().map(|(_, idle)| idle);
        used.or(fresh.flatten())
    }

    /// Takes out the sandbox that [`Self::oldest`] returns.
    pub(super) fn remove_oldest(&mut self, clean: usize) -> Option<PooledSandbox> {
        let id = self.oldest(clean)?.held.sandbox.id().clone();
        self.remove(&id)
    }

    /// Returns the number of dirty sandboxes, resets included, and of clean sandboxes beyond `clean`.
    pub(super) fn excess(&self, clean: usize) -> usize {
        self.dirty.len() + self.circulation.resets() + self.clean.len().saturating_sub(clean)
    }

    /// Returns the idle sandboxes whose health was not checked for this long, and counts them as checked now.
    pub(super) fn due_for_check(&mut self, after: Duration) -> Vec<PooledSandbox> {
        let used = self.dirty.iter_mut().map(|(_, idle)| idle);
        let idle = self.clean.iter_mut().chain(used);
        let due = idle.filter(|idle| idle.checked.elapsed() >= after);
        due.map(|idle| {
            idle.checked = Instant::now();
            idle.held.clone()
        })
        .collect()
    }

    /// Takes out the sandboxes for which `unwanted` returns true.
    pub(super) fn take_out(
        &mut self,
        unwanted: impl Fn(&PooledSandbox) -> bool,
    ) -> Vec<PooledSandbox> {
        let used = self.dirty.iter().map(|(_, idle)| idle);
        let held = self.clean.iter().chain(used).map(|idle| &idle.held);
        let ids: Vec<_> = held
            .filter(|held| unwanted(held))
            .map(|held| held.sandbox.id().clone())
            .collect();
        ids.iter().filter_map(|id| self.remove(id)).collect()
    }

    /// Returns whether there is no sandbox, no creation and no request.
    pub(super) fn is_idle(&self) -> bool {
        let waits = self.clean.len() + self.dirty.len() + self.waiters.len();
        waits + self.under_way() == 0
    }

    /// Returns the number of sandboxes being created or reset.
    pub(super) fn under_way(&self) -> usize {
        self.pending_creates.len() + self.refilling + self.circulation.resets()
    }

    /// Returns whether a creation ahead of time was started less than `makings` usual creation times ago.
    pub(super) fn was_refilled_within(&self, makings: u32) -> bool {
        let pause = self.demand.create_time() * makings;
        self.refilled
            .is_some_and(|started| started.elapsed() < pause)
    }

    /// Takes out all sandboxes.
    pub(super) fn clear(&mut self) -> Vec<PooledSandbox> {
        let used = self.dirty.drain(..).map(|(_, idle)| idle);
        self.clean
            .drain(..)
            .chain(used)
            .map(|idle| idle.held)
            .collect()
    }

    /// Takes out the request that a sandbox should serve: the request of `ticket`, for which the sandbox was created,
    /// or else the first request that it fits. A used sandbox fits only requests of its tenant, the `owner`.
    pub(super) fn waiter_for(
        &mut self,
        held: &PooledSandbox,
        ticket: Option<u64>,
        owner: Option<&TenantId>,
    ) -> Option<Acquire> {
        self.forget_gone();
        let fits = |waiter: &Waiter| {
            sizes(&waiter.wanted.spec) == sizes(&held.spec)
                && owner.is_none_or(|owner| *owner == waiter.wanted.tenant)
        };
        let own = ticket.and_then(|ticket| self.position(ticket));
        let at = own.or_else(|| self.waiters.iter().position(fits))?;
        self.waiters.remove(at).map(|waiter| waiter.wanted)
    }

    /// Takes out the request with a ticket.
    pub(super) fn take_waiter(&mut self, ticket: u64) -> Option<Acquire> {
        let at = self.position(ticket)?;
        self.waiters.remove(at).map(|waiter| waiter.wanted)
    }

    /// Removes a pending creation that has ended, with success or not, and returns the ticket of its request.
    pub(super) fn finish_create(&mut self, id: u64) -> Option<u64> {
        let at = self
            .pending_creates
            .iter()
            .position(|pending| pending.id == id)?;
        Some(self.pending_creates.swap_remove(at).ticket)
    }

    /// Forgets requests whose callers have gone.
    pub(super) fn forget_gone(&mut self) {
        self.waiters
            .retain(|waiter| !waiter.wanted.reply.is_closed());
    }

    fn position(&self, ticket: u64) -> Option<usize> {
        self.waiters
            .iter()
            .position(|waiter| waiter.ticket == ticket)
    }
}
