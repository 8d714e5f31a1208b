//! A sandbox that keeps its state, and the jobs that run in it one after another.
//!
//! A session asks the pool for its sandbox when it starts. Jobs can be queued from that moment on, so that two first
//! requests share one sandbox. A session ends once, for instance by deletion or by the loss of its sandbox. At its end
//! it informs the registry, and it answers requests that arrive later.

mod context;
mod event;
mod job_task;
mod message;
mod permit;
mod status;
mod transfer;

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
use crate::memory;
use crate::pool::{self, Lease, PoolError};
use crate::run::QueueTimings;
use crate::sandbox::{PooledSandbox, SandboxHistory, destroy};
use crate::supervisor::{StateGuard, Supervised};
use crate::watch::DeathWatch;
pub(crate) use context::SessionContext;
pub(crate) use event::{SessionEnd, SessionEvent};
use job_task::RunningJob;
use message::{Acquired, Died, JobEnded};
pub(crate) use message::{BeginTransfer, Delete, HealthCheck, LeaveForAdoption, RunJob};
pub use message::{Observe, Phase, SessionKey, SessionState};
pub(crate) use permit::TransferPermit;
pub(crate) use status::SessionStatus;

/// The actor.
#[derive(Debug)]
pub struct Session {
    context: SessionContext,
    state: StateGuard<Self, ActorState>,
}

/// The state of a session, which a restarted session takes over.
#[derive(Debug)]
struct ActorState {
    lifecycle: Lifecycle,
    queue: VecDeque<RunJob>,
    started: Instant,
    /// How long the first job waited for the sandbox; later jobs find it ready.
    acquire: Duration,
}

impl Default for ActorState {
    fn default() -> Self {
        Self {
            lifecycle: Lifecycle::New,
            queue: VecDeque::new(),
            started: Instant::now(),
            acquire: Duration::ZERO,
        }
    }
}

#[derive(Debug)]
enum Lifecycle {
    /// The session has not asked for a sandbox yet.
    New,
    /// The session has a sandbox of an earlier process, which was idle for this long.
    Adopted(PooledSandbox, Duration),
    /// The pool was asked for a sandbox.
    Starting,
    Idle(SessionSandbox),
    Running(SessionSandbox, RunningJob),
    Ended(EndReason),
    /// The session is between two states. If a restarted actor finds this state, the sandbox was lost in the panic.
    Between,
}

/// The session's sandbox.
#[derive(Debug)]
struct SessionSandbox {
    held: PooledSandbox,
    /// Time of the last use.
    used: Instant,
    /// Set if the session was used since its last use was persisted.
    is_touched: bool,
    /// The task that persists the claim. The first answer waits for it, so that a session that has answered once
    /// outlives the server.
    claiming: Option<JoinHandle<()>>,
    _watch: DeathWatch,
}

impl SessionSandbox {
    fn note_use(&mut self) {
        self.used = Instant::now();
        self.is_touched = true;
    }
}

/// The reason why a session ended.
#[derive(Clone, Debug)]
pub(crate) enum EndReason {
    /// The sandbox was lost, for this reason.
    Lost(String),
    /// A client deleted the session.
    Deleted,
    /// The session got no sandbox.
    Failed(ExecuteError),
    /// The session was idle for this long.
    Pruned(Duration),
    /// The requester had gone before the session had a sandbox.
    Unused,
    /// The server shuts down, and leaves the sandbox to the next server.
    LeftForAdoption,
}

impl Actor for Session {
    type Context = Context<Self>;

    fn started(&mut self, ctx: &mut Self::Context) {
        let state = std::mem::replace(&mut self.state.lifecycle, Lifecycle::Between);
        self.state.lifecycle = match state {
            Lifecycle::Adopted(held, idle) => Lifecycle::Idle(self.own_sandbox(held, idle, None)),
            other => other,
        };
        match self.state.lifecycle {
            Lifecycle::New => self.acquire(),
            Lifecycle::Between | Lifecycle::Adopted(..) => {
                let reason = "its actor panicked".to_owned();
                self.end(EndReason::Lost(reason), ctx);
            }
            // A transition under way reports to the restarted actor.
            Lifecycle::Starting | Lifecycle::Running(..) | Lifecycle::Ended(_) => {}
            Lifecycle::Idle(_) => self.start_next(),
        }
    }
}

/// Starts a session on the current arbiter. `restarts` counts its restarts.
pub(crate) fn start(context: SessionContext, restarts: Arc<AtomicU64>) -> Supervised<Session> {
    start_with(context, restarts, ActorState::default())
}

/// As [`start`], with a sandbox of an earlier process that has been idle for the time `idle`.
pub(crate) fn adopt(
    context: SessionContext,
    restarts: Arc<AtomicU64>,
    held: PooledSandbox,
    idle: Duration,
) -> Supervised<Session> {
    let state = ActorState {
        lifecycle: Lifecycle::Adopted(held, idle),
        ..ActorState::default()
    };
    start_with(context, restarts, state)
}

fn start_with(
    context: SessionContext,
    restarts: Arc<AtomicU64>,
    state: ActorState,
) -> Supervised<Session> {
    Supervised::start("session", restarts, state, move |state| Session {
        context: context.clone(),
        state,
    })
}

impl Session {
    fn acquire(&mut self) {
        let pool = self.context.pool.clone();
        let tenant = self.context.key.tenant.clone();
        let spec = self.context.spec.clone();
        self.state.lifecycle = Lifecycle::Starting;
        // The pool bounds its own work in time.
        let acquiring = async move { pool::acquire(&pool, tenant, spec).await };
        self.state.handle().report(acquiring, |lease| {
            Acquired(lease.unwrap_or(Err(PoolError::Panicked)))
        });
    }

    fn on_acquired(&mut self, lease: Result<Lease, PoolError>, ctx: &mut Context<Self>) {
        if !matches!(self.state.lifecycle, Lifecycle::Starting) {
            // The session was deleted before it had a sandbox. Dropping the lease returns the sandbox.
            return;
        }
        self.state.queue.retain(|run| !run.cancel.is_cancelled());
        match lease {
            Err(error) => self.end(EndReason::Failed(error.into()), ctx),
            Ok(_) if self.state.queue.is_empty() => self.end(EndReason::Unused, ctx),
            Ok(lease) => {
                let held = lease.take();
                let id = held.sandbox.id().to_string();
                // The value is set nowhere else, so this cannot fail.
                let _ = self.context.status.container.set(id);
                self.state.acquire = self.state.started.elapsed();
                let claiming = self.claim(&held);
                self.state.lifecycle =
                    Lifecycle::Idle(self.own_sandbox(held, Duration::ZERO, Some(claiming)));
                self.start_next();
            }
        }
    }

    /// Watches a sandbox that has been idle for the time `idle`, and makes it the session's.
    fn own_sandbox(
        &self,
        held: PooledSandbox,
        idle: Duration,
        claiming: Option<JoinHandle<()>>,
    ) -> SessionSandbox {
        let session = self.state.handle();
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

    /// Persists that the sandbox belongs to this session.
    fn claim(&self, held: &PooledSandbox) -> JoinHandle<()> {
        let sandbox = Arc::clone(&held.sandbox);
        let key = &self.context.key;
        let claim = Claim {
            tenant: key.tenant.clone(),
            session: key.id.clone(),
            spec: held.spec.clone(),
            created_at: self.context.status.created_at,
            defaults: self.context.defaults.clone(),
        };
        tokio::spawn(async move {
            if let Err(error) = sandbox.claim(&claim).await {
                let session = &claim.session;
                log::warn!(session:%, error:%; "session will not outlive the server");
            }
        })
    }

    /// Starts the next job, if there is one and none is running.
    fn start_next(&mut self) {
        if !matches!(self.state.lifecycle, Lifecycle::Idle(_)) {
            return;
        }
        self.state.queue.retain(|run| !run.cancel.is_cancelled());
        let Some(run) = self.state.queue.pop_front() else {
            return;
        };
        if let Lifecycle::Idle(owned) =
            std::mem::replace(&mut self.state.lifecycle, Lifecycle::Between)
        {
            self.start_job(owned, run);
        }
    }

    fn start_job(&mut self, mut owned: SessionSandbox, run: RunJob) {
        let acquire = std::mem::take(&mut self.state.acquire);
        let timings = QueueTimings {
            queue: run.received.elapsed().saturating_sub(acquire),
            acquire,
        };
        let session = self.state.handle().recipient();
        let start = job_task::JobStart {
            run,
            held: owned.held.clone(),
            claiming: owned.claiming.take(),
            timings,
        };
        let running = RunningJob::start(start, &self.context, session);
        self.state.lifecycle = Lifecycle::Running(owned, running);
        self.context.status.set_active(true);
    }

    fn on_job_ended(&mut self, ended: JobEnded, ctx: &mut Context<Self>) {
        let JobEnded { held, result } = ended;
        let (mut owned, running) =
            match std::mem::replace(&mut self.state.lifecycle, Lifecycle::Between) {
                Lifecycle::Running(owned, running) => (owned, running),
                // The session ended during the job, which has its answer already.
                other => {
                    self.state.lifecycle = other;
                    return;
                }
            };
        self.context.status.set_active(false);
        match held {
            Some(held) => owned.held = held,
            None => owned.held.history = SandboxHistory::unknown(),
        }
        owned.note_use();
        if let Err(ExecuteError::SandboxLost(reason)) = result {
            self.state.lifecycle = Lifecycle::Running(owned, running);
            return self.end(EndReason::Lost(reason), ctx);
        }
        let reported_loss = result.as_ref().is_ok_and(|result| result.state_lost);
        if running.reply.send(result).is_err() {
            owned.held.history.unreported_loss |= reported_loss;
        }
        self.state.lifecycle = Lifecycle::Idle(owned);
        self.start_next();
    }

    /// Ends the session: all waiting requests are answered, and the sandbox is removed. The future completes with the
    /// removal.
    fn end(&mut self, ending: EndReason, ctx: &mut Context<Self>) {
        let error = self.error_for(&ending);
        let state = std::mem::replace(&mut self.state.lifecycle, Lifecycle::Ended(ending.clone()));
        let (owned, running) = match state {
            Lifecycle::Running(owned, running) => (Some(owned), Some(running)),
            Lifecycle::Idle(owned) => (Some(owned), None),
            Lifecycle::New | Lifecycle::Adopted(..) | Lifecycle::Starting | Lifecycle::Between => {
                (None, None)
            }
            Lifecycle::Ended(first) => {
                self.state.lifecycle = Lifecycle::Ended(first);
                return;
            }
        };
        self.context.status.set_active(false);
        let mut reported = false;
        if let Some(running) = running {
            reported |= running.reply.send(Err(error.clone())).is_ok();
        }
        for run in self.state.queue.drain(..) {
            reported |= run.reply.send(Err(error.clone())).is_ok();
        }
        let sandbox = owned.map(|owned| owned.held.sandbox);
        if let EndReason::Lost(reason) = &ending {
            let key = &self.context.key;
            let sandbox = self.context.status.container.get();
            log::warn!(session:% = key.id, tenant:% = key.tenant, sandbox:?, reason:%; "session lost");
        }
        let is_for_adoption = matches!(ending, EndReason::LeftForAdoption);
        let lost = match ending {
            EndReason::Lost(reason) if !reported => Some(reason),
            EndReason::Pruned(idle) => Some(pruned(idle)),
            _ => None,
        };
        // A session ends only once.
        let _ = self.context.status.ended.set(lost.clone());
        self.context
            .registry
            .do_send(SessionEvent::Ended(SessionEnd {
                key: self.context.key.clone(),
                generation: self.context.generation,
                lost,
            }));
        match sandbox {
            Some(sandbox) if is_for_adoption => sandbox.leave(),
            Some(sandbox) => {
                ctx.spawn(wrap_future(destroy(sandbox)));
            }
            None => {}
        }
    }

    /// Tells the registry that a request has learned, after the session's end, how the session ended.
    fn note_reported(&self, ending: &EndReason) {
        if matches!(ending, EndReason::Lost(_) | EndReason::Pruned(_)) {
            let reported = SessionEvent::LossReported(self.context.key.clone());
            self.context.registry.do_send(reported);
        }
    }

    fn error_for(&self, ending: &EndReason) -> ExecuteError {
        let session = self.context.key.id.clone();
        match ending {
            EndReason::Lost(reason) => ExecuteError::SessionLost {
                session,
                reason: reason.clone(),
            },
            EndReason::Deleted => ExecuteError::SessionDeleted { session },
            EndReason::Pruned(idle) => ExecuteError::SessionLost {
                session,
                reason: pruned(*idle),
            },
            EndReason::Failed(error) => error.clone(),
            EndReason::Unused => ExecuteError::SessionNotFound,
            EndReason::LeftForAdoption => ExecuteError::ShuttingDown,
        }
    }

    /// Leaves the session in the state that a panic in the middle of a change would leave.
    #[cfg(test)]
    pub(crate) fn drop_state(&mut self) {
        self.state.lifecycle = Lifecycle::Between;
    }

    /// Returns the error for a job that cannot be queued, if it cannot.
    fn refusal(&mut self, run: &RunJob) -> Option<ExecuteError> {
        let session = self.context.key.id.clone();
        let bound = self.context.spec.runtime;
        let asked = run.job.runtime();
        if bound != asked {
            return Some(ExecuteError::RuntimeMismatch {
                session,
                bound,
                asked,
            });
        }
        let host_network = self.context.spec.host_network;
        if host_network != run.job.sandbox.host_network {
            let which = if host_network { "is" } else { "is not" };
            return Some(ExecuteError::Invalid(format!(
                "options.network: session {session} {which} in the host's network since its first request, \
                 and stays so, delete it first"
            )));
        }
        let image = &self.context.spec.image;
        if run.job.image_is_named && run.job.sandbox.image != *image {
            let image = image.as_deref().unwrap_or("the runtime's own image");
            return Some(ExecuteError::Invalid(format!(
                "options.image: session {session} is of {image} since its first request, and stays so, \
                 delete it first"
            )));
        }
        self.state.queue.retain(|run| !run.cancel.is_cancelled());
        let limit = self.context.queue_limit;
        (self.state.queue.len() >= limit).then_some(ExecuteError::QueueFull { session, limit })
    }
}

impl Handler<Acquired> for Session {
    type Result = ();

    fn handle(&mut self, Acquired(lease): Acquired, ctx: &mut Self::Context) {
        self.on_acquired(lease, ctx);
    }
}

impl Handler<JobEnded> for Session {
    type Result = ();

    fn handle(&mut self, ended: JobEnded, ctx: &mut Self::Context) {
        self.on_job_ended(ended, ctx);
    }
}

impl Handler<RunJob> for Session {
    type Result = ();

    fn handle(&mut self, run: RunJob, _: &mut Self::Context) {
        if let Lifecycle::Ended(ending) = &self.state.lifecycle {
            if matches!(ending, EndReason::Unused) {
                // The registry has sent the job before it learned of the end.
                let key = self.context.key.clone();
                let requeue = SessionEvent::Requeue(key, run);
                return self.context.registry.do_send(requeue);
            }
            let error = self.error_for(ending);
            if run.reply.send(Err(error)).is_ok() {
                self.note_reported(ending);
            }
            return;
        }
        if let Some(refusal) = self.refusal(&run) {
            // Ignore a closed channel: the requester has gone.
            let _ = run.reply.send(Err(refusal));
            return;
        }
        self.state.queue.push_back(run);
        self.start_next();
    }
}

impl Handler<Delete> for Session {
    type Result = ResponseFuture<()>;

    fn handle(&mut self, _: Delete, ctx: &mut Self::Context) -> Self::Result {
        let sandbox = match &self.state.lifecycle {
            Lifecycle::Idle(owned) | Lifecycle::Running(owned, _) => {
                Some(Arc::clone(&owned.held.sandbox))
            }
            _ => None,
        };
        self.end(EndReason::Deleted, ctx);
        match sandbox {
            // A second removal has no effect, and completes when the first has.
            Some(sandbox) => Box::pin(destroy(sandbox)),
            None => Box::pin(async {}),
        }
    }
}

impl Handler<LeaveForAdoption> for Session {
    type Result = ();

    fn handle(&mut self, _: LeaveForAdoption, ctx: &mut Self::Context) {
        self.end(EndReason::LeftForAdoption, ctx);
    }
}

impl Handler<HealthCheck> for Session {
    type Result = ();

    fn handle(&mut self, HealthCheck { max_idle }: HealthCheck, ctx: &mut Self::Context) {
        let (Lifecycle::Idle(owned) | Lifecycle::Running(owned, _)) = &mut self.state.lifecycle
        else {
            return;
        };
        if std::mem::take(&mut owned.is_touched) {
            let sandbox = Arc::clone(&owned.held.sandbox);
            tokio::spawn(async move { sandbox.touch().await });
        }
        let idle = owned.used.elapsed();
        let is_idle =
            matches!(self.state.lifecycle, Lifecycle::Idle(_)) && self.state.queue.is_empty();
        let is_idle = is_idle && !self.context.status.has_transfers();
        if is_idle && max_idle.is_some_and(|max_idle| idle >= max_idle) {
            log::info!(session:% = self.context.key.id, idle_s = idle.as_secs(); "session pruned");
            self.end(EndReason::Pruned(idle), ctx);
        }
    }
}

impl Handler<Died> for Session {
    type Result = ();

    fn handle(&mut self, Died(reason): Died, ctx: &mut Self::Context) {
        let (Lifecycle::Idle(owned) | Lifecycle::Running(owned, _)) = &self.state.lifecycle else {
            return self.end(EndReason::Lost(reason), ctx);
        };
        let sandbox = Arc::clone(&owned.held.sandbox);
        let known = owned.held.history.usage;
        let explaining = async move { memory::explain_loss(&*sandbox, known, reason).await };
        let ending = wrap_future(explaining)
            .map(|reason, session: &mut Self, ctx| session.end(EndReason::Lost(reason), ctx));
        ctx.spawn(ending);
    }
}

impl Handler<Observe> for Session {
    type Result = SessionState;

    fn handle(&mut self, _: Observe, _: &mut Self::Context) -> SessionState {
        SessionState {
            phase: match self.state.lifecycle {
                Lifecycle::New
                | Lifecycle::Adopted(..)
                | Lifecycle::Starting
                | Lifecycle::Between => Phase::Starting,
                Lifecycle::Idle(_) => Phase::Idle,
                Lifecycle::Running(..) => Phase::Running,
                Lifecycle::Ended(_) => Phase::Ended,
            },
            runtime: self.context.spec.runtime,
            waiting: self.state.queue.len(),
        }
    }
}

fn pruned(idle: Duration) -> String {
    let seconds = idle.as_secs();
    format!(
        "idle for {seconds} s, longer than cleanup.maxContainerAgeMs; cleanup.autoPrune = false keeps sessions"
    )
}
