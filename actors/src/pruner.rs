//! Periodically ends sessions that have been idle for too long, and removes sandboxes of dead processes (orphans).

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

/// How long the removal of orphans may take.
const SWEEP_TIMEOUT: Duration = Duration::from_secs(60);

/// Limits for idle sessions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PrunerConfig {
    /// Whether idle sessions are ended at all.
    pub auto_prune: bool,
    /// How long a session may be idle.
    pub max_age: Duration,
    /// Pause between two checks.
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
    /// Number of checks so far.
    pub ticks: u64,
    /// Number of orphans that were removed.
    pub orphans: usize,
}

/// The pause between two checks is over.
#[derive(Debug, Message)]
#[rtype(result = "()")]
struct Tick;

/// The removal of orphans has ended.
#[derive(Debug, Message)]
#[rtype(result = "()")]
struct Swept {
    orphans: usize,
}

/// Asks for a [`PrunerState`].
#[derive(Debug, Message)]
#[rtype(result = "PrunerState")]
pub struct Observe;

/// Replaces the configuration. The pause that has begun keeps its length.
#[derive(Debug, Message)]
#[rtype(result = "()")]
pub struct Configure(pub PrunerConfig);

/// The actor.
#[derive(Debug)]
pub struct Pruner {
    registry: Supervised<Registry>,
    backend: Arc<dyn Backend>,
    state: StateGuard<Self, ActorState>,
    clock: Option<AbortOnDropHandle<()>>,
}

/// The state of a pruner, which a restarted pruner takes over.
#[derive(Clone, Copy, Debug, Default)]
struct ActorState {
    config: PrunerConfig,
    report: PrunerState,
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
    Supervised::start("pruner", restarts, state, move |state| Pruner {
        registry: registry.clone(),
        backend: Arc::clone(&backend),
        state,
        clock: None,
    })
}

impl Pruner {
    fn tick_later(&mut self) {
        let (pruner, interval) = (self.state.handle(), self.state.config.interval);
        // Not a timer of the actor's context, which would keep the actor alive.
        self.clock = Some(AbortOnDropHandle::new(tokio::spawn(async move {
            tokio::time::sleep(interval).await;
            pruner.do_send(Tick);
        })));
    }

    fn tick(&mut self) {
        self.state.report.ticks += 1;
        let PrunerConfig {
            auto_prune,
            max_age,
            ..
        } = self.state.config;
        let max_idle = auto_prune.then_some(max_age);
        self.registry.do_send(registry::HealthCheck { max_idle });
        let backend = Arc::clone(&self.backend);
        let sweeping = async move { timeout(SWEEP_TIMEOUT, backend.sweep()).await };
        self.state.handle().report(sweeping, |swept| Swept {
            orphans: match swept {
                Ok(Ok(Ok(count))) => count,
                Ok(Ok(Err(error))) => {
                    log::warn!(error:%; "orphans cannot be removed");
                    0
                }
                Ok(Err(_)) => {
                    log::warn!("removal of orphans timed out");
                    0
                }
                Err(panic) => {
                    log::error!(error:% = panic; "removal of orphans panicked");
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
        self.state.report.orphans += orphans;
        self.tick_later();
    }
}

impl Handler<Observe> for Pruner {
    type Result = PrunerState;

    fn handle(&mut self, _: Observe, _: &mut Self::Context) -> PrunerState {
        self.state.report
    }
}

impl Handler<Configure> for Pruner {
    type Result = ();

    fn handle(&mut self, Configure(config): Configure, _: &mut Self::Context) {
        self.state.config = config;
    }
}
