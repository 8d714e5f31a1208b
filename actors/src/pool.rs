//! Sandboxes that wait for work: for ephemeral runs, and for new sessions.
//!
//! Acquiring never waits for a cleaning. It takes what is on the shelf; where nothing is, a
//! sandbox is made on demand, and one that becomes free in the meantime is taken instead. A used
//! sandbox never serves another tenant.

mod config;
mod demand;
mod lease;
mod message;
mod shelf;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use actix::fut::wrap_future;
use actix::prelude::*;
use isol8_api::{Runtime, TenantId};
use isol8_backend::{Backend, BackendError, Limits, Sandbox, SandboxSpec};
use tokio::sync::oneshot;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::run::Memory;
use crate::watch::{DeathWatch, destroy};
pub use config::{PoolConfig, PoolSize, SandboxDefaults, Strategy};
use lease::Fate;
pub use lease::{Held, Lease};
use message::{Acquire, Create, Died, Release};
pub use message::{Configure, Observe, PoolError, PoolState, ShelfState, Shutdown, acquire};
use shelf::{Shelf, Warm};

/// How long making a used sandbox new may take, limits included. The connection's own bound on a
/// reset is shorter.
const CLEAN_TIMEOUT: Duration = Duration::from_secs(60);

/// First pause after a sandbox could not be made ahead of time; doubled with each failure.
const BACK_OFF: Duration = Duration::from_millis(200);

/// Longest such pause.
const MAX_BACK_OFF: Duration = Duration::from_secs(30);

/// Between two looks at the age and the health of what waits.
const LOOK_AFTER: Duration = Duration::from_secs(10);

/// The actor.
#[derive(Debug)]
pub struct Pool {
    backend: Arc<dyn Backend>,
    config: PoolConfig,
    shelves: BTreeMap<Runtime, Shelf>,
    next_ticket: u64,
    leased: usize,
    destroying: usize,
    /// Who waits for the end of the shutdown, once there is one.
    draining: Option<Vec<oneshot::Sender<()>>>,
    /// Ends what is being made or reset, once nobody can use it any more.
    closing: CancellationToken,
}

impl Actor for Pool {
    type Context = Context<Self>;

    fn started(&mut self, ctx: &mut Self::Context) {
        self.refill(ctx);
        ctx.run_interval(LOOK_AFTER, |pool, ctx| pool.look_after(ctx));
    }
}

impl Pool {
    /// A pool that fills itself once it is started.
    #[must_use]
    pub fn new(backend: Arc<dyn Backend>, config: PoolConfig) -> Self {
        Self {
            backend,
            config,
            shelves: BTreeMap::new(),
            next_ticket: 0,
            leased: 0,
            destroying: 0,
            draining: None,
            closing: CancellationToken::new(),
        }
    }

    fn shelf(&mut self, runtime: Runtime) -> &mut Shelf {
        self.shelves.entry(runtime).or_default()
    }

    /// Has a sandbox made for one request, which takes another if one becomes free before. Under a
    /// steady load most do, so what was ordered for them counts for those that come after.
    fn order(&mut self, wanted: Acquire, ctx: &mut Context<Self>) {
        let ticket = self.next_ticket;
        self.next_ticket += 1;
        let spec = wanted.spec.clone();
        let spare = self.config.refill_width;
        let shelf = self.shelf(spec.runtime);
        shelf.waiters.push_back((ticket, wanted));
        if shelf.wants_order(&spec, spare) {
            shelf.order(ticket, &spec);
            self.create(spec, Some(ticket), ctx);
        }
    }

    /// Hands a sandbox to whom it will serve, with the limits that were asked for.
    fn hand_out(&mut self, held: Held, wanted: Acquire, ctx: &mut Context<Self>) {
        self.leased += 1;
        let lease = Lease::new(held, wanted.tenant.clone(), ctx.address());
        if lease.held.spec.limits == wanted.spec.limits {
            // Where nobody waits any longer, the lease finds its way back.
            let _ = wanted.reply.send(Ok(lease));
        } else {
            tokio::spawn(fit(lease, wanted, ctx.address()));
        }
    }

    /// Starts to make a sandbox, for the request of a ticket or ahead of time.
    fn create(&mut self, spec: SandboxSpec, ticket: Option<u64>, ctx: &mut Context<Self>) {
        let backend = Arc::clone(&self.backend);
        let limit = self.config.create_timeout;
        let wanted = spec.clone();
        let closing = self.closing.clone();
        let begun = Instant::now();
        let making = tokio::spawn(async move {
            let making = tokio::time::timeout(limit, backend.create(&wanted));
            match closing.run_until_cancelled(making).await {
                Some(Ok(made)) => made.map_err(|error| PoolError::Backend(Arc::new(error))),
                Some(Err(_)) => Err(PoolError::TimedOut(limit)),
                None => Err(PoolError::Closed),
            }
        });
        let made = wrap_future::<_, Self>(making).map(move |made, pool, ctx| {
            let made = made.unwrap_or(Err(PoolError::Panicked));
            if made.is_ok() {
                pool.shelf(spec.runtime).demand.made(begun.elapsed());
            }
            pool.created(made, spec, ticket, ctx);
        });
        ctx.spawn(made);
    }

    fn created(
        &mut self,
        made: Result<Arc<dyn Sandbox>, PoolError>,
        spec: SandboxSpec,
        ticket: Option<u64>,
        ctx: &mut Context<Self>,
    ) {
        let runtime = spec.runtime;
        let shelf = self.shelf(runtime);
        match ticket {
            Some(ticket) => shelf.close_order(ticket),
            None => shelf.refilling -= 1,
        }
        match made.and_then(alive) {
            Ok(sandbox) => {
                shelf.failures = 0;
                shelf.unavailable = false;
                let memory = Memory::fresh();
                let held = Held {
                    sandbox,
                    made: Instant::now(),
                    spec,
                    memory,
                };
                self.offer(held, ticket, None, ctx);
            }
            Err(error) => match ticket {
                Some(ticket) => {
                    if let Some(waiter) = shelf.disappointed(ticket, &spec) {
                        waiter.refuse(error);
                    }
                }
                None => self.back_off(runtime, &error, ctx),
            },
        }
        self.settle(ctx);
    }

    /// Gives a sandbox that has become free to whoever waits, else to the shelf, else to nobody.
    fn offer(
        &mut self,
        held: Held,
        ticket: Option<u64>,
        owner: Option<TenantId>,
        ctx: &mut Context<Self>,
    ) {
        if self.draining.is_some() || held.sandbox.control().is_closed() {
            return self.destroy(held, ctx);
        }
        let runtime = held.spec.runtime;
        let waiter = self
            .shelf(runtime)
            .waiter_for(&held, ticket, owner.as_ref());
        match (waiter, owner) {
            (Some(waiter), _) => self.hand_out(held, waiter, ctx),
            (None, None) => self.shelve_fresh(held, ctx),
            (None, Some(owner)) => self.shelve_used(held, owner, ctx),
        }
    }

    fn shelve_fresh(&mut self, held: Held, ctx: &mut Context<Self>) {
        if !self.config.sandbox.sizes_fit(&held.spec) {
            return self.destroy(held, ctx);
        }
        let runtime = held.spec.runtime;
        let warm = watched(held, ctx);
        self.shelf(runtime).fresh.push_back(warm);
        self.evict(runtime, ctx);
    }

    fn shelve_used(&mut self, held: Held, owner: TenantId, ctx: &mut Context<Self>) {
        let runtime = held.spec.runtime;
        let warm = watched(held, ctx);
        self.shelf(runtime).used.push_back((owner, warm));
        self.evict(runtime, ctx);
    }

    /// Keeps the sandboxes of a runtime within their bound; of the used ones that which waits
    /// longest goes first. A fresh one that was made for a request which then took another may
    /// stay in a used one's place: a pool that threw it away would make and remove sandboxes all
    /// the time under a steady load.
    fn evict(&mut self, runtime: Runtime, ctx: &mut Context<Self>) {
        let clean = self.clean_of(runtime);
        let dirty = self.config.size_of(runtime).dirty;
        let dirty = match self.config.strategy {
            Strategy::Fast => dirty,
            Strategy::Secure => 0,
        };
        let linger = self.config.linger;
        loop {
            let shelf = self.shelf(runtime);
            let count = shelf.beside(clean);
            if count <= dirty {
                return;
            }
            let Some(since) = shelf.oldest(clean).map(|warm| warm.since) else {
                return;
            };
            let left = linger.saturating_sub(since.elapsed());
            if count <= 2 * dirty && !left.is_zero() {
                return self.evict_later(runtime, left, ctx);
            }
            if let Some(held) = shelf.remove_oldest(clean) {
                self.destroy(held, ctx);
            }
        }
    }

    fn evict_later(&mut self, runtime: Runtime, delay: Duration, ctx: &mut Context<Self>) {
        let shelf = self.shelf(runtime);
        if std::mem::replace(&mut shelf.evicting, true) {
            return;
        }
        ctx.run_later(delay, move |pool, ctx| {
            pool.shelf(runtime).evicting = false;
            pool.evict(runtime, ctx);
        });
    }

    /// How many clean sandboxes should wait now.
    fn clean_of(&mut self, runtime: Runtime) -> usize {
        let PoolSize {
            clean, most_clean, ..
        } = self.config.size_of(runtime);
        match most_clean {
            Some(most) => self.shelf(runtime).demand.clean(clean, most),
            None => clean,
        }
    }

    /// Removes what has become too old, and asks what has waited long whether it is well.
    fn look_after(&mut self, ctx: &mut Context<Self>) {
        let PoolConfig {
            max_age,
            check_after,
            ..
        } = self.config;
        let runtimes: Vec<_> = self.shelves.keys().copied().collect();
        for runtime in runtimes {
            let shelf = self.shelf(runtime);
            for held in shelf.take_out(|held| held.made.elapsed() >= max_age) {
                self.destroy(held, ctx);
            }
            self.evict(runtime, ctx);
            for held in self.shelf(runtime).due_for_check(check_after) {
                let pool = ctx.address();
                tokio::spawn(async move {
                    if let Err(error) = held.sandbox.control().check().await {
                        pool.do_send(Died {
                            runtime,
                            id: held.sandbox.id().clone(),
                            reason: error.to_string(),
                        });
                    }
                });
            }
        }
        self.settle(ctx);
    }

    /// Makes a used sandbox as new, in the background.
    fn clean(&mut self, held: Held, tenant: TenantId, ctx: &mut Context<Self>) {
        let runtime = held.spec.runtime;
        self.shelf(runtime).cleaning += 1;
        self.evict(runtime, ctx);
        let limits = self.config.sandbox.limits;
        let used = held.clone();
        let closing = self.closing.clone();
        let cleaning = tokio::spawn(async move {
            let cleaning = tokio::time::timeout(CLEAN_TIMEOUT, cleaned(used, limits));
            match closing.run_until_cancelled(cleaning).await {
                Some(Ok(cleaned)) => cleaned.map_err(|error| error.to_string()),
                Some(Err(_)) => Err(format!("not done within {} s", CLEAN_TIMEOUT.as_secs())),
                None => Err("pool is shutting down".to_owned()),
            }
        });
        let cleaned = wrap_future::<_, Self>(cleaning).map(move |cleaned, pool, ctx| {
            pool.shelf(runtime).cleaning -= 1;
            match cleaned.unwrap_or_else(|panic| Err(panic.to_string())) {
                Ok(clean) => pool.offer(clean, None, Some(tenant), ctx),
                Err(reason) => {
                    log::warn!(sandbox:% = held.sandbox.id(), reason:%; "sandbox was not reset");
                    pool.destroy(held, ctx);
                }
            }
            pool.settle(ctx);
        });
        ctx.spawn(cleaned);
    }

    /// Whether a sandbox may serve its tenant again.
    fn is_reusable(&self, held: &Held) -> bool {
        let runtime = held.spec.runtime;
        let room = 2 * self.config.size_of(runtime).dirty;
        let cleaning = self.shelves.get(&runtime).map_or(0, |shelf| shelf.cleaning);
        self.config.strategy == Strategy::Fast
            && self.draining.is_none()
            && cleaning < room
            && self.config.sandbox.sizes_fit(&held.spec)
            && !held.sandbox.control().is_closed()
    }

    fn destroy(&mut self, held: Held, ctx: &mut Context<Self>) {
        self.destroying += 1;
        let gone = wrap_future::<_, Self>(destroy(held.sandbox)).map(|(), pool, ctx| {
            pool.destroying -= 1;
            pool.settle(ctx);
        });
        ctx.spawn(gone);
    }

    /// Makes sandboxes ahead of time, up to what should wait.
    fn refill(&mut self, ctx: &mut Context<Self>) {
        for runtime in Runtime::ALL {
            let target = self.clean_of(runtime);
            if target == 0 {
                continue;
            }
            let width = self.config.refill_width.max(1);
            let shelf = self.shelf(runtime);
            if shelf.backing_off || shelf.unavailable {
                continue;
            }
            let missing = target.saturating_sub(shelf.fresh.len() + shelf.refilling);
            let count = missing.min(width.saturating_sub(shelf.refilling));
            shelf.refilling += count;
            for _ in 0..count {
                self.create(self.config.sandbox.spec(runtime), None, ctx);
            }
        }
    }

    fn back_off(&mut self, runtime: Runtime, error: &PoolError, ctx: &mut Context<Self>) {
        let shelf = self.shelf(runtime);
        if let PoolError::Backend(cause) = error
            && matches!(**cause, BackendError::RuntimeUnavailable { .. })
        {
            shelf.unavailable = true;
            log::warn!(runtime:%, error:%; "no sandboxes are kept ready");
            return;
        }
        let pause = BACK_OFF.saturating_mul(1 << shelf.failures.min(16));
        shelf.failures += 1;
        shelf.backing_off = true;
        let failures = shelf.failures;
        log::warn!(runtime:%, failures, error:%; "sandbox could not be kept ready");
        ctx.run_later(pause.min(MAX_BACK_OFF), move |pool, ctx| {
            pool.shelf(runtime).backing_off = false;
            pool.settle(ctx);
        });
    }

    /// What follows from any change: the shelves are filled, or the shutdown is over.
    fn settle(&mut self, ctx: &mut Context<Self>) {
        let Some(waiting) = &mut self.draining else {
            return self.refill(ctx);
        };
        let idle = |shelf: &Shelf| shelf.orders.len() + shelf.refilling + shelf.cleaning == 0;
        if self.leased + self.destroying == 0 && self.shelves.values().all(idle) {
            for reply in waiting.drain(..) {
                // Whoever is gone by now needs no answer.
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

/// Puts the pool's eye on a sandbox that nobody uses.
fn watched(held: Held, ctx: &mut Context<Pool>) -> Warm {
    let (runtime, id) = (held.spec.runtime, held.sandbox.id().clone());
    let pool = ctx.address().downgrade();
    let watch = DeathWatch::new(held.sandbox.control(), move |reason| {
        if let Some(pool) = pool.upgrade() {
            pool.do_send(Died {
                runtime,
                id,
                reason,
            });
        }
    });
    Warm {
        held,
        since: Instant::now(),
        checked: Instant::now(),
        _watch: watch,
    }
}

/// Gives a leased sandbox the limits that were asked for, or has another one made.
async fn fit(mut lease: Lease, wanted: Acquire, pool: Addr<Pool>) {
    match lease.held.set_limits(wanted.spec.limits).await {
        Ok(()) => {
            // Where nobody waits any longer, the lease finds its way back.
            let _ = wanted.reply.send(Ok(lease));
        }
        Err(error) => {
            log::warn!(sandbox:% = lease.held.sandbox.id(), error:%; "limits could not be changed");
            lease.discard();
            pool.do_send(Create(wanted));
        }
    }
}

/// Makes a used sandbox as new.
async fn cleaned(mut held: Held, limits: Limits) -> Result<Held, BackendError> {
    held.sandbox.control().reset().await?;
    held.set_limits(limits).await?;
    // What its last run did between its end and the reset is not the next run's.
    let usage = held.sandbox.usage().await.ok();
    held.memory = Memory {
        usage,
        unreported_loss: false,
    };
    Ok(held)
}

impl Handler<Acquire> for Pool {
    type Result = ();

    fn handle(&mut self, wanted: Acquire, ctx: &mut Self::Context) {
        if self.draining.is_some() {
            return wanted.refuse(PoolError::Closed);
        }
        let fits = self.config.sandbox.sizes_fit(&wanted.spec);
        let runtime = wanted.spec.runtime;
        // Python's are forked, and bash needs none.
        let boots_slowly = !matches!(runtime, Runtime::Python | Runtime::Bash);
        let shelf = self.shelf(runtime);
        let picked = fits.then(|| shelf.pick(&wanted.tenant, boots_slowly));
        match picked.flatten() {
            Some(held) => self.hand_out(held, wanted, ctx),
            None => self.order(wanted, ctx),
        }
        self.refill(ctx);
    }
}

impl Handler<Create> for Pool {
    type Result = ();

    fn handle(&mut self, Create(wanted): Create, ctx: &mut Self::Context) {
        if self.draining.is_some() {
            return wanted.refuse(PoolError::Closed);
        }
        self.order(wanted, ctx);
    }
}

impl Handler<Release> for Pool {
    type Result = ();

    fn handle(&mut self, released: Release, ctx: &mut Self::Context) {
        self.leased -= 1;
        let Release { held, tenant, fate } = released;
        match fate {
            Fate::Taken => {}
            Fate::Return if self.is_reusable(&held) => self.clean(held, tenant, ctx),
            Fate::Return | Fate::Discard => self.destroy(held, ctx),
        }
        self.settle(ctx);
    }
}

impl Handler<Died> for Pool {
    type Result = ();

    fn handle(&mut self, died: Died, ctx: &mut Self::Context) {
        // It may have been handed out in the meantime: then its user finds out.
        if let Some(held) = self.shelf(died.runtime).remove(&died.id) {
            log::warn!(sandbox:% = died.id, reason:% = died.reason; "waiting sandbox died");
            self.destroy(held, ctx);
        }
        self.settle(ctx);
    }
}

impl Handler<Shutdown> for Pool {
    type Result = ResponseFuture<()>;

    fn handle(&mut self, _: Shutdown, ctx: &mut Self::Context) -> Self::Result {
        let (reply, done) = oneshot::channel();
        self.draining.get_or_insert_default().push(reply);
        self.closing.cancel();
        let mut left = Vec::new();
        for shelf in self.shelves.values_mut() {
            for (_, waiter) in shelf.waiters.drain(..) {
                waiter.refuse(PoolError::Closed);
            }
            left.extend(shelf.clear());
        }
        for held in left {
            self.destroy(held, ctx);
        }
        self.settle(ctx);
        // A pool that is gone has shut down.
        Box::pin(async { done.await.unwrap_or_default() })
    }
}

impl Handler<Configure> for Pool {
    type Result = ();

    fn handle(&mut self, Configure(config): Configure, ctx: &mut Self::Context) {
        self.config = config;
        let runtimes: Vec<_> = self.shelves.keys().copied().collect();
        for runtime in runtimes {
            let sandbox = self.config.sandbox;
            let misfits = self
                .shelf(runtime)
                .take_out(|held| !sandbox.sizes_fit(&held.spec));
            for held in misfits {
                self.destroy(held, ctx);
            }
            self.shelf(runtime).backing_off = false;
            self.evict(runtime, ctx);
        }
        self.settle(ctx);
    }
}

impl Handler<Observe> for Pool {
    type Result = PoolState;

    fn handle(&mut self, _: Observe, _: &mut Self::Context) -> PoolState {
        let state = |shelf: &Shelf| ShelfState {
            clean: shelf.fresh.len(),
            used: shelf.used.len(),
            cleaning: shelf.cleaning,
            creating: shelf.orders.len() + shelf.refilling,
            waiting: shelf.waiters.len(),
            failures: shelf.failures,
            unavailable: shelf.unavailable,
        };
        PoolState {
            runtimes: self.shelves.iter().map(|(k, v)| (*k, state(v))).collect(),
            leased: self.leased,
            destroying: self.destroying,
            draining: self.draining.is_some(),
        }
    }
}
