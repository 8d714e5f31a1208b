//! A sandbox that keeps its state, and the jobs that run in it one after another.
//!
//! A session takes its sandbox from the pool when it starts, so that jobs may wait for it from the first moment, and
//! two first requests make one sandbox. A session ends once: deleted, or lost with its sandbox. At its end it informs
//! the registry, and answers the requests that are still on their way.

mod job_task;
mod message;
mod open;

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::Duration;

use actix::fut::wrap_future;
use actix::prelude::*;
use isol8_backend::Claim;
use tokio::task::JoinHandle;
use tokio::time::Instant;

use crate::error::ExecuteError;
use crate::loss;
use crate::pool::{self, Lease, PoolError, PooledSandbox};
use crate::registry::{Again, Ended, LossReported};
use crate::run::{QueueTimings, SandboxHistory};
use crate::supervisor::{StateGuard, Supervised};
use crate::watch::{DeathWatch, destroy};
use job_task::RunningJob;
use message::{Acquired, Died, TurnEnded};
pub(crate) use message::{Delete, HealthCheck, Leave, Open, Run, SessionContext, Status, Used};
pub use message::{Observe, Phase, SessionKey, SessionState};

/// The actor.
#[derive(Debug)]
pub struct Session {
    setting: SessionContext,
    own: StateGuard<Self, ActorState>,
}

/// The state of a session, which a restarted session takes over.
#[derive(Debug)]
struct ActorState {
    state: State,
    queue: VecDeque<Run>,
    started: Instant,
    /// How long the first job waited for the sandbox; later jobs find it ready.
    acquire: Duration,
}

impl Default for ActorState {
    fn default() -> Self {
        Self {
            state: State::New,
            queue: VecDeque::new(),
            started: Instant::now(),
            acquire: Duration::ZERO,
        }
    }
}

#[derive(Debug)]
enum State {
    /// The session has not asked for a sandbox yet.
    New,
    /// A sandbox of an earlier process, idle for this long.
    Adopted(PooledSandbox, Duration),
    /// The pool was asked for a sandbox.
    Starting,
    Idle(SessionSandbox),
    Running(SessionSandbox, RunningJob),
    Ended(Ending),
    /// The session is between two states. If an actor finds its predecessor in this state, the predecessor's sandbox is
    /// gone.
    Between,
}

/// The session's sandbox.
#[derive(Debug)]
struct SessionSandbox {
    held: PooledSandbox,
    /// When it was last used.
    used: Instant,
    /// Set if the session was used since its last use was persisted.
    is_touched: bool,
    /// The claim is being persisted; the first answer waits for it, so that a session that has answered once outlives
    /// the server.
    claiming: Option<JoinHandle<()>>,
    _watch: DeathWatch,
}

impl SessionSandbox {
    fn note_use(&mut self) {
        self.used = Instant::now();
        self.is_touched = true;
    }
}

/// Why a session is over.
#[derive(Clone, Debug)]
pub(crate) enum Ending {
    /// Its sandbox is gone; the reason.
    Lost(String),
    /// Its user wanted it so.
    Deleted,
    /// The session got no sandbox.
    Failed(ExecuteError),
    /// The session was idle for this long.
    Pruned(Duration),
    /// The requester had gone before the session had a sandbox.
    Unused,
    /// The server ends, and leaves the sandbox to the next one.
    Left,
}

impl Actor for Session {
    type Context = Context<Self>;

    fn started(&mut self, ctx: &mut Self::Context) {
        let state = std::mem::replace(&mut self.own.state, State::Between);
        self.own.state = match state {
            State::Adopted(held, idle) => State::Idle(self.home(held, idle, None)),
            other => other,
        };
        match self.own.state {
            State::New => self.acquire(),
            State::Between | State::Adopted(..) => {
                let reason = "its actor panicked".to_owned();
                self.end(Ending::Lost(reason), ctx);
            }
            // A transition under way reports to the restarted actor.
            State::Starting | State::Running(..) | State::Ended(_) => {}
            State::Idle(_) => self.next(),
        }
    }
}

/// Starts a session on the current arbiter. `restarts` counts its successors.
pub(crate) fn start(setting: SessionContext, restarts: Arc<AtomicU64>) -> Supervised<Session> {
    start_with(setting, restarts, ActorState::default())
}

/// As [`start`], with a sandbox from an earlier process that was last used so long ago.
pub(crate) fn adopt(
    setting: SessionContext,
    restarts: Arc<AtomicU64>,
    held: PooledSandbox,
    idle: Duration,
) -> Supervised<Session> {
    let state = ActorState {
        state: State::Adopted(held, idle),
        ..ActorState::default()
    };
    start_with(setting, restarts, state)
}

fn start_with(
    setting: SessionContext,
    restarts: Arc<AtomicU64>,
    state: ActorState,
) -> Supervised<Session> {
    Supervised::start("session", restarts, state, move |own| Session {
        setting: setting.clone(),
        own,
    })
}

impl Session {
    fn acquire(&mut self) {
        let pool = self.setting.pool.clone();
        let tenant = self.setting.key.tenant.clone();
        let spec = self.setting.spec.clone();
        self.own.state = State::Starting;
        // The pool bounds its own work in time.
        let acquiring = async move { pool::acquire(&pool, tenant, spec).await };
        self.own.handle().report(acquiring, |lease| {
            Acquired(lease.unwrap_or(Err(PoolError::Panicked)))
        });
    }

    fn settle_in(&mut self, lease: Result<Lease, PoolError>, ctx: &mut Context<Self>) {
        if !matches!(self.own.state, State::Starting) {
            // Deleted before it began: the lease finds its way back.
            return;
        }
        self.own.queue.retain(|run| !run.cancel.is_cancelled());
        match lease {
            Err(error) => self.end(Ending::Failed(error.into()), ctx),
            Ok(_) if self.own.queue.is_empty() => self.end(Ending::Unused, ctx),
            Ok(lease) => {
                let held = lease.take();
                let id = held.sandbox.id().to_string();
                // The only place that sets it.
                let _ = self.setting.status.container.set(id);
                self.own.acquire = self.own.started.elapsed();
                let claiming = self.claim(&held);
                self.own.state = State::Idle(self.home(held, Duration::ZERO, Some(claiming)));
                self.next();
            }
        }
    }

    /// Settles a sandbox that was last used so long ago.
    fn home(
        &self,
        held: PooledSandbox,
        idle: Duration,
        claiming: Option<JoinHandle<()>>,
    ) -> SessionSandbox {
        let session = self.own.handle();
        let watch = DeathWatch::new(held.sandbox.control(), move |reason| {
            session.do_send(Died(reason));
        });
        let now = Instant::now();
        SessionSandbox {
            held,
            used: now.checked_sub(idle).unwrap_or(now),
            is_touched: false,
            claiming,
            _watch: watch,
        }
    }

    /// Writes down whose the sandbox is.
    fn claim(&self, held: &PooledSandbox) -> JoinHandle<()> {
        let sandbox = Arc::clone(&held.sandbox);
        let key = &self.setting.key;
        let claim = Claim {
            tenant: key.tenant.clone(),
            session: key.id.clone(),
            spec: held.spec.clone(),
            created_at: self.setting.status.created_at,
            defaults: self.setting.defaults.clone(),
        };
        tokio::spawn(async move {
            if let Err(error) = sandbox.claim(&claim).await {
                let session = &claim.session;
                log::warn!(session:%, error:%; "session handoff not outlive the server");
            }
        })
    }

    /// Starts the next job, if there is one and none is running.
    fn next(&mut self) {
        if !matches!(self.own.state, State::Idle(_)) {
            return;
        }
        self.own.queue.retain(|run| !run.cancel.is_cancelled());
        let Some(run) = self.own.queue.pop_front() else {
            return;
        };
        if let State::Idle(home) = std::mem::replace(&mut self.own.state, State::Between) {
            self.begin(home, run);
        }
    }

    fn begin(&mut self, mut home: SessionSandbox, run: Run) {
        let acquire = std::mem::take(&mut self.own.acquire);
        let waits = QueueTimings {
            queue: run.received.elapsed().saturating_sub(acquire),
            acquire,
        };
        let session = self.own.handle();
        let beginning = job_task::JobStart {
            run,
            held: home.held.clone(),
            claiming: home.claiming.take(),
            waits,
        };
        let turn = RunningJob::begin(beginning, &self.setting, session);
        self.own.state = State::Running(home, turn);
        self.setting.status.set_active(true);
    }

    fn finish(&mut self, ended: TurnEnded, ctx: &mut Context<Self>) {
        let TurnEnded { held, result } = ended;
        let (mut home, turn) = match std::mem::replace(&mut self.own.state, State::Between) {
            State::Running(home, turn) => (home, turn),
            // The session ended under the job, which has its answer already.
            other => {
                self.own.state = other;
                return;
            }
        };
        self.setting.status.set_active(false);
        match held {
            Some(held) => home.held = held,
            None => home.held.memory = SandboxHistory::unknown(),
        }
        home.note_use();
        if let Err(ExecuteError::SandboxLost(reason)) = result {
            self.own.state = State::Running(home, turn);
            return self.end(Ending::Lost(reason), ctx);
        }
        let told_of_loss = result.as_ref().is_ok_and(|result| result.state_lost);
        if turn.reply.send(result).is_err() {
            home.held.memory.unreported_loss |= told_of_loss;
        }
        self.own.state = State::Idle(home);
        self.next();
    }

    /// Ends the session: all waiting requests are answered, and the sandbox is removed. The future completes with the
    /// removal.
    fn end(&mut self, ending: Ending, ctx: &mut Context<Self>) {
        let error = self.error_for(&ending);
        let state = std::mem::replace(&mut self.own.state, State::Ended(ending.clone()));
        let (home, turn) = match state {
            State::Running(home, turn) => (Some(home), Some(turn)),
            State::Idle(home) => (Some(home), None),
            State::New | State::Adopted(..) | State::Starting | State::Between => (None, None),
            State::Ended(first) => {
                self.own.state = State::Ended(first);
                return;
            }
        };
        self.setting.status.set_active(false);
        let mut told = false;
        if let Some(turn) = turn {
            told |= turn.reply.send(Err(error.clone())).is_ok();
        }
        for run in self.own.queue.drain(..) {
            told |= run.reply.send(Err(error.clone())).is_ok();
        }
        let sandbox = home.map(|home| home.held.sandbox);
        if let Ending::Lost(reason) = &ending {
            let key = &self.setting.key;
            let sandbox = self.setting.status.container.get();
            log::warn!(session:% = key.id, tenant:% = key.tenant, sandbox:?, reason:%; "session lost");
        }
        let is_left = matches!(ending, Ending::Left);
        let lost = match ending {
            Ending::Lost(reason) if !told => Some(reason),
            Ending::Pruned(idle) => Some(pruned(idle)),
            _ => None,
        };
        // A session ends only once.
        let _ = self.setting.status.ended.set(lost.clone());
        self.setting.registry.do_send(Ended {
            key: self.setting.key.clone(),
            generation: self.setting.generation,
            lost,
        });
        match sandbox {
            Some(sandbox) if is_left => sandbox.leave(),
            Some(sandbox) => {
                ctx.spawn(wrap_future(destroy(sandbox)));
            }
            None => {}
        }
    }

    /// Notes that a request was told after the end how the session ended.
    fn note_told(&self, ending: &Ending) {
        if matches!(ending, Ending::Lost(_) | Ending::Pruned(_)) {
            let reported = LossReported(self.setting.key.clone());
            self.setting.registry.do_send(reported);
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
            Ending::Unused => ExecuteError::SessionNotFound,
            Ending::Left => ExecuteError::ShuttingDown,
        }
    }

    /// As a panic in the middle of a change does.
    #[cfg(test)]
    pub(crate) fn drop_state(&mut self) {
        self.own.state = State::Between;
    }

    /// Returns why a job may not even wait, if it may not.
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
        let host_network = self.setting.spec.host_network;
        if host_network != run.job.sandbox.host_network {
            let which = if host_network { "is" } else { "is not" };
            return Some(ExecuteError::Invalid(format!(
                "options.network: session {session} {which} in the host's network since its first request, \
                 and stays so, delete it first"
            )));
        }
        let image = &self.setting.spec.image;
        if run.job.image_is_named && run.job.sandbox.image != *image {
            let image = image.as_deref().unwrap_or("the runtime's own image");
            return Some(ExecuteError::Invalid(format!(
                "options.image: session {session} is of {image} since its first request, and stays so, \
                 delete it first"
            )));
        }
        self.own.queue.retain(|run| !run.cancel.is_cancelled());
        let limit = self.setting.queue_limit;
        (self.own.queue.len() >= limit).then_some(ExecuteError::QueueFull { session, limit })
    }
}

impl Handler<Acquired> for Session {
    type Result = ();

    fn handle(&mut self, Acquired(lease): Acquired, ctx: &mut Self::Context) {
        self.settle_in(lease, ctx);
    }
}

impl Handler<TurnEnded> for Session {
    type Result = ();

    fn handle(&mut self, ended: TurnEnded, ctx: &mut Self::Context) {
        self.finish(ended, ctx);
    }
}

impl Handler<Run> for Session {
    type Result = ();

    fn handle(&mut self, run: Run, _: &mut Self::Context) {
        if let State::Ended(ending) = &self.own.state {
            if matches!(ending, Ending::Unused) {
                // The sender could not know yet.
                let key = self.setting.key.clone();
                return self.setting.registry.do_send(Again { key, run });
            }
            let error = self.error_for(ending);
            if run.reply.send(Err(error)).is_ok() {
                self.note_told(ending);
            }
            return;
        }
        if let Some(refusal) = self.refusal(&run) {
            // Ignore a closed channel: the requester has gone.
            let _ = run.reply.send(Err(refusal));
            return;
        }
        self.own.queue.push_back(run);
        self.next();
    }
}

impl Handler<Delete> for Session {
    type Result = ResponseFuture<()>;

    fn handle(&mut self, _: Delete, ctx: &mut Self::Context) -> Self::Result {
        let sandbox = match &self.own.state {
            State::Idle(home) | State::Running(home, _) => Some(Arc::clone(&home.held.sandbox)),
            _ => None,
        };
        self.end(Ending::Deleted, ctx);
        match sandbox {
            // Destroying again is harmless, and ends when the first has.
            Some(sandbox) => Box::pin(destroy(sandbox)),
            None => Box::pin(async {}),
        }
    }
}

impl Handler<Leave> for Session {
    type Result = ();

    fn handle(&mut self, _: Leave, ctx: &mut Self::Context) {
        self.end(Ending::Left, ctx);
    }
}

impl Handler<HealthCheck> for Session {
    type Result = ();

    fn handle(&mut self, HealthCheck { max_idle }: HealthCheck, ctx: &mut Self::Context) {
        let (State::Idle(home) | State::Running(home, _)) = &mut self.own.state else {
            return;
        };
        if std::mem::take(&mut home.is_touched) {
            let sandbox = Arc::clone(&home.held.sandbox);
            tokio::spawn(async move { sandbox.touch().await });
        }
        let idle = home.used.elapsed();
        let is_idle = matches!(self.own.state, State::Idle(_)) && self.own.queue.is_empty();
        let is_idle = is_idle && !self.setting.status.has_transfers();
        if is_idle && max_idle.is_some_and(|max_idle| idle >= max_idle) {
            log::info!(session:% = self.setting.key.id, idle_s = idle.as_secs(); "session pruned");
            self.end(Ending::Pruned(idle), ctx);
        }
    }
}

impl Handler<Died> for Session {
    type Result = ();

    fn handle(&mut self, Died(reason): Died, ctx: &mut Self::Context) {
        let (State::Idle(home) | State::Running(home, _)) = &self.own.state else {
            return self.end(Ending::Lost(reason), ctx);
        };
        let sandbox = Arc::clone(&home.held.sandbox);
        let known = home.held.memory.usage;
        let explaining = async move { loss::explain(&*sandbox, known, reason).await };
        let ending = wrap_future(explaining)
            .map(|reason, session: &mut Self, ctx| session.end(Ending::Lost(reason), ctx));
        ctx.spawn(ending);
    }
}

impl Handler<Observe> for Session {
    type Result = SessionState;

    fn handle(&mut self, _: Observe, _: &mut Self::Context) -> SessionState {
        SessionState {
            phase: match self.own.state {
                State::New | State::Adopted(..) | State::Starting | State::Between => {
                    Phase::Starting
                }
                State::Idle(_) => Phase::Idle,
                State::Running(..) => Phase::Running,
                State::Ended(_) => Phase::Ended,
            },
            runtime: self.setting.spec.runtime,
            waiting: self.own.queue.len(),
        }
    }
}

fn pruned(idle: Duration) -> String {
    let seconds = idle.as_secs();
    format!(
        "idle for {seconds} s, longer than cleanup.maxContainerAgeMs; cleanup.autoPrune = false keeps sessions"
    )
}
