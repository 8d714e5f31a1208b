//! The pool: idle sandboxes for ephemeral runs and for new sessions.
//!
//! A request takes an idle sandbox. If none is idle, the request waits for a used sandbox of its tenant or for a new
//! sandbox, depending on which is expected sooner (`supply.rs`), and takes the first that becomes free. A used sandbox
//! never serves another tenant.
//!
//! `supply.rs`, `maintenance.rs` and `work.rs` hold further methods of [`Pool`]. These files import the type from here,
//! and this file imports nothing from them, so that no two files import each other.

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
use isol8_api::TenantId;
use isol8_backend::{Backend, BackendError, Sandbox, SandboxSpec};
use tokio::sync::oneshot;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tokio_util::task::AbortOnDropHandle;

use crate::sandbox::{PooledSandbox, SandboxHistory};
use crate::supervisor::{ATTEMPTS, StateGuard, Supervised};
use crate::watch::DeathWatch;
pub use config::{Kind, PoolConfig, PoolSize, SandboxDefaults, Strategy};
pub use lease::Lease;
use lease::{Fate, Release};
use message::{
    Acquire, Create, Created, Died, Evict, HealthCheck, Refill, Removed, ResetEnded, Retry, Supply,
};
pub use message::{Configure, Observe, PoolError, PoolState, Shutdown, SubPoolState};
pub use processors::{FixedProcessors, HostProcessors, Processors};
use sub_pool::{IdleSandbox, SubPool, Waiter};

/// The actor.
#[derive(Debug)]
pub struct Pool {
    backend: Arc<dyn Backend>,
    state: StateGuard<Self, ActorState>,
    /// Not a timer of the actor's context, which would keep the actor alive.
    _clock: AbortOnDropHandle<()>,
}

/// The state of a pool, which a restarted pool takes over.
#[derive(Debug, Default)]
struct ActorState {
    config: PoolConfig,
    sub_pools: BTreeMap<Kind, SubPool>,
    /// Number of the last request or pending creation.
    next_number: u64,
    /// Number of leases; each lease counts itself.
    leased: Arc<AtomicUsize>,
    destroying: usize,
    /// Set once as many sandboxes have been idle as configured.
    was_full: bool,
    /// No sandbox is created ahead of time until `Refill` arrives.
    refill_is_delayed: bool,
    /// A `Supply` message is under way.
    supply_is_scheduled: bool,
    /// Callers that wait for the end of the shutdown; `None` before a shutdown.
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

/// Starts a pool on the current arbiter, which creates its idle sandboxes. `restarts` counts the restarts.
pub fn start(
    backend: Arc<dyn Backend>,
    config: PoolConfig,
    restarts: Arc<AtomicU64>,
) -> Supervised<Pool> {
    let state = ActorState {
        config,
        ..ActorState::default()
    };
    Supervised::start("pool", restarts, state, move |state| {
        Pool::new(Arc::clone(&backend), state)
    })
}

/// Takes a sandbox for `tenant` out of the pool. Dropping the future cancels the request, and returns a sandbox that
/// was already on its way.
///
/// # Errors
/// Any [`PoolError`].
pub async fn acquire(
    pool: &Supervised<Pool>,
    tenant: TenantId,
    spec: SandboxSpec,
) -> Result<Lease, PoolError> {
    for _ in 0..ATTEMPTS {
        let (reply, answer) = oneshot::channel();
        pool.do_send(Acquire {
            tenant: tenant.clone(),
            spec: spec.clone(),
            reply,
        });
        // Without an answer the pool has panicked over this request or an earlier one, or has ended.
        if let Ok(answer) = answer.await {
            return answer;
        }
    }
    Err(PoolError::Closed)
}

impl Pool {
    fn new(backend: Arc<dyn Backend>, mut state: StateGuard<Self, ActorState>) -> Self {
        // The timers ended with the actor that had set them.
        for sub_pool in state.sub_pools.values_mut() {
            sub_pool.backing_off = false;
            sub_pool.eviction_is_scheduled = false;
        }
        state.refill_is_delayed = false;
        state.supply_is_scheduled = false;
        let clock = Self::start_clock(state.handle());
        Self {
            backend,
            state,
            _clock: clock,
        }
    }

    fn sub_pool(&mut self, kind: &Kind) -> &mut SubPool {
        self.state.sub_pools.entry(kind.clone()).or_default()
    }

    /// Queues a request until it has a sandbox.
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
        self.state.next_number += 1;
        self.state.next_number
    }

    /// Hands a sandbox to a request, with the limits that the request asks for.
    fn hand_out(&mut self, held: PooledSandbox, wanted: Acquire) {
        let tenant = wanted.tenant.clone();
        let sub_pool = self.sub_pool(&Kind::of(&held.spec));
        sub_pool.circulation.lend(&tenant);
        let lease = Lease::new(
            held,
            tenant,
            &self.state.leased,
            self.state.handle().recipient(),
        );
        if lease.held.spec.limits == wanted.spec.limits {
            // If the requester is gone, the lease returns the sandbox when it is dropped.
            let _ = wanted.reply.send(Ok(lease));
        } else {
            tokio::spawn(Self::apply_limits(lease, wanted, self.state.handle()));
        }
    }

    fn created(&mut self, created: Created) {
        let Created {
            made,
            spec,
            pending,
            took,
        } = created;
        let kind = Kind::of(&spec);
        let sub_pool = self.sub_pool(&kind);
        let ticket = pending.and_then(|id| sub_pool.finish_create(id));
        if pending.is_none() {
            sub_pool.refilling -= 1;
        }
        match made.and_then(check_alive) {
            Ok(sandbox) => {
                sub_pool.demand.note_created(took);
                sub_pool.failures = 0;
                sub_pool.unavailable = false;
                let history = SandboxHistory::unused();
                let held = PooledSandbox {
                    sandbox,
                    made: Instant::now(),
                    spec,
                    history,
                };
                if pending.is_none() && self.is_spared(&held) {
                    self.return_clean(held);
                } else {
                    self.offer(held, ticket, None);
                }
            }
            Err(error) if pending.is_none() => self.back_off(&kind, &error),
            // If the request has another sandbox already, the next `supply` serves the requests that counted on this
            // one.
            Err(error) => {
                if let Some(waiter) = ticket.and_then(|ticket| sub_pool.take_waiter(ticket)) {
                    waiter.refuse(error);
                }
            }
        }
        self.reconcile();
    }

    /// Hands a sandbox that has become free to a waiting request. If none waits for it, the sandbox becomes idle or is
    /// removed.
    fn offer(&mut self, held: PooledSandbox, ticket: Option<u64>, owner: Option<TenantId>) {
        if self.state.draining.is_some() || held.sandbox.control().is_closed() {
            return self.destroy(held);
        }
        let waiter = self
            .sub_pool(&Kind::of(&held.spec))
            .waiter_for(&held, ticket, owner.as_ref());
        match (waiter, owner) {
            (Some(waiter), _) => self.hand_out(held, waiter),
            (None, None) => self.return_clean(held),
            (None, Some(owner)) => self.return_dirty(held, owner),
        }
    }

    /// Returns whether a sandbox that was created ahead of time is kept for tenants that have none, because all waiting
    /// requests have used sandboxes to wait for.
    fn is_spared(&self, held: &PooledSandbox) -> bool {
        let Some(sub_pool) = self.state.sub_pools.get(&Kind::of(&held.spec)) else {
            return false;
        };
        let mut waiters = sub_pool.waiters.iter().map(|waiter| &waiter.wanted);
        self.state.draining.is_none()
            && !held.sandbox.control().is_closed()
            && waiters.all(|wanted| self.waits_for_used(&wanted.spec, &wanted.tenant))
    }

    fn return_clean(&mut self, held: PooledSandbox) {
        if !self.state.config.sandbox.sizes_fit(&held.spec) {
            return self.destroy(held);
        }
        let kind = Kind::of(&held.spec);
        let idle = self.watched(held);
        self.sub_pool(&kind).clean.push_back(idle);
        self.evict(&kind);
    }

    fn return_dirty(&mut self, held: PooledSandbox, owner: TenantId) {
        let kind = Kind::of(&held.spec);
        let idle = self.watched(held);
        self.sub_pool(&kind).dirty.push_back((owner, idle));
        self.evict(&kind);
    }

    /// Starts to watch an idle sandbox for its death.
    fn watched(&self, held: PooledSandbox) -> IdleSandbox {
        let (kind, id) = (Kind::of(&held.spec), held.sandbox.id().clone());
        let pool = self.state.handle();
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

    /// Starts to reset a used sandbox in the background.
    fn begin_reset(&mut self, held: PooledSandbox, owner: TenantId) {
        let kind = Kind::of(&held.spec);
        self.sub_pool(&kind).circulation.begin_reset(&owner);
        self.evict(&kind);
        self.reset(held, owner);
    }

    /// Returns whether a sandbox may serve its tenant again.
    fn is_reusable(&self, held: &PooledSandbox, tenant: &TenantId) -> bool {
        self.may_reuse(&held.spec)
            && !held.spec.single_use
            && self.state.draining.is_none()
            && self.is_wanted(held, tenant)
            && !held.sandbox.control().is_closed()
    }

    /// Returns whether there is room for one more used sandbox, or a request of its tenant waits for it.
    fn is_wanted(&self, held: &PooledSandbox, tenant: &TenantId) -> bool {
        let kind = Kind::of(&held.spec);
        let Some(sub_pool) = self.state.sub_pools.get(&kind) else {
            return true;
        };
        let room = 2 * self.state.config.size_of(&kind).dirty;
        let waiters = sub_pool.waiters.iter();
        let waiting = waiters.filter(|waiter| waiter.wanted.tenant == *tenant);
        sub_pool.circulation.resets() < room
            || sub_pool.circulation.resets_of(tenant) < waiting.count()
    }

    /// Brings the pool to its target state after a change: refills idle sandboxes, or ends the shutdown.
    fn reconcile(&mut self) {
        let state = &mut *self.state;
        // Clients may name many images, so sub-pools of images that are not configured are forgotten when idle.
        let images = &state.config.images;
        state.sub_pools.retain(|kind, sub_pool| {
            kind.image.is_none() || images.contains_key(kind) || !sub_pool.is_idle()
        });
        let Some(waiting) = &mut state.draining else {
            self.supply();
            self.refill();
            self.state.was_full = self.state.was_full || self.is_full();
            return;
        };
        let idle = |sub_pool: &SubPool| sub_pool.under_way() == 0;
        let leased = state.leased.load(Ordering::Acquire);
        if leased + state.destroying == 0 && state.sub_pools.values().all(idle) {
            for reply in waiting.drain(..) {
                // Ignore a closed channel: the caller has gone.
                let _ = reply.send(());
            }
        }
    }
}

/// Treats a sandbox that died during its creation as a creation that failed.
fn check_alive(sandbox: Arc<dyn Sandbox>) -> Result<Arc<dyn Sandbox>, PoolError> {
    if sandbox.control().is_closed() {
        let error = BackendError::Create("it died at once".to_owned());
        return Err(PoolError::Backend(Arc::new(error)));
    }
    Ok(sandbox)
}

impl Handler<Acquire> for Pool {
    type Result = ();

    fn handle(&mut self, wanted: Acquire, _: &mut Self::Context) {
        if self.state.draining.is_some() {
            return wanted.refuse(PoolError::Closed);
        }
        let fits = self.state.config.sandbox.sizes_fit(&wanted.spec);
        let runtime = wanted.spec.runtime;
        // Interpreters of Python are forked, and bash starts at once.
        let boots_slowly = runtime.facts().boots_slowly;
        let spares_clean = self.waits_for_used(&wanted.spec, &wanted.tenant);
        let sub_pool = self.sub_pool(&Kind::of(&wanted.spec));
        let picked = fits.then(|| sub_pool.pick(&wanted.tenant, boots_slowly, spares_clean));
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

impl Handler<ResetEnded> for Pool {
    type Result = ();

    fn handle(&mut self, ended: ResetEnded, _: &mut Self::Context) {
        let ResetEnded {
            result,
            held,
            owner,
            took,
        } = ended;
        let sub_pool = self.sub_pool(&Kind::of(&held.spec));
        let took = result.is_ok().then_some(took);
        sub_pool.circulation.end_reset(&owner, took);
        match result {
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
        self.state.destroying -= 1;
        self.reconcile();
    }
}

impl Handler<Evict> for Pool {
    type Result = ();

    fn handle(&mut self, Evict(kind): Evict, _: &mut Self::Context) {
        self.sub_pool(&kind).eviction_is_scheduled = false;
        self.evict(&kind);
    }
}

impl Handler<Refill> for Pool {
    type Result = ();

    fn handle(&mut self, _: Refill, _: &mut Self::Context) {
        self.state.refill_is_delayed = false;
        self.reconcile();
    }
}

impl Handler<Supply> for Pool {
    type Result = ();

    fn handle(&mut self, _: Supply, _: &mut Self::Context) {
        self.state.supply_is_scheduled = false;
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
        if self.state.draining.is_some() {
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
            Fate::Return if self.is_reusable(&held, &tenant) => self.begin_reset(held, tenant),
            Fate::Return | Fate::Discard => self.destroy(held),
        }
        self.reconcile();
    }
}

impl Handler<Died> for Pool {
    type Result = ();

    fn handle(&mut self, died: Died, _: &mut Self::Context) {
        // A sandbox that was handed out meanwhile is no longer idle. The death is noticed by its run or session.
        if let Some(held) = self.sub_pool(&died.kind).remove(&died.id) {
            log::warn!(sandbox:% = died.id, reason:% = died.reason; "idle sandbox died");
            self.destroy(held);
        }
        self.reconcile();
    }
}

impl Handler<Shutdown> for Pool {
    type Result = ResponseFuture<()>;

    fn handle(&mut self, _: Shutdown, _: &mut Self::Context) -> Self::Result {
        let (reply, done) = oneshot::channel();
        self.state.draining.get_or_insert_default().push(reply);
        self.state.closing.cancel();
        let mut left = Vec::new();
        for sub_pool in self.state.sub_pools.values_mut() {
            for waiter in sub_pool.waiters.drain(..) {
                waiter.wanted.refuse(PoolError::Closed);
            }
            left.extend(sub_pool.clear());
        }
        for held in left {
            self.destroy(held);
        }
        self.reconcile();
        // A pool that has ended has shut down.
        Box::pin(async { done.await.unwrap_or_default() })
    }
}

impl Handler<Configure> for Pool {
    type Result = ();

    fn handle(&mut self, Configure(config): Configure, _: &mut Self::Context) {
        self.state.config = config;
        let kinds: Vec<_> = self.state.sub_pools.keys().cloned().collect();
        for kind in &kinds {
            let sandbox = self.state.config.sandbox;
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
            clean: sub_pool.clean.len(),
            used: sub_pool.dirty.len(),
            cleaning: sub_pool.circulation.resets(),
            creating: sub_pool.pending_creates.len() + sub_pool.refilling,
            waiting: sub_pool.waiters.len(),
            failures: sub_pool.failures,
            unavailable: sub_pool.unavailable,
        };
        let mut runtimes = BTreeMap::new();
        let mut images = BTreeMap::new();
        for (kind, sub_pool) in &self.state.sub_pools {
            match &kind.image {
                None => drop(runtimes.insert(kind.runtime, state(sub_pool))),
                Some(image) => drop(images.insert(image.clone(), state(sub_pool))),
            }
        }
        PoolState {
            runtimes,
            images,
            leased: self.state.leased.load(Ordering::Acquire),
            destroying: self.state.destroying,
            was_full: self.state.was_full,
            draining: self.state.draining.is_some(),
        }
    }
}
