//! How many sandboxes wait, how old they become, and whether they are well.

use std::sync::Arc;
use std::time::Duration;

use actix::prelude::*;
use isol8_backend::{BackendError, SandboxSpec};
use tokio::time::Instant;
use tokio_util::task::AbortOnDropHandle;

use super::message::{Died, Evict, HealthCheck, PoolError, Refill, Retry};
use super::supply::is_busy;
use super::{Kind, Pool, PoolConfig, PoolSize, Strategy};
use crate::supervisor::WeakSupervised;

/// First pause after a sandbox could not be made ahead of time; doubled with each failure.
const BACK_OFF: Duration = Duration::from_millis(200);

/// Longest such pause.
const MAX_BACK_OFF: Duration = Duration::from_secs(30);

/// Between two looks at the age and the health of what waits.
const LOOK_AFTER: Duration = Duration::from_secs(10);

/// How long the replacement of a sandbox that was handed out is put off. Making one takes a processor
/// for longer than most requests last, and who took the sandbox is waiting for its first answer.
const HEAD_START: Duration = Duration::from_millis(4);

/// On a busy machine, sandboxes are made ahead of time only after this many times the time that making one takes:
/// it costs the requests that wait no more than a fiftieth of the machine.
const BUSY_PAUSE: u32 = 50;

/// Pause before the next look at a busy machine.
const BUSY_LOOK: Duration = Duration::from_millis(100);

/// Has the pool look after its sandboxes from time to time.
pub(super) fn clock(pool: WeakSupervised<Pool>) -> AbortOnDropHandle<()> {
    AbortOnDropHandle::new(tokio::spawn(async move {
        loop {
            tokio::time::sleep(LOOK_AFTER).await;
            pool.do_send(HealthCheck);
        }
    }))
}

impl Pool {
    /// Keeps the sandboxes of a kind within their bound; of the used ones that which waits
    /// longest goes first. A fresh one that was made for a request which then took another may
    /// stay in a used one's place: a pool that threw it away would make and remove sandboxes all
    /// the time under a steady load.
    pub(super) fn evict(&mut self, kind: &Kind) {
        let clean = self.clean_of(kind);
        let dirty = self.own.config.size_of(kind).dirty;
        let dirty = match self.own.config.strategy {
            Strategy::Fast => dirty,
            Strategy::Secure => 0,
        };
        let linger = self.own.config.linger;
        loop {
            let sub_pool = self.sub_pool(kind);
            let count = sub_pool.beside(clean);
            if count <= dirty {
                return;
            }
            let Some(since) = sub_pool.oldest(clean).map(|warm| warm.since) else {
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
        if std::mem::replace(&mut sub_pool.evicting, true) {
            return;
        }
        self.later(delay, Evict(kind.clone()));
    }

    /// How many clean sandboxes should wait now.
    fn clean_of(&mut self, kind: &Kind) -> usize {
        let PoolSize {
            clean, most_clean, ..
        } = self.own.config.size_of(kind);
        match most_clean {
            Some(most) => self.sub_pool(kind).demand.clean(clean, most),
            None => clean,
        }
    }

    /// Removes what has become too old, and asks what has waited long whether it is well.
    pub(super) fn maintain(&mut self) {
        let PoolConfig {
            max_age,
            check_after,
            ..
        } = self.own.config;
        let kinds: Vec<_> = self.own.sub_pools.keys().cloned().collect();
        for kind in &kinds {
            let sub_pool = self.sub_pool(kind);
            for held in sub_pool.take_out(|held| held.made.elapsed() >= max_age) {
                self.destroy(held);
            }
            self.evict(kind);
            for held in self.sub_pool(kind).due_for_check(check_after) {
                let (pool, kind) = (self.own.handle(), kind.clone());
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

    /// Makes sandboxes ahead of time, up to what should wait.
    pub(super) fn refill(&mut self) {
        if self.own.refill_is_put_off {
            return;
        }
        for kind in self.own.config.kinds() {
            let target = self.clean_of(&kind);
            if target == 0 {
                continue;
            }
            let width = self.own.config.refill_width.max(1);
            let processors = Arc::clone(&self.own.config.processors);
            let sub_pool = self.sub_pool(&kind);
            if sub_pool.backing_off || sub_pool.unavailable {
                continue;
            }
            let missing = target.saturating_sub(sub_pool.fresh.len() + sub_pool.refilling);
            let count = missing.min(width.saturating_sub(sub_pool.refilling));
            if count == 0 {
                continue;
            }
            if is_busy(&*processors) && sub_pool.was_refilled_within(BUSY_PAUSE) {
                self.refill_after(BUSY_LOOK);
                return;
            }
            sub_pool.refilled = Some(Instant::now());
            sub_pool.refilling += count;
            for _ in 0..count {
                let spec = SandboxSpec {
                    image: kind.image.clone(),
                    ..self.own.config.sandbox.spec(kind.runtime)
                };
                self.create(spec, None);
            }
        }
    }

    /// The same in a moment. Requests that come meanwhile do not put it off again.
    pub(super) fn refill_later(&mut self) {
        self.refill_after(HEAD_START);
    }

    fn refill_after(&mut self, delay: Duration) {
        if !std::mem::replace(&mut self.own.refill_is_put_off, true) {
            self.later(delay, Refill);
        }
    }

    /// Whether as many wait as should, where they can be made.
    pub(super) fn is_full(&mut self) -> bool {
        self.own.config.kinds().iter().all(|kind| {
            let target = self.clean_of(kind);
            let sub_pool = self.sub_pool(kind);
            sub_pool.fresh.len() >= target || sub_pool.unavailable || sub_pool.failures > 0
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
            log::warn!(kind:%, error:%; "no sandboxes are kept ready");
            return;
        }
        let pause = BACK_OFF.saturating_mul(1 << sub_pool.failures.min(16));
        sub_pool.failures += 1;
        sub_pool.backing_off = true;
        let failures = sub_pool.failures;
        log::warn!(kind:%, failures, error:%; "sandbox could not be kept ready");
        self.later(pause.min(MAX_BACK_OFF), Retry(kind.clone()));
    }

    /// Has the pool told something after a while.
    pub(super) fn later<M>(&self, delay: Duration, message: M)
    where
        M: Message<Result = ()> + Send + 'static,
        Self: Handler<M>,
    {
        let waiting = tokio::time::sleep(delay);
        self.own.handle().report(waiting, |_| message);
    }
}
