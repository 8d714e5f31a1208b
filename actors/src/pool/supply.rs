//! Decides for which waiting requests new sandboxes are created.
//!
//! Creating a sandbox costs several times as much processor time as resetting a used one. So a request waits for a used
//! sandbox of its tenant in two cases. The first is that a reset is expected to end sooner than a creation would. The
//! second is a busy machine on which enough sandboxes of the tenant are in circulation: another creation would only
//! slow down their resets. The number of concurrent creations depends on the idle processors.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use isol8_api::TenantId;
use isol8_backend::SandboxSpec;
use tokio::time::Instant;

use super::message::{Acquire, Supply};
use super::processors::is_busy;
use super::sub_pool::{PendingCreate, Sizes, SubPool, Waiter, sizes};
use super::{Kind, Pool, Strategy};

/// Pause between two checks of the waiting requests. Other events cause further checks.
const SUPPLY_INTERVAL: Duration = Duration::from_millis(10);

/// Highest number of concurrent creations for each processor of a machine that is not busy. A busy machine creates half
/// as many.
const CREATES_PER_PROCESSOR: usize = 2;

/// A creation that takes this many times as long as usual is overdue, and is not counted on any longer.
const OVERDUE_FACTOR: u32 = 4;

/// Sandboxes of one tenant that keep one processor busy: while one runs, another is reset.
const SATURATING_PER_PROCESSOR: usize = 2;

/// Shortest time after which a creation is overdue.
const MIN_OVERDUE: Duration = Duration::from_secs(1);

/// Facts that decide whether a request is served by a used sandbox.
struct SupplyPlan<'a> {
    sub_pool: &'a SubPool,
    busy: bool,
    /// Sandboxes of one tenant that can keep the machine busy.
    saturating: usize,
    /// Tickets of the requests that have a pending creation which is not overdue.
    tickets: BTreeSet<u64>,
    /// Sizes of pending creations that are not overdue and whose requests were served by other sandboxes.
    open: Vec<Sizes>,
    /// Number of requests of each tenant that count on its used sandboxes.
    counting: BTreeMap<&'a TenantId, usize>,
}

impl Pool {
    /// Starts creations for the waiting requests that no other sandbox will serve.
    pub(super) fn supply(&mut self) {
        if self.state.draining.is_some() {
            return;
        }
        let mut kinds = Vec::new();
        for (kind, sub_pool) in &mut self.state.sub_pools {
            sub_pool.forget_gone();
            if !sub_pool.waiters.is_empty() {
                kinds.push(kind.clone());
            }
        }
        if kinds.is_empty() {
            return;
        }
        let busy = is_busy(&*self.state.config.processors);
        let mut room = self.room(busy);
        for kind in kinds {
            for (ticket, spec) in self.unserved(&kind, busy) {
                if !self.give_clean(ticket, &spec) && room > 0 {
                    room -= 1;
                    self.create_for(ticket, spec);
                }
            }
        }
        if !std::mem::replace(&mut self.state.supply_is_scheduled, true) {
            self.later(SUPPLY_INTERVAL, Supply);
        }
    }

    /// Returns how many more creations may be started. Overdue creations do not count, because they may hang.
    fn room(&self, busy: bool) -> usize {
        let processors = self.state.config.processors.count().max(1);
        let max = match busy {
            true => processors,
            false => processors * CREATES_PER_PROCESSOR,
        };
        let sub_pools = self.state.sub_pools.values();
        let creating =
            sub_pools.map(|sub_pool| sub_pool.refilling + recent_creates(sub_pool).count());
        max.saturating_sub(creating.sum())
    }

    /// Returns whether a tenant's requests should wait for its used sandboxes: the machine is busy, and enough of them
    /// are in circulation to keep it busy. Clean sandboxes are left to tenants that have none, because each one that is
    /// taken has to be replaced.
    pub(super) fn waits_for_used(&self, spec: &SandboxSpec, tenant: &TenantId) -> bool {
        let processors = &*self.state.config.processors;
        let Some(sub_pool) = self.state.sub_pools.get(&Kind::of(spec)) else {
            return false;
        };
        let circulation = &sub_pool.circulation;
        circulation.count(tenant) >= saturating_count(processors.count())
            && is_busy(processors)
            && self.may_reuse(spec)
            && circulation.is_circulating(tenant, sub_pool.demand.create_time())
    }

    /// Hands an idle clean sandbox to the request of a ticket. Returns whether there was one.
    fn give_clean(&mut self, ticket: u64, spec: &SandboxSpec) -> bool {
        if !self.state.config.sandbox.sizes_fit(spec) {
            return false;
        }
        let sub_pool = self.sub_pool(&Kind::of(spec));
        let Some(held) = sub_pool.pick_clean() else {
            return false;
        };
        match sub_pool.take_waiter(ticket) {
            Some(waiter) => self.hand_out(held, waiter),
            None => self.return_clean(held),
        }
        true
    }

    /// Returns the requests of one kind that need a new sandbox. Requests of tenants that have no sandbox of this kind
    /// come first.
    fn unserved(&self, kind: &Kind, busy: bool) -> Vec<(u64, SandboxSpec)> {
        let Some(sub_pool) = self.state.sub_pools.get(kind) else {
            return Vec::new();
        };
        let mut plan = SupplyPlan::new(sub_pool, busy, self.state.config.processors.count());
        let unserved = sub_pool.waiters.iter().filter(|waiter| {
            let may_reuse = self.may_reuse(&waiter.wanted.spec);
            !plan.is_served(waiter, may_reuse)
        });
        let mut unserved: Vec<_> = unserved.collect();
        unserved.sort_by_key(|waiter| sub_pool.circulation.count(&waiter.wanted.tenant) > 0);
        // If every creation hangs, a limited number of further creations is tried.
        let max = sub_pool.waiters.len() + self.state.config.refill_width;
        let room = max.saturating_sub(sub_pool.pending_creates.len());
        let chosen = unserved.into_iter().take(room);
        chosen
            .map(|waiter| (waiter.ticket, waiter.wanted.spec.clone()))
            .collect()
    }

    /// Returns whether a sandbox that the same tenant has used may serve such a request.
    pub(super) fn may_reuse(&self, spec: &SandboxSpec) -> bool {
        let config = &self.state.config;
        config.strategy == Strategy::Fast
            && config.size_of(&Kind::of(spec)).dirty > 0
            && config.sandbox.sizes_fit(spec)
    }

    /// Starts to create a sandbox for the request of a ticket.
    fn create_for(&mut self, ticket: u64, spec: SandboxSpec) {
        let id = self.next_number();
        let pending = PendingCreate {
            id,
            ticket,
            sizes: sizes(&spec),
            started: Instant::now(),
        };
        self.sub_pool(&Kind::of(&spec))
            .pending_creates
            .push(pending);
        self.create(spec, Some(id));
    }
}

impl<'a> SupplyPlan<'a> {
    fn new(sub_pool: &'a SubPool, busy: bool, processors: usize) -> Self {
        let waiting: BTreeSet<u64> = sub_pool
            .waiters
            .iter()
            .map(|waiter| waiter.ticket)
            .collect();
        let open = recent_creates(sub_pool).filter(|pending| !waiting.contains(&pending.ticket));
        Self {
            sub_pool,
            busy,
            saturating: saturating_count(processors),
            tickets: recent_creates(sub_pool)
                .map(|pending| pending.ticket)
                .collect(),
            open: open.map(|pending| pending.sizes).collect(),
            counting: BTreeMap::new(),
        }
    }

    /// Returns whether a sandbox that exists, or is being created, will serve the request. Must be called for the
    /// requests in their order.
    fn is_served(&mut self, waiter: &'a Waiter, may_reuse: bool) -> bool {
        if self.tickets.contains(&waiter.ticket) {
            return true;
        }
        let Acquire { tenant, spec, .. } = &waiter.wanted;
        if let Some(at) = self.open.iter().position(|open| *open == sizes(spec)) {
            self.open.swap_remove(at);
            return true;
        }
        let ahead = self.counting.get(tenant).copied().unwrap_or_default();
        let making = self.sub_pool.demand.create_time();
        let circulation = &self.sub_pool.circulation;
        let counts_on_used = may_reuse
            && (circulation.reset_is_sooner(tenant, ahead, making)
                || self.is_machine_full(tenant) && circulation.is_circulating(tenant, making));
        self.counting
            .insert(tenant, ahead + usize::from(counts_on_used));
        counts_on_used
    }

    /// Returns whether more sandboxes of a tenant would only slow down those that it has.
    fn is_machine_full(&self, tenant: &TenantId) -> bool {
        self.busy && self.sub_pool.circulation.count(tenant) >= self.saturating
    }
}

/// Returns the number of sandboxes of one tenant that can keep this many processors busy.
fn saturating_count(processors: usize) -> usize {
    processors.max(1) * SATURATING_PER_PROCESSOR
}

/// Returns the pending creations that are not overdue.
fn recent_creates(sub_pool: &SubPool) -> impl Iterator<Item = &PendingCreate> {
    let overdue = MIN_OVERDUE.max(sub_pool.demand.create_time() * OVERDUE_FACTOR);
    let pending_creates = sub_pool.pending_creates.iter();
    pending_creates.filter(move |pending| pending.started.elapsed() < overdue)
}
