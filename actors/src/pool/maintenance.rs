//! Maintains the idle sandboxes: their number, their age and their health.

use std::sync::Arc;
use std::time::Duration;

use actix::prelude::*;
use isol8_backend::{BackendError, SandboxSpec};
use tokio::time::Instant;
use tokio_util::task::AbortOnDropHandle;

use super::message::{Died, Evict, HealthCheck, PoolError, Refill, Retry};
use super::processors::is_busy;
use super::{Kind, Pool, PoolConfig, PoolSize, Strategy};
use crate::supervisor::WeakSupervised;

/// First pause after a sandbox could not be created ahead of time; doubled with each failure.
const BACK_OFF: Duration = Duration::from_millis(200);

/// Longest pause after such failures.
const MAX_BACK_OFF: Duration = Duration::from_secs(30);

/// Pause between two checks of the age and the health of idle sandboxes.
const HEALTH_CHECK_INTERVAL: Duration = Duration::from_secs(10);

/// Delay before a sandbox that was handed out is replaced. Creating one occupies a processor for longer than most
/// requests last, and would delay the answer to the request that took the sandbox.
const REFILL_DELAY: Duration = Duration::from_millis(4);

/// Pause between two creations ahead of time on a busy machine, as a multiple of the time that one creation takes. So
/// creations take no more than a fiftieth of the machine from waiting requests.
const BUSY_PAUSE: u32 = 50;

/// Pause before the pool checks again whether the machine is busy.
const BUSY_RETRY: Duration = Duration::from_millis(100);

impl Pool {
    /// Starts the task that sends `HealthCheck` periodically.
    pub(super) fn start_clock(pool: WeakSupervised<Self>) -> AbortOnDropHandle<()> {
        AbortOnDropHandle::new(tokio::spawn(async move {
            loop {
                tokio::time::sleep(HEALTH_CHECK_INTERVAL).await;
                pool.do_send(HealthCheck);
            }
        }))
    }

    /// Keeps the number of idle sandboxes of a kind within its limit. The longest idle dirty sandbox is removed first.
    /// A clean sandbox whose request took another one may stay in the place of a dirty one: a pool that removed it
    /// would create and remove sandboxes all the time under a steady load.
    pub(super) fn evict(&mut self, kind: &Kind) {
        let clean = self.clean_target(kind);
        let dirty = self.state.config.size_of(kind).dirty;
        let dirty = match self.state.config.strategy {
            Strategy::Fast => dirty,
            Strategy::Secure => 0,
        };
        let linger = self.state.config.linger;
        loop {
            let sub_pool = self.sub_pool(kind);
            let count = sub_pool.excess(clean);
            if count <= dirty {
                return;
            }
            let Some(since) = sub_pool.oldest(clean).map(|idle| idle.since) else {
                return;
            };
            let left = linger.saturating_sub(since.elapsed());
            if count <= 2 * dirty && !left.is_zero() {
                return self.evict_later(kind, left);
            }
            if let Some(held) = sub_pool.remove_oldest(clean) {
                self.destroy(held);
            }
        }
    }

    fn evict_later(&mut self, kind: &Kind, delay: Duration) {
        let sub_pool = self.sub_pool(kind);
        if std::mem::replace(&mut sub_pool.eviction_is_scheduled, true) {
            return;
        }
        self.later(delay, Evict(kind.clone()));
    }

    /// Returns how many clean sandboxes should be idle now.
    fn clean_target(&mut self, kind: &Kind) -> usize {
        let PoolSize {
            clean, most_clean, ..
        } = self.state.config.size_of(kind);
        match most_clean {
            Some(most) => self.sub_pool(kind).demand.target(clean, most),
            None => clean,
        }
    }

    /// Removes sandboxes that are too old, and checks the health of those that have been idle for long.
    pub(super) fn maintain(&mut self) {
        let PoolConfig {
            max_age,
            check_after,
            ..
        } = self.state.config;
        let kinds: Vec<_> = self.state.sub_pools.keys().cloned().collect();
        for kind in &kinds {
            let sub_pool = self.sub_pool(kind);
            for held in sub_pool.take_out(|held| held.made.elapsed() >= max_age) {
                self.destroy(held);
            }
            self.evict(kind);
            for held in self.sub_pool(kind).due_for_check(check_after) {
                let (pool, kind) = (self.state.handle(), kind.clone());
                tokio::spawn(async move {
                    if let Err(error) = held.sandbox.control().check().await {
                        pool.do_send(Died {
                            kind,
                            id: held.sandbox.id().clone(),
                            reason: error.to_string(),
                        });
                    }
                });
            }
        }
        self.reconcile();
    }

    /// Starts creations ahead of time, up to the number of clean sandboxes that should be idle.
    pub(super) fn refill(&mut self) {
        if self.state.refill_is_delayed {
            return;
        }
        for kind in self.state.config.kinds() {
            let target = self.clean_target(&kind);
            if target == 0 {
                continue;
            }
            let width = self.state.config.refill_width.max(1);
            let processors = Arc::clone(&self.state.config.processors);
            let sub_pool = self.sub_pool(&kind);
            if sub_pool.backing_off || sub_pool.unavailable {
                continue;
            }
            let missing = target.saturating_sub(sub_pool.clean.len() + sub_pool.refilling);
            let count = missing.min(width.saturating_sub(sub_pool.refilling));
            if count == 0 {
                continue;
            }
            if is_busy(&*processors) && sub_pool.was_refilled_within(BUSY_PAUSE) {
                self.refill_after(BUSY_RETRY);
                return;
            }
            sub_pool.refilled = Some(Instant::now());
            sub_pool.refilling += count;
            for _ in 0..count {
                let spec = SandboxSpec {
                    image: kind.image.clone(),
                    ..self.state.config.sandbox.spec(kind.runtime)
                };
                self.create(spec, None);
            }
        }
    }

    /// Calls [`Self::refill`] after [`REFILL_DELAY`]. Requests that arrive meanwhile do not delay it further.
    pub(super) fn refill_later(&mut self) {
        self.refill_after(REFILL_DELAY);
    }

    fn refill_after(&mut self, delay: Duration) {
        if !std::mem::replace(&mut self.state.refill_is_delayed, true) {
            self.later(delay, Refill);
        }
    }

    /// Returns whether as many clean sandboxes are idle as should be. Kinds whose creation fails do not count.
    pub(super) fn is_full(&mut self) -> bool {
        self.state.config.kinds().iter().all(|kind| {
            let target = self.clean_target(kind);
            let sub_pool = self.sub_pool(kind);
            sub_pool.clean.len() >= target || sub_pool.unavailable || sub_pool.failures > 0
        })
    }

    pub(super) fn back_off(&mut self, kind: &Kind, error: &PoolError) {
        let sub_pool = self.sub_pool(kind);
        if let PoolError::Backend(cause) = error
            && matches!(
                **cause,
                BackendError::RuntimeUnavailable { .. } | BackendError::ImageUnavailable { .. }
            )
        {
            sub_pool.unavailable = true;
            log::warn!(kind:%, error:%; "backend cannot create this kind of sandbox, none is created ahead of time");
            return;
        }
        let pause = BACK_OFF.saturating_mul(1 << sub_pool.failures.min(16));
        sub_pool.failures += 1;
        sub_pool.backing_off = true;
        let failures = sub_pool.failures;
        log::warn!(kind:%, failures, error:%; "sandbox could not be created ahead of time");
        self.later(pause.min(MAX_BACK_OFF), Retry(kind.clone()));
    }

    /// Sends a message to the pool after a delay.
    pub(super) fn later<M>(&self, delay: Duration, message: M)
    where
        M: Message<Result = ()> + Send + 'static,
        Self: Handler<M>,
    {
        let waiting = tokio::time::sleep(delay);
        self.state.handle().report(waiting, |_| message);
    }
}
