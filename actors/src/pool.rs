//! Sandboxes that wait for work: for ephemeral runs, and for new sessions.
//!
//! A request takes an idle sandbox. If there is none, the request waits for a used sandbox of its tenant or for one
//! that is made for it, depending on which is sooner (`supply.rs`), and takes the first that arrives. A used sandbox
//! never serves another tenant.

mod circulation;
mod config;
mod demand;
mod lease;
mod maintenance;
mod message;
mod processors;
mod sub_pool;
mod supply;
mod work;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

use actix::prelude::*;
use isol8_api::{Runtime, TenantId};
use isol8_backend::{Backend, BackendError, Sandbox};
use tokio::sync::oneshot;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tokio_util::task::AbortOnDropHandle;

use crate::run::SandboxHistory;
use crate::supervisor::{StateGuard, Supervised};
use crate::watch::DeathWatch;
pub use config::{Kind, PoolConfig, PoolSize, SandboxDefaults, Strategy};
use lease::Fate;
pub use lease::{Lease, PooledSandbox};
use message::{
    Acquire, Cleaned, Create, Created, Died, Evict, HealthCheck, Refill, Release, Removed, Retry,
    Supply,
};
pub use message::{Configure, Observe, PoolError, PoolState, Shutdown, SubPoolState, acquire};
pub use processors::{FixedProcessors, HostProcessors, Processors};
use sub_pool::{IdleSandbox, SubPool, Waiter};

/// The actor.
#[derive(Debug)]
pub struct Pool {
    backend: Arc<dyn Backend>,
    own: StateGuard<Self, ActorState>,
    /// Not a timer of the actor's context, which would keep the actor alive.
    _clock: AbortOnDropHandle<()>,
}

/// The state of a pool, which a restarted pool takes over.
#[derive(Debug, Default)]
struct ActorState {
    config: PoolConfig,
    sub_pools: BTreeMap<Kind, SubPool>,
    /// Number of the next request or order.
    next_number: u64,
    /// Leases count themselves.
    leased: Arc<AtomicUsize>,
    destroying: usize,
    /// As many waited as should, once.
    was_full: bool,
    /// Nothing is made ahead of time until [`Refill`] comes.
    refill_is_put_off: bool,
    /// A look at the requests that wait is due.
    looks_again: bool,
    /// Callers that wait for the end of the shutdown; `None` before the shutdown.
    draining: Option<Vec<oneshot::Sender<()>>>,
    /// Cancels creations and resets whose result can no longer be used.
    closing: CancellationToken,
}

impl Actor for Pool {
    type Context = Context<Self>;

    fn started(&mut self, _: &mut Self::Context) {
        self.reconcile();
    }
}

/// Starts a pool on the current arbiter, which fills itself. `restarts` counts the restarted actors.
pub fn start(
    backend: Arc<dyn Backend>,
    config: PoolConfig,
    restarts: Arc<AtomicU64>,
) -> Supervised<Pool> {
    let state = ActorState {
        config,
        ..ActorState::default()
    };
    Supervised::start("pool", restarts, state, move |own| {
        Pool::new(Arc::clone(&backend), own)
    })
}

impl Pool {
    fn new(backend: Arc<dyn Backend>, mut own: StateGuard<Self, ActorState>) -> Self {
        // Their timers ended with the actor that had set them.
        for sub_pool in own.sub_pools.values_mut() {
            sub_pool.backing_off = false;
            sub_pool.evicting = false;
        }
        own.refill_is_put_off = false;
        own.looks_again = false;
        let clock = maintenance::clock(own.handle());
        Self {
            backend,
            own,
            _clock: clock,
        }
    }

    fn sub_pool(&mut self, kind: &Kind) -> &mut SubPool {
        self.own.sub_pools.entry(kind.clone()).or_default()
    }

    /// Has a request wait for a sandbox.
    fn wait(&mut self, wanted: Acquire) {
        let kind = Kind::of(&wanted.spec);
        let waiter = Waiter {
            ticket: self.next_number(),
            wanted,
        };
        self.sub_pool(&kind).waiters.push_back(waiter);
        self.supply();
    }

    fn next_number(&mut self) -> u64 {
        self.own.next_number += 1;
        self.own.next_number
    }

    /// Hands a sandbox to whom it will serve, with the limits that were asked for.
    fn hand_out(&mut self, held: PooledSandbox, wanted: Acquire) {
        let tenant = wanted.tenant.clone();
        let sub_pool = self.sub_pool(&Kind::of(&held.spec));
        sub_pool.circulation.lend(&tenant);
        let lease = Lease::new(held, tenant, &self.own.leased, self.own.handle());
        if lease.held.spec.limits == wanted.spec.limits {
            // If the requester is gone, the lease returns the sandbox when it is dropped.
            let _ = wanted.reply.send(Ok(lease));
        } else {
            tokio::spawn(work::fit(lease, wanted, self.own.handle()));
        }
    }

    fn created(&mut self, created: Created) {
        let Created {
            made,
            spec,
            order,
            took,
        } = created;
        let kind = Kind::of(&spec);
        let sub_pool = self.sub_pool(&kind);
        let ticket = order.and_then(|id| sub_pool.close_order(id));
        if order.is_none() {
            sub_pool.refilling -= 1;
        }
        match made.and_then(alive) {
            Ok(sandbox) => {
                sub_pool.demand.made(took);
                sub_pool.failures = 0;
                sub_pool.unavailable = false;
                let memory = SandboxHistory::fresh();
                let held = PooledSandbox {
                    sandbox,
                    made: Instant::now(),
                    spec,
                    memory,
                };
                if order.is_none() && self.is_spared(&held) {
                    self.return_clean(held);
                } else {
                    self.offer(held, ticket, None);
                }
            }
            Err(error) if order.is_none() => self.back_off(&kind, &error),
            // Requests that counted on this sandbox have another one made.
            Err(error) => {
                if let Some(waiter) = ticket.and_then(|ticket| sub_pool.take_waiter(ticket)) {
                    waiter.refuse(error);
                }
            }
        }
        self.reconcile();
    }

    /// Hands a sandbox that has become free to a waiting request, or returns it to the idle sandboxes, or removes it.
    fn offer(&mut self, held: PooledSandbox, ticket: Option<u64>, owner: Option<TenantId>) {
        if self.own.draining.is_some() || held.sandbox.control().is_closed() {
            return self.destroy(held);
        }
        let waiter = self
            .sub_pool(&Kind::of(&held.spec))
            .waiter_for(&held, ticket, owner.as_ref());
        match (waiter, owner) {
            (Some(waiter), _) => self.hand_out(held, waiter),
            (None, None) => self.return_clean(held),
            (None, Some(owner)) => self.shelve_used(held, owner),
        }
    }

    /// Whether a sandbox that was made ahead of time is left to tenants that have none: all requests that wait
    /// have other sandboxes to wait for.
    fn is_spared(&self, held: &PooledSandbox) -> bool {
        let Some(sub_pool) = self.own.sub_pools.get(&Kind::of(&held.spec)) else {
            return false;
        };
        let mut waiters = sub_pool.waiters.iter().map(|waiter| &waiter.wanted);
        self.own.draining.is_none()
            && !held.sandbox.control().is_closed()
            && waiters.all(|wanted| self.waits_for_used(&wanted.spec, &wanted.tenant))
    }

    fn return_clean(&mut self, held: PooledSandbox) {
        if !self.own.config.sandbox.sizes_fit(&held.spec) {
            return self.destroy(held);
        }
        let kind = Kind::of(&held.spec);
        let warm = self.watched(held);
        self.sub_pool(&kind).fresh.push_back(warm);
        self.evict(&kind);
    }

    fn shelve_used(&mut self, held: PooledSandbox, owner: TenantId) {
        let kind = Kind::of(&held.spec);
        let warm = self.watched(held);
        self.sub_pool(&kind).used.push_back((owner, warm));
        self.evict(&kind);
    }

    /// Starts to watch an idle sandbox for its death.
    fn watched(&self, held: PooledSandbox) -> IdleSandbox {
        let (kind, id) = (Kind::of(&held.spec), held.sandbox.id().clone());
        let pool = self.own.handle();
        let watch = DeathWatch::new(held.sandbox.control(), move |reason| {
            pool.do_send(Died { kind, id, reason });
        });
        IdleSandbox {
            held,
            since: Instant::now(),
            checked: Instant::now(),
            _watch: watch,
        }
    }

    /// Makes a used sandbox as new, in the background.
    fn clean(&mut self, held: PooledSandbox, owner: TenantId) {
        let kind = Kind::of(&held.spec);
        self.sub_pool(&kind).circulation.begin_reset(&owner);
        self.evict(&kind);
        self.reset(held, owner);
    }

    /// Whether a sandbox may serve its tenant again.
    fn is_reusable(&self, held: &PooledSandbox, tenant: &TenantId) -> bool {
        self.may_reuse(&held.spec)
            && !held.spec.single_use
            && self.own.draining.is_none()
            && self.is_wanted(held, tenant)
            && !held.sandbox.control().is_closed()
    }

    /// Whether there is room for one more used sandbox, or a request of its tenant waits for it.
    fn is_wanted(&self, held: &PooledSandbox, tenant: &TenantId) -> bool {
        let kind = Kind::of(&held.spec);
        let Some(sub_pool) = self.own.sub_pools.get(&kind) else {
            return true;
        };
        let room = 2 * self.own.config.size_of(&kind).dirty;
        let waiters = sub_pool.waiters.iter();
        let waiting = waiters.filter(|waiter| waiter.wanted.tenant == *tenant);
        sub_pool.circulation.resets() < room
            || sub_pool.circulation.resets_of(tenant) < waiting.count()
    }

    /// Brings the pool to its target state after a change: refills idle sandboxes, or ends the shutdown.
    fn reconcile(&mut self) {
        let own = &mut *self.own;
        // Clients that may name images name many.
        let images = &own.config.images;
        own.sub_pools.retain(|kind, sub_pool| {
            kind.image.is_none() || images.contains_key(kind) || !sub_pool.is_idle()
        });
        let Some(waiting) = &mut own.draining else {
            self.supply();
            self.refill();
            self.own.was_full = self.own.was_full || self.is_full();
            return;
        };
        let idle = |sub_pool: &SubPool| sub_pool.under_way() == 0;
        let leased = own.leased.load(Ordering::Acquire);
        if leased + own.destroying == 0 && own.sub_pools.values().all(idle) {
            for reply in waiting.drain(..) {
                // Ignore a closed channel: the caller has gone.
                let _ = reply.send(());
            }
        }
    }
}

/// A sandbox that did not outlive its making was not made.
fn alive(sandbox: Arc<dyn Sandbox>) -> Result<Arc<dyn Sandbox>, PoolError> {
    if sandbox.control().is_closed() {
        let error = BackendError::Create("it died at once".to_owned());
        return Err(PoolError::Backend(Arc::new(error)));
    }
    Ok(sandbox)
}

impl Handler<Acquire> for Pool {
    type Result = ();

    fn handle(&mut self, wanted: Acquire, _: &mut Self::Context) {
        if self.own.draining.is_some() {
            return wanted.refuse(PoolError::Closed);
        }
        let fits = self.own.config.sandbox.sizes_fit(&wanted.spec);
        let runtime = wanted.spec.runtime;
        // Python's are forked, and bash is there at once.
        let boots_slowly = !matches!(runtime, Runtime::Python | Runtime::Bash);
        let spares_fresh = self.waits_for_used(&wanted.spec, &wanted.tenant);
        let sub_pool = self.sub_pool(&Kind::of(&wanted.spec));
        let picked = fits.then(|| sub_pool.pick(&wanted.tenant, boots_slowly, spares_fresh));
        match picked.flatten() {
            Some(held) => {
                self.hand_out(held, wanted);
                self.refill_later();
            }
            None => {
                self.wait(wanted);
                self.refill();
            }
        }
    }
}

impl Handler<Created> for Pool {
    type Result = ();

    fn handle(&mut self, created: Created, _: &mut Self::Context) {
        self.created(created);
    }
}

impl Handler<Cleaned> for Pool {
    type Result = ();

    fn handle(&mut self, cleaned: Cleaned, _: &mut Self::Context) {
        let Cleaned {
            cleaned,
            held,
            owner,
            took,
        } = cleaned;
        let sub_pool = self.sub_pool(&Kind::of(&held.spec));
        let took = cleaned.is_ok().then_some(took);
        sub_pool.circulation.end_reset(&owner, took);
        match cleaned {
            Ok(clean) => self.offer(clean, None, Some(owner)),
            Err(reason) => {
                log::warn!(sandbox:% = held.sandbox.id(), reason:%; "sandbox was not reset");
                self.destroy(held);
            }
        }
        self.reconcile();
    }
}

impl Handler<Removed> for Pool {
    type Result = ();

    fn handle(&mut self, _: Removed, _: &mut Self::Context) {
        self.own.destroying -= 1;
        self.reconcile();
    }
}

impl Handler<Evict> for Pool {
    type Result = ();

    fn handle(&mut self, Evict(kind): Evict, _: &mut Self::Context) {
        self.sub_pool(&kind).evicting = false;
        self.evict(&kind);
    }
}

impl Handler<Refill> for Pool {
    type Result = ();

    fn handle(&mut self, _: Refill, _: &mut Self::Context) {
        self.own.refill_is_put_off = false;
        self.reconcile();
    }
}

impl Handler<Supply> for Pool {
    type Result = ();

    fn handle(&mut self, _: Supply, _: &mut Self::Context) {
        self.own.looks_again = false;
        self.supply();
    }
}

impl Handler<HealthCheck> for Pool {
    type Result = ();

    fn handle(&mut self, _: HealthCheck, _: &mut Self::Context) {
        self.maintain();
    }
}

impl Handler<Retry> for Pool {
    type Result = ();

    fn handle(&mut self, Retry(kind): Retry, _: &mut Self::Context) {
        self.sub_pool(&kind).backing_off = false;
        self.reconcile();
    }
}

impl Handler<Create> for Pool {
    type Result = ();

    fn handle(&mut self, Create(wanted): Create, _: &mut Self::Context) {
        if self.own.draining.is_some() {
            return wanted.refuse(PoolError::Closed);
        }
        self.wait(wanted);
    }
}

impl Handler<Release> for Pool {
    type Result = ();

    fn handle(&mut self, released: Release, _: &mut Self::Context) {
        let Release { held, tenant, fate } = released;
        let sub_pool = self.sub_pool(&Kind::of(&held.spec));
        sub_pool.circulation.give_back(&tenant);
        match fate {
            Fate::Taken => {}
            Fate::Return if self.is_reusable(&held, &tenant) => self.clean(held, tenant),
            Fate::Return | Fate::Discard => self.destroy(held),
        }
        self.reconcile();
    }
}

impl Handler<Died> for Pool {
    type Result = ();

    fn handle(&mut self, died: Died, _: &mut Self::Context) {
        // A sandbox that was handed out meanwhile is not here; its user notices the death.
        if let Some(held) = self.sub_pool(&died.kind).remove(&died.id) {
            log::warn!(sandbox:% = died.id, reason:% = died.reason; "waiting sandbox died");
            self.destroy(held);
        }
        self.reconcile();
    }
}

impl Handler<Shutdown> for Pool {
    type Result = ResponseFuture<()>;

    fn handle(&mut self, _: Shutdown, _: &mut Self::Context) -> Self::Result {
        let (reply, done) = oneshot::channel();
        self.own.draining.get_or_insert_default().push(reply);
        self.own.closing.cancel();
        let mut left = Vec::new();
        for sub_pool in self.own.sub_pools.values_mut() {
            for waiter in sub_pool.waiters.drain(..) {
                waiter.wanted.refuse(PoolError::Closed);
            }
            left.extend(sub_pool.clear());
        }
        for held in left {
            self.destroy(held);
        }
        self.reconcile();
        // A pool that is gone has shut down.
        Box::pin(async { done.await.unwrap_or_default() })
    }
}

impl Handler<Configure> for Pool {
    type Result = ();

    fn handle(&mut self, Configure(config): Configure, _: &mut Self::Context) {
        self.own.config = config;
        let kinds: Vec<_> = self.own.sub_pools.keys().cloned().collect();
        for kind in &kinds {
            let sandbox = self.own.config.sandbox;
            let misfits = self
                .sub_pool(kind)
                .take_out(|held| !sandbox.sizes_fit(&held.spec));
            for held in misfits {
                self.destroy(held);
            }
            self.sub_pool(kind).backing_off = false;
            self.evict(kind);
        }
        self.reconcile();
    }
}

impl Handler<Observe> for Pool {
    type Result = PoolState;

    fn handle(&mut self, _: Observe, _: &mut Self::Context) -> PoolState {
        let state = |sub_pool: &SubPool| SubPoolState {
            clean: sub_pool.fresh.len(),
            used: sub_pool.used.len(),
            cleaning: sub_pool.circulation.resets(),
            creating: sub_pool.orders.len() + sub_pool.refilling,
            waiting: sub_pool.waiters.len(),
            failures: sub_pool.failures,
            unavailable: sub_pool.unavailable,
        };
        let mut runtimes = BTreeMap::new();
        let mut images = BTreeMap::new();
        for (kind, sub_pool) in &self.own.sub_pools {
            match &kind.image {
                None => drop(runtimes.insert(kind.runtime, state(sub_pool))),
                Some(image) => drop(images.insert(image.clone(), state(sub_pool))),
            }
        }
        PoolState {
            runtimes,
            images,
            leased: self.own.leased.load(Ordering::Acquire),
            destroying: self.own.destroying,
            was_full: self.own.was_full,
            draining: self.own.draining.is_some(),
        }
    }
}
