//! One sandbox that keeps its state, and the jobs that run in it one after another.
//!
//! A session takes its sandbox from the pool when it starts, so jobs may wait for it from the
//! first moment, and two first requests make one sandbox. It ends once: deleted, or lost with its
//! sandbox. Then it tells the registry, and answers what is still on its way.

mod message;
mod turn;

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use actix::fut::wrap_future;
use actix::prelude::*;
use tokio::task::JoinError;
use tokio::time::Instant;

use crate::error::ExecuteError;
use crate::pool::{self, Held, Lease, PoolError};
use crate::registry::{Ended, LossReported};
use crate::run::{Memory, Waits};
use crate::watch::{DeathWatch, destroy};
use message::Died;
pub(crate) use message::{Delete, Prune, Run, Setting, Status};
pub use message::{Observe, Phase, SessionKey, SessionState};
use turn::{Turn, TurnEnd};

/// The actor.
#[derive(Debug)]
pub struct Session {
    setting: Setting,
    state: State,
    queue: VecDeque<Run>,
    started: Instant,
    /// What the sandbox cost the first job in time; later ones find it there.
    acquire: Duration,
}

#[derive(Debug)]
enum State {
    /// The pool was asked for a sandbox.
    Starting,
    Idle(Home),
    Running(Home, Turn),
    Ended(Ending),
}

/// The session's sandbox.
#[derive(Debug)]
struct Home {
    held: Held,
    /// When it was last used.
    used: Instant,
    _watch: DeathWatch,
}

/// Why a session is over.
#[derive(Clone, Debug)]
pub(crate) enum Ending {
    /// Its sandbox is gone; the reason.
    Lost(String),
    /// Its user wanted it so.
    Deleted,
    /// It got no sandbox.
    Failed(ExecuteError),
    /// Nobody has used it for this long.
    Pruned(Duration),
    /// Whoever wanted it was gone before it had a sandbox.
    Unused,
}

impl Actor for Session {
    type Context = Context<Self>;

    fn started(&mut self, ctx: &mut Self::Context) {
        let pool = self.setting.pool.clone();
        let tenant = self.setting.key.tenant.clone();
        let spec = self.setting.spec.clone();
        // The pool bounds its own work in time.
        let acquiring = async move { pool::acquire(&pool, tenant, spec).await };
        let acquired = wrap_future::<_, Self>(acquiring);
        ctx.spawn(acquired.map(|lease, session, ctx| session.settle_in(lease, ctx)));
    }
}

impl Session {
    pub(crate) fn new(setting: Setting) -> Self {
        Self {
            setting,
            state: State::Starting,
            queue: VecDeque::new(),
            started: Instant::now(),
            acquire: Duration::ZERO,
        }
    }

    fn settle_in(&mut self, lease: Result<Lease, PoolError>, ctx: &mut Context<Self>) {
        if !matches!(self.state, State::Starting) {
            // Deleted before it began: the lease finds its way back.
            return;
        }
        self.queue.retain(|run| !run.cancel.is_cancelled());
        match lease {
            Err(error) => self.end(Ending::Failed(error.into()), ctx),
            Ok(_) if self.queue.is_empty() => self.end(Ending::Unused, ctx),
            Ok(lease) => {
                let held = lease.take();
                let id = held.sandbox.id().to_string();
                // The only place that sets it.
                let _ = self.setting.status.container.set(id);
                self.acquire = self.started.elapsed();
                let session = ctx.address().downgrade();
                let watch = DeathWatch::new(held.sandbox.control(), move |reason| {
                    if let Some(session) = session.upgrade() {
                        session.do_send(Died(reason));
                    }
                });
                self.state = State::Idle(Home {
                    held,
                    used: Instant::now(),
                    _watch: watch,
                });
                self.next(ctx);
            }
        }
    }

    /// Begins the next job, where there is one and none is running.
    fn next(&mut self, ctx: &mut Context<Self>) {
        if !matches!(self.state, State::Idle(_)) {
            return;
        }
        self.queue.retain(|run| !run.cancel.is_cancelled());
        let Some(run) = self.queue.pop_front() else {
            return;
        };
        if let State::Idle(home) = std::mem::replace(&mut self.state, State::Starting) {
            self.begin(home, run, ctx);
        }
    }

    fn begin(&mut self, home: Home, run: Run, ctx: &mut Context<Self>) {
        let acquire = std::mem::take(&mut self.acquire);
        let waits = Waits {
            queue: run.received.elapsed().saturating_sub(acquire),
            acquire,
        };
        let (turn, running) = Turn::begin(run, home.held.clone(), &self.setting, waits);
        let ended = wrap_future::<_, Self>(running);
        ctx.spawn(ended.map(|ended, session, ctx| session.finish(ended, ctx)));
        self.setting.status.set_active(true);
        self.state = State::Running(home, turn);
    }

    fn finish(&mut self, ended: Result<TurnEnd, JoinError>, ctx: &mut Context<Self>) {
        let (mut home, turn) = match std::mem::replace(&mut self.state, State::Starting) {
            State::Running(home, turn) => (home, turn),
            // The session ended under the job, which has its answer already.
            other => {
                self.state = other;
                return;
            }
        };
        self.setting.status.set_active(false);
        let (held, result) = match ended {
            Ok(TurnEnd { held, result }) => (held, result),
            Err(panic) => {
                log::error!(session:% = self.setting.key.id, error:% = panic; "run panicked");
                let mut held = home.held.clone();
                held.memory = Memory::unknown();
                let text = "the run panicked".to_owned();
                (held, Err(ExecuteError::Internal(text)))
            }
        };
        home.held = held;
        home.used = Instant::now();
        if let Err(ExecuteError::SandboxLost(reason)) = result {
            self.state = State::Running(home, turn);
            return self.end(Ending::Lost(reason), ctx);
        }
        let told_of_loss = result.as_ref().is_ok_and(|result| result.state_lost);
        if turn.reply.send(result).is_err() {
            home.held.memory.unreported_loss |= told_of_loss;
        }
        self.state = State::Idle(home);
        self.next(ctx);
    }

    /// Ends the session: everybody who waits is told, and the sandbox goes. The future says when.
    fn end(&mut self, ending: Ending, ctx: &mut Context<Self>) {
        let error = self.error_for(&ending);
        let state = std::mem::replace(&mut self.state, State::Ended(ending.clone()));
        let (home, turn) = match state {
            State::Running(home, turn) => (Some(home), Some(turn)),
            State::Idle(home) => (Some(home), None),
            State::Starting => (None, None),
            State::Ended(first) => {
                self.state = State::Ended(first);
                return;
            }
        };
        self.setting.status.set_active(false);
        let mut told = false;
        if let Some(turn) = turn {
            turn.cancel.cancel();
            told |= turn.reply.send(Err(error.clone())).is_ok();
        }
        for run in self.queue.drain(..) {
            told |= run.reply.send(Err(error.clone())).is_ok();
        }
        let sandbox = home.map(|home| home.held.sandbox);
        if let Ending::Lost(reason) = &ending {
            let key = &self.setting.key;
            let sandbox = self.setting.status.container.get();
            log::warn!(session:% = key.id, tenant:% = key.tenant, sandbox:?, reason:%; "session lost");
        }
        let over = Ended {
            key: self.setting.key.clone(),
            generation: self.setting.generation,
            lost: match ending {
                Ending::Lost(reason) if !told => Some(reason),
                Ending::Pruned(idle) => Some(pruned(idle)),
                _ => None,
            },
        };
        if let Some(registry) = self.setting.registry.upgrade() {
            registry.do_send(over);
        }
        if let Some(sandbox) = sandbox {
            ctx.spawn(wrap_future(destroy(sandbox)));
        }
    }

    fn error_for(&self, ending: &Ending) -> ExecuteError {
        let session = self.setting.key.id.clone();
        match ending {
            Ending::Lost(reason) => ExecuteError::SessionLost {
                session,
                reason: reason.clone(),
            },
            Ending::Deleted => ExecuteError::SessionDeleted { session },
            Ending::Pruned(idle) => ExecuteError::SessionLost {
                session,
                reason: pruned(*idle),
            },
            Ending::Failed(error) => error.clone(),
            Ending::Unused => ExecuteError::Cancelled,
        }
    }

    /// Why a job may not even wait, where it may not.
    fn refusal(&mut self, run: &Run) -> Option<ExecuteError> {
        let session = self.setting.key.id.clone();
        let bound = self.setting.spec.runtime;
        let asked = run.job.runtime();
        if bound != asked {
            return Some(ExecuteError::RuntimeMismatch {
                session,
                bound,
                asked,
            });
        }
        self.queue.retain(|run| !run.cancel.is_cancelled());
        let limit = self.setting.queue_limit;
        (self.queue.len() >= limit).then_some(ExecuteError::QueueFull { session, limit })
    }
}

impl Handler<Run> for Session {
    type Result = ();

    fn handle(&mut self, run: Run, ctx: &mut Self::Context) {
        if let State::Ended(ending) = &self.state {
            let error = self.error_for(ending);
            let is_loss = matches!(ending, Ending::Lost(_) | Ending::Pruned(_));
            if run.reply.send(Err(error)).is_ok()
                && is_loss
                && let Some(registry) = self.setting.registry.upgrade()
            {
                registry.do_send(LossReported(self.setting.key.clone()));
            }
            return;
        }
        if let Some(refusal) = self.refusal(&run) {
            // Whoever is gone by now needs no answer.
            let _ = run.reply.send(Err(refusal));
            return;
        }
        self.queue.push_back(run);
        self.next(ctx);
    }
}

impl Handler<Delete> for Session {
    type Result = ResponseFuture<()>;

    fn handle(&mut self, _: Delete, ctx: &mut Self::Context) -> Self::Result {
        let sandbox = match &self.state {
            State::Idle(home) | State::Running(home, _) => Some(Arc::clone(&home.held.sandbox)),
            State::Starting | State::Ended(_) => None,
        };
        self.end(Ending::Deleted, ctx);
        match sandbox {
            // Destroying again is harmless, and ends when the first has.
            Some(sandbox) => Box::pin(destroy(sandbox)),
            None => Box::pin(async {}),
        }
    }
}

impl Handler<Prune> for Session {
    type Result = ();

    fn handle(&mut self, Prune { max_idle }: Prune, ctx: &mut Self::Context) {
        let State::Idle(home) = &self.state else {
            return;
        };
        let idle = home.used.elapsed();
        if idle >= max_idle && self.queue.is_empty() {
            log::info!(session:% = self.setting.key.id, idle_s = idle.as_secs(); "session pruned");
            self.end(Ending::Pruned(idle), ctx);
        }
    }
}

impl Handler<Died> for Session {
    type Result = ();

    fn handle(&mut self, Died(reason): Died, ctx: &mut Self::Context) {
        self.end(Ending::Lost(reason), ctx);
    }
}

impl Handler<Observe> for Session {
    type Result = SessionState;

    fn handle(&mut self, _: Observe, _: &mut Self::Context) -> SessionState {
        SessionState {
            phase: match self.state {
                State::Starting => Phase::Starting,
                State::Idle(_) => Phase::Idle,
                State::Running(..) => Phase::Running,
                State::Ended(_) => Phase::Ended,
            },
            runtime: self.setting.spec.runtime,
            waiting: self.queue.len(),
        }
    }
}

fn pruned(idle: Duration) -> String {
    let seconds = idle.as_secs();
    format!(
        "idle for {seconds} s, longer than cleanup.maxContainerAgeMs; cleanup.autoPrune = false keeps sessions"
    )
}
