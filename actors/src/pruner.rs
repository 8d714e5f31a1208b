//! Ends what nobody uses any more: sessions that have been idle for long, and sandboxes whose process
//! is gone.

use std::sync::Arc;
use std::time::Duration;

use actix::fut::wrap_future;
use actix::prelude::*;
use isol8_backend::Backend;
use serde::Serialize;

use crate::registry::{self, Registry};

/// How long a look for what dead processes left may take.
const SWEEP_TIMEOUT: Duration = Duration::from_secs(60);

/// When sessions are ended for having been idle.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PrunerConfig {
    /// Whether it is done at all.
    pub auto_prune: bool,
    /// How long a session may be idle.
    pub max_age: Duration,
    /// Between two looks.
    pub interval: Duration,
}

impl Default for PrunerConfig {
    fn default() -> Self {
        Self {
            auto_prune: true,
            max_age: Duration::from_secs(3600),
            interval: Duration::from_secs(60),
        }
    }
}

/// What the pruner shows of itself.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, MessageResponse)]
#[serde(rename_all = "camelCase")]
pub struct PrunerState {
    /// Looks so far.
    pub ticks: u64,
    /// Sandboxes of dead processes that were removed.
    pub orphans: usize,
}

/// Asks for a [`PrunerState`].
#[derive(Debug, Message)]
#[rtype(result = "PrunerState")]
pub struct Observe;

/// Replaces the configuration. An interval that has begun is seen to its end.
#[derive(Debug, Message)]
#[rtype(result = "()")]
pub struct Configure(pub PrunerConfig);

/// The actor.
#[derive(Debug)]
pub struct Pruner {
    config: PrunerConfig,
    registry: Addr<Registry>,
    backend: Arc<dyn Backend>,
    state: PrunerState,
}

impl Pruner {
    /// A pruner that begins to tick once it is started.
    #[must_use]
    pub fn new(config: PrunerConfig, registry: Addr<Registry>, backend: Arc<dyn Backend>) -> Self {
        Self {
            config,
            registry,
            backend,
            state: PrunerState::default(),
        }
    }

    fn tick_later(&self, ctx: &mut Context<Self>) {
        ctx.run_later(self.config.interval, |pruner, ctx| pruner.tick(ctx));
    }

    fn tick(&mut self, ctx: &mut Context<Self>) {
        self.state.ticks += 1;
        if self.config.auto_prune {
            let max_idle = self.config.max_age;
            self.registry.do_send(registry::Prune { max_idle });
        }
        let backend = Arc::clone(&self.backend);
        // A task of its own: a panic in it is not this actor's.
        let sweeping =
            tokio::spawn(async move { tokio::time::timeout(SWEEP_TIMEOUT, backend.sweep()).await });
        let swept = wrap_future::<_, Self>(sweeping).map(|swept, pruner, ctx| {
            match swept {
                Ok(Ok(Ok(count))) => pruner.state.orphans += count,
                Ok(Ok(Err(error))) => log::warn!(error:%; "orphans cannot be removed"),
                Ok(Err(_)) => log::warn!("looking for orphans took too long"),
                Err(panic) => log::error!(error:% = panic; "looking for orphans panicked"),
            }
            pruner.tick_later(ctx);
        });
        ctx.spawn(swept);
    }
}

impl Actor for Pruner {
    type Context = Context<Self>;

    fn started(&mut self, ctx: &mut Self::Context) {
        self.tick_later(ctx);
    }
}

impl Handler<Observe> for Pruner {
    type Result = PrunerState;

    fn handle(&mut self, _: Observe, _: &mut Self::Context) -> PrunerState {
        self.state
    }
}

impl Handler<Configure> for Pruner {
    type Result = ();

    fn handle(&mut self, Configure(config): Configure, _: &mut Self::Context) {
        self.config = config;
    }
}
