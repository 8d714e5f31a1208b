//! Decides which waiting requests have a sandbox made for them.
//!
//! Making a sandbox costs several times as much processor time as resetting a used one. So a request waits for a
//! used sandbox of its tenant if that is sooner: if the reset of one ends before a new one would be made, and on a
//! busy machine as long as enough of the tenant's sandboxes go round, because making another one would only slow
//! down the resets. How many are made at once depends on what the machine has left.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use isol8_api::TenantId;
use isol8_backend::SandboxSpec;
use tokio::time::Instant;

use super::message::{Acquire, Supply};
use super::sub_pool::{PendingCreate, Sizes, SubPool, Waiter, sizes};
use super::{Kind, Pool, Processors, Strategy};

/// Pause between two looks at the requests that wait; other events bring further looks.
const LOOK_AGAIN: Duration = Duration::from_millis(10);

/// Idle processors below which the machine counts as busy.
const BUSY_BELOW: f64 = 0.3;

/// Sandboxes that may be made for requests at once, for each processor of a machine that is not busy; on a busy
/// one it is half as many.
const MADE_PER_PROCESSOR: usize = 2;

/// A sandbox whose making takes this many times as long as usual is not counted on any longer.
const OVERDUE_FACTOR: u32 = 4;

/// Sandboxes of a tenant, for each processor, that can keep a machine busy: while one runs, another is reset.
const ENOUGH_PER_PROCESSOR: usize = 2;

/// Shortest time after which the making of a sandbox is overdue.
const LEAST_OVERDUE: Duration = Duration::from_secs(1);

/// Facts that decide whether a request is served by a used sandbox.
struct Outlook<'a> {
    sub_pool: &'a SubPool,
    busy: bool,
    /// Sandboxes of one tenant that can keep the machine busy.
    enough: usize,
    /// Young orders by the ticket of their request.
    tickets: BTreeSet<u64>,
    /// Sizes of young orders whose requests were served by other sandboxes.
    open: Vec<Sizes>,
    /// Requests of each tenant that count on its used sandboxes.
    counting: BTreeMap<&'a TenantId, usize>,
}

impl Pool {
    /// Has sandboxes made for requests that wait and that nothing else will serve.
    pub(super) fn supply(&mut self) {
        if self.own.draining.is_some() {
            return;
        }
        let mut kinds = Vec::new();
        for (kind, sub_pool) in &mut self.own.sub_pools {
            sub_pool.forget_gone();
            if !sub_pool.waiters.is_empty() {
                kinds.push(kind.clone());
            }
        }
        if kinds.is_empty() {
            return;
        }
        let busy = is_busy(&*self.own.config.processors);
        let mut room = self.room(busy);
        for kind in kinds {
            for (ticket, spec) in self.unserved(&kind, busy) {
                if !self.give_fresh(ticket, &spec) && room > 0 {
                    room -= 1;
                    self.order(ticket, spec);
                }
            }
        }
        if !std::mem::replace(&mut self.own.looks_again, true) {
            self.later(LOOK_AGAIN, Supply);
        }
    }

    /// How many more sandboxes may be made at once. Those that are overdue do not count: they may hang.
    fn room(&self, busy: bool) -> usize {
        let processors = self.own.config.processors.count().max(1);
        let most = match busy {
            true => processors,
            false => processors * MADE_PER_PROCESSOR,
        };
        let sub_pools = self.own.sub_pools.values();
        let made = sub_pools.map(|sub_pool| sub_pool.refilling + young_orders(sub_pool).count());
        most.saturating_sub(made.sum())
    }

    /// Whether a tenant's requests should wait for its used sandboxes: the machine is busy, and enough of them go
    /// round to keep it so. Fresh ones are left to tenants that have none, because each that is taken has to be
    /// made again.
    pub(super) fn waits_for_used(&self, spec: &SandboxSpec, tenant: &TenantId) -> bool {
        let processors = &*self.own.config.processors;
        let Some(sub_pool) = self.own.sub_pools.get(&Kind::of(spec)) else {
            return false;
        };
        let circulation = &sub_pool.circulation;
        circulation.count(tenant) >= enough(processors.count())
            && is_busy(processors)
            && self.may_reuse(spec)
            && circulation.goes_round(tenant, sub_pool.demand.making())
    }

    /// Hands a fresh sandbox that waits to the request of a ticket, if there is one.
    fn give_fresh(&mut self, ticket: u64, spec: &SandboxSpec) -> bool {
        if !self.own.config.sandbox.sizes_fit(spec) {
            return false;
        }
        let sub_pool = self.sub_pool(&Kind::of(spec));
        let Some(held) = sub_pool.pick_fresh() else {
            return false;
        };
        match sub_pool.take_waiter(ticket) {
            Some(waiter) => self.hand_out(held, waiter),
            None => self.return_clean(held),
        }
        true
    }

    /// The requests of one kind that need a sandbox made for them. Requests of tenants that have no sandbox here
    /// come first.
    fn unserved(&self, kind: &Kind, busy: bool) -> Vec<(u64, SandboxSpec)> {
        let Some(sub_pool) = self.own.sub_pools.get(kind) else {
            return Vec::new();
        };
        let mut outlook = Outlook::new(sub_pool, busy, self.own.config.processors.count());
        let unserved = sub_pool.waiters.iter().filter(|waiter| {
            let may_reuse = self.may_reuse(&waiter.wanted.spec);
            !outlook.is_served(waiter, may_reuse)
        });
        let mut unserved: Vec<_> = unserved.collect();
        unserved.sort_by_key(|waiter| sub_pool.circulation.count(&waiter.wanted.tenant) > 0);
        // If every creation hangs, a few more are tried, but not without end.
        let most = sub_pool.waiters.len() + self.own.config.refill_width;
        let room = most.saturating_sub(sub_pool.orders.len());
        let chosen = unserved.into_iter().take(room);
        chosen
            .map(|waiter| (waiter.ticket, waiter.wanted.spec.clone()))
            .collect()
    }

    /// Whether a sandbox that was used by the same tenant may serve such a request.
    pub(super) fn may_reuse(&self, spec: &SandboxSpec) -> bool {
        let config = &self.own.config;
        config.strategy == Strategy::Fast
            && config.size_of(&Kind::of(spec)).dirty > 0
            && config.sandbox.sizes_fit(spec)
    }

    /// Begins to make a sandbox for the request of a ticket.
    fn order(&mut self, ticket: u64, spec: SandboxSpec) {
        let id = self.next_number();
        let order = PendingCreate {
            id,
            ticket,
            sizes: sizes(&spec),
            begun: Instant::now(),
        };
        self.sub_pool(&Kind::of(&spec)).orders.push(order);
        self.create(spec, Some(id));
    }
}

impl<'a> Outlook<'a> {
    fn new(sub_pool: &'a SubPool, busy: bool, processors: usize) -> Self {
        let waiting: BTreeSet<u64> = sub_pool
            .waiters
            .iter()
            .map(|waiter| waiter.ticket)
            .collect();
        let open = young_orders(sub_pool).filter(|order| !waiting.contains(&order.ticket));
        Self {
            sub_pool,
            busy,
            enough: enough(processors),
            tickets: young_orders(sub_pool).map(|order| order.ticket).collect(),
            open: open.map(|order| order.sizes).collect(),
            counting: BTreeMap::new(),
        }
    }

    /// Whether a sandbox that exists, or is being made, will serve the request; the requests before it were
    /// looked at already.
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
        let making = self.sub_pool.demand.making();
        let circulation = &self.sub_pool.circulation;
        let counts_on_used = may_reuse
            && (circulation.is_sooner(tenant, ahead, making)
                || self.is_machine_full(tenant) && circulation.goes_round(tenant, making));
        self.counting
            .insert(tenant, ahead + usize::from(counts_on_used));
        counts_on_used
    }

    /// Whether more sandboxes of a tenant would only slow down those that it has.
    fn is_machine_full(&self, tenant: &TenantId) -> bool {
        self.busy && self.sub_pool.circulation.count(tenant) >= self.enough
    }
}

/// Sandboxes of one tenant that can keep so many processors busy.
fn enough(processors: usize) -> usize {
    processors.max(1) * ENOUGH_PER_PROCESSOR
}

/// Whether no processor has time left.
pub(super) fn is_busy(processors: &dyn Processors) -> bool {
    processors.idle() < BUSY_BELOW
}

/// The sandboxes being made for requests that are not overdue.
fn young_orders(sub_pool: &SubPool) -> impl Iterator<Item = &PendingCreate> {
    let overdue = LEAST_OVERDUE.max(sub_pool.demand.making() * OVERDUE_FACTOR);
    let orders = sub_pool.orders.iter();
    orders.filter(move |order| order.begun.elapsed() < overdue)
}
