//! The part of the pool that serves one kind of sandbox (a runtime, or an image of it): its idle sandboxes and the
//! requests waiting for one.

use std::collections::VecDeque;
use std::time::Duration;

use isol8_api::{ByteSize, TenantId};
use isol8_backend::{SandboxId, SandboxSpec};
use tokio::time::Instant;

use super::circulation::Circulation;
use super::demand::Demand;
use super::lease::PooledSandbox;
use super::message::Acquire;
use crate::watch::DeathWatch;

/// An idle sandbox of the pool.
#[derive(Debug)]
pub(super) struct IdleSandbox {
    pub(super) held: PooledSandbox,
    /// When it was put there.
    pub(super) since: Instant,
    /// When it was last known to be well.
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

/// A request that no waiting sandbox could serve.
#[derive(Debug)]
pub(super) struct Waiter {
    /// Name of the request among those of the pool.
    pub(super) ticket: u64,
    pub(super) wanted: Acquire,
}

/// A sandbox that is being made for a request. If another sandbox serves the request before, this one serves
/// the next request of its sizes.
#[derive(Debug)]
pub(super) struct PendingCreate {
    pub(super) id: u64,
    /// Ticket of its request.
    pub(super) ticket: u64,
    pub(super) sizes: Sizes,
    pub(super) begun: Instant,
}

/// The properties that cannot be changed while a sandbox lives: the sizes of `/sandbox` and `/tmp`, and whether it uses
/// the host's network.
pub(super) type Sizes = (ByteSize, ByteSize, bool);

pub(super) fn sizes(spec: &SandboxSpec) -> Sizes {
    (spec.sandbox_size, spec.tmp_size, spec.host_network)
}

/// The part of the pool that is of one kind.
#[derive(Debug, Default)]
pub(super) struct SubPool {
    /// Idle sandboxes that no client has used.
    pub(super) fresh: VecDeque<IdleSandbox>,
    /// Used before and reset, each for its tenant alone; the one that waits longest is first.
    pub(super) used: VecDeque<(TenantId, IdleSandbox)>,
    /// Requests that no waiting sandbox could serve, in order of arrival.
    pub(super) waiters: VecDeque<Waiter>,
    /// Sandboxes being made for requests.
    pub(super) orders: Vec<PendingCreate>,
    /// Sandboxes being made ahead of time.
    pub(super) refilling: usize,
    /// When the last one ahead of time was begun.
    pub(super) refilled: Option<Instant>,
    /// Used sandboxes that come back.
    pub(super) circulation: Circulation,
    /// Failures in a row of making one ahead of time.
    pub(super) failures: u32,
    /// Nothing is made ahead of time for now.
    pub(super) backing_off: bool,
    /// For never used ones.
    pub(super) demand: Demand,
    /// A look at those that are too many is due.
    pub(super) evicting: bool,
    /// The backend cannot run this runtime; nothing is made ahead of time until it could.
    pub(super) unavailable: bool,
}

impl SubPool {
    /// Takes an idle sandbox for `tenant`, in this order of preference:
    /// - one that the tenant has used, so that unused ones are left for others; of these the latest one whose
    ///   interpreter is ready, because its pages are most likely in the caches, else the one that has waited longest;
    /// - for runtimes whose interpreters boot slowly, an unused one whose interpreter is ready comes before a used one
    ///   without;
    /// - an unused one, unless `spares_fresh` is set.
    ///
    /// Dead sandboxes are left to their watch.
    pub(super) fn pick(
        &mut self,
        tenant: &TenantId,
        boots_slowly: bool,
        spares_fresh: bool,
    ) -> Option<PooledSandbox> {
        let is_own = |(owner, warm): &(TenantId, IdleSandbox)| owner == tenant && warm.is_alive();
        let is_ready = |one: &(TenantId, IdleSandbox)| is_own(one) && one.1.is_prepared();
        let any_used =
            !boots_slowly || spares_fresh || !self.fresh.iter().any(IdleSandbox::is_ready);
        let ready = self.used.iter().rposition(is_ready);
        let oldest = || self.used.iter().position(is_own).filter(|_| any_used);
        if let Some(at) = ready.or_else(oldest) {
            return self.used.remove(at).map(|(_, warm)| warm.held);
        }
        if spares_fresh {
            return None;
        }
        self.pick_fresh()
    }

    /// A living sandbox that no tenant has used; one whose interpreter is there comes first.
    pub(super) fn pick_fresh(&mut self) -> Option<PooledSandbox> {
        self.demand.taken();
        let ready = self.fresh.iter().position(IdleSandbox::is_ready);
        let at = ready.or_else(|| self.fresh.iter().position(IdleSandbox::is_alive))?;
        self.fresh.remove(at).map(|warm| warm.held)
    }

    /// Takes out one sandbox by its name.
    pub(super) fn remove(&mut self, id: &SandboxId) -> Option<PooledSandbox> {
        let is_it = |warm: &IdleSandbox| warm.held.sandbox.id() == id;
        if let Some(at) = self.fresh.iter().position(is_it) {
            return self.fresh.remove(at).map(|warm| warm.held);
        }
        let at = self.used.iter().position(|(_, warm)| is_it(warm))?;
        self.used.remove(at).map(|(_, warm)| warm.held)
    }

    /// The sandbox that waits longest, of the used ones if there is any; `clean` of the fresh ones
    /// are not looked at.
    pub(super) fn oldest(&self, clean: usize) -> Option<&IdleSandbox> {
        let fresh = (self.fresh.len() > clean).then(|| self.fresh.front());
        let used = self.used.front().map(|(_, warm)| warm);
        used.or(fresh.flatten())
    }

    /// Takes that one out.
    pub(super) fn remove_oldest(&mut self, clean: usize) -> Option<PooledSandbox> {
        let id = self.oldest(clean)?.held.sandbox.id().clone();
        self.remove(&id)
    }

    /// How many there are beside `clean` fresh ones.
    pub(super) fn beside(&self, clean: usize) -> usize {
        self.used.len() + self.circulation.resets() + self.fresh.len().saturating_sub(clean)
    }

    /// Those that were not known to be well for this long, which are taken to be from now on.
    pub(super) fn due_for_check(&mut self, after: Duration) -> Vec<PooledSandbox> {
        let used = self.used.iter_mut().map(|(_, warm)| warm);
        let warm = self.fresh.iter_mut().chain(used);
        let due = warm.filter(|warm| warm.checked.elapsed() >= after);
        due.map(|warm| {
            warm.checked = Instant::now();
            warm.held.clone()
        })
        .collect()
    }

    /// Takes out the sandboxes of which this is so.
    pub(super) fn take_out(
        &mut self,
        unwanted: impl Fn(&PooledSandbox) -> bool,
    ) -> Vec<PooledSandbox> {
        let used = self.used.iter().map(|(_, warm)| warm);
        let held = self.fresh.iter().chain(used).map(|warm| &warm.held);
        let ids: Vec<_> = held
            .filter(|held| unwanted(held))
            .map(|held| held.sandbox.id().clone())
            .collect();
        ids.iter().filter_map(|id| self.remove(id)).collect()
    }

    /// Whether nothing waits here, nor is on its way.
    pub(super) fn is_idle(&self) -> bool {
        let waits = self.fresh.len() + self.used.len() + self.waiters.len();
        waits + self.under_way() == 0
    }

    /// Number of sandboxes being made or reset.
    pub(super) fn under_way(&self) -> usize {
        self.orders.len() + self.refilling + self.circulation.resets()
    }

    /// Whether one was made ahead of time within so many times the time that making one takes.
    pub(super) fn was_refilled_within(&self, makings: u32) -> bool {
        let pause = self.demand.making() * makings;
        self.refilled.is_some_and(|begun| begun.elapsed() < pause)
    }

    /// Takes out all sandboxes.
    pub(super) fn clear(&mut self) -> Vec<PooledSandbox> {
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

    /// Ends an order, with success or not; the answer is the ticket of its request.
    pub(super) fn close_order(&mut self, id: u64) -> Option<u64> {
        let at = self.orders.iter().position(|order| order.id == id)?;
        Some(self.orders.swap_remove(at).ticket)
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
