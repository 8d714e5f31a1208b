//! Ends sessions that have been idle for too long, and sandboxes whose process is gone.

use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::Duration;

use actix::prelude::*;
use isol8_backend::Backend;
use serde::Serialize;
use tokio::time::timeout;
use tokio_util::task::AbortOnDropHandle;

use crate::registry::{self, Registry};
use crate::supervisor::{StateGuard, Supervised};

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

/// The state that the pruner reports.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, MessageResponse)]
#[serde(rename_all = "camelCase")]
pub struct PrunerState {
    /// Looks so far.
    pub ticks: u64,
    /// Sandboxes of dead processes that were removed.
    pub orphans: usize,
}

/// An interval is over.
#[derive(Debug, Message)]
#[rtype(result = "()")]
struct Tick;

/// A look for orphans has ended.
#[derive(Debug, Message)]
#[rtype(result = "()")]
struct Swept {
    orphans: usize,
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
    registry: Supervised<Registry>,
    backend: Arc<dyn Backend>,
    own: StateGuard<Self, ActorState>,
    clock: Option<AbortOnDropHandle<()>>,
}

/// The state of a pruner, which a restarted pruner takes over.
#[derive(Clone, Copy, Debug, Default)]
struct ActorState {
    config: PrunerConfig,
    state: PrunerState,
}

/// Starts a pruner on the current arbiter. `restarts` counts the restarted actors.
pub fn start(
    config: PrunerConfig,
    registry: Supervised<Registry>,
    backend: Arc<dyn Backend>,
    restarts: Arc<AtomicU64>,
) -> Supervised<Pruner> {
    let state = ActorState {
        config,
        ..ActorState::default()
    };
    Supervised::start("pruner", restarts, state, move |own| Pruner {
        registry: registry.clone(),
        backend: Arc::clone(&backend),
        own,
        clock: None,
    })
}

impl Pruner {
    fn tick_later(&mut self) {
        let (pruner, interval) = (self.own.handle(), self.own.config.interval);
        // Not a timer of the actor's context, which would keep the actor alive.
        self.clock = Some(AbortOnDropHandle::new(tokio::spawn(async move {
            tokio::time::sleep(interval).await;
            pruner.do_send(Tick);
        })));
    }

    fn tick(&mut self) {
        self.own.state.ticks += 1;
        let PrunerConfig {
            auto_prune,
            max_age,
            ..
        } = self.own.config;
        let max_idle = auto_prune.then_some(max_age);
        self.registry.do_send(registry::HealthCheck { max_idle });
        let backend = Arc::clone(&self.backend);
        let sweeping = async move { timeout(SWEEP_TIMEOUT, backend.sweep()).await };
        self.own.handle().report(sweeping, |swept| Swept {
            orphans: match swept {
                Ok(Ok(Ok(count))) => count,
                Ok(Ok(Err(error))) => {
                    log::warn!(error:%; "orphans cannot be removed");
                    0
                }
                Ok(Err(_)) => {
                    log::warn!("looking for orphans took too long");
                    0
                }
                Err(panic) => {
                    log::error!(error:% = panic; "looking for orphans panicked");
                    0
                }
            },
        });
    }
}

impl Actor for Pruner {
    type Context = Context<Self>;

    fn started(&mut self, _: &mut Self::Context) {
        self.tick_later();
    }
}

impl Handler<Tick> for Pruner {
    type Result = ();

    fn handle(&mut self, _: Tick, _: &mut Self::Context) {
        self.tick();
    }
}

impl Handler<Swept> for Pruner {
    type Result = ();

    fn handle(&mut self, Swept { orphans }: Swept, _: &mut Self::Context) {
        self.own.state.orphans += orphans;
        self.tick_later();
    }
}

impl Handler<Observe> for Pruner {
    type Result = PrunerState;

    fn handle(&mut self, _: Observe, _: &mut Self::Context) -> PrunerState {
        self.own.state
    }
}

impl Handler<Configure> for Pruner {
    type Result = ();

    fn handle(&mut self, Configure(config): Configure, _: &mut Self::Context) {
        self.own.config = config;
    }
}
