//! The registry of sessions.

mod transfer;

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use actix::prelude::*;
use futures::future::join_all;
use isol8_api::{ExecutionResult, SessionInfo, TenantId};
use isol8_backend::{Adopted, SandboxSpec};
use serde::Serialize;
use tokio::sync::oneshot;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::admission::Admission;
use crate::error::ExecuteError;
use crate::job::Job;
use crate::pool::Pool;
use crate::run::Attachment;
use crate::sandbox::{PooledSandbox, SandboxHistory};
use crate::session::{
    self, RunJob, Session, SessionContext, SessionEnd, SessionEvent, SessionKey, SessionState,
    SessionStatus, TransferPermit,
};
use crate::supervisor::{ATTEMPTS, Restarts, StateGuard, Supervised};

/// Highest number of unreported losses that are remembered; the oldest is dropped.
const MAX_LOSSES: usize = 10_000;

/// Limits of the registry.
#[derive(Clone, Copy, Debug)]
pub struct RegistryConfig {
    /// Highest number of sessions of all tenants together.
    pub max_sessions: usize,
    /// Highest number of sessions of one tenant.
    pub max_sessions_per_tenant: usize,
    /// Highest number of jobs that wait in one session, in addition to the one that runs.
    pub queue_limit: usize,
}

impl Default for RegistryConfig {
    fn default() -> Self {
        Self {
            max_sessions: 1000,
            max_sessions_per_tenant: 1000,
            queue_limit: 32,
        }
    }
}

/// Runs a job in a session, which is created if it does not exist.
#[derive(Debug, Message)]
#[rtype(result = "Result<ExecutionResult, ExecuteError>")]
pub struct Execute {
    /// The session.
    pub key: SessionKey,
    /// The job.
    pub job: Arc<Job>,
    /// The client that follows the run, if there is one.
    pub attachment: Option<Attachment>,
    /// Triggered when the caller has gone.
    pub cancel: CancellationToken,
}

/// Asks for the sessions of one tenant, or of all tenants.
#[derive(Debug, Message)]
#[rtype(result = "Vec<SessionInfo>")]
pub struct List {
    /// The tenant; `None` for all tenants, in which case each entry names its tenant.
    pub tenant: Option<TenantId>,
}

/// Deletes a session, and ends its jobs. The id is free at once; the answer comes when the sandbox is gone. The answer
/// is whether there was a session, or a loss of one that no request had been told.
#[derive(Debug, Message)]
#[rtype(result = "bool")]
pub struct Delete(pub SessionKey);

/// Refuses new sessions, ends the existing ones, and answers when they are gone.
#[derive(Clone, Copy, Debug, Message)]
#[rtype(result = "()")]
pub struct Shutdown {
    /// Whether the sandboxes are left to the next server instead of being removed.
    pub keep_sessions: bool,
}

/// Takes over the sessions that an earlier server left, and records the losses among them.
#[derive(Clone, Debug, Message)]
#[rtype(result = "()")]
pub struct Adopt(pub Vec<Adopted>);

/// Makes every session check its idle time.
#[derive(Clone, Copy, Debug, Message)]
#[rtype(result = "()")]
pub struct HealthCheck {
    /// Sessions that have been idle for this long end; each session decides for itself. `None` ends no session.
    pub max_idle: Option<Duration>,
}

/// Replaces the limits. Existing sessions stay.
#[derive(Clone, Copy, Debug, Message)]
#[rtype(result = "()")]
pub struct Configure(pub RegistryConfig);

/// Asks for a [`RegistryState`].
#[derive(Debug, Message)]
#[rtype(result = "RegistryState")]
pub struct Observe;

/// Asks for the state of one session, if it exists.
#[derive(Debug, Message)]
#[rtype(result = "Option<SessionState>")]
pub struct ObserveSession(pub SessionKey);

/// Asks for permission to transfer one file of a session. Creates no session.
#[derive(Debug, Message)]
#[rtype(result = "Result<TransferPermit, ExecuteError>")]
pub(crate) struct BeginTransfer(pub(crate) SessionKey);

/// The state that the registry reports.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, MessageResponse)]
#[serde(rename_all = "camelCase")]
pub struct RegistryState {
    /// Number of sessions.
    pub sessions: usize,
    /// Number of sessions that run a job.
    pub active: usize,
    /// Number of losses that no request has been told yet.
    pub losses: usize,
    /// Whether new sessions are refused.
    pub draining: bool,
}

/// The actor.
#[derive(Debug)]
pub struct Registry {
    pool: Supervised<Pool>,
    admission: Admission,
    restarts: Restarts,
    state: StateGuard<Self, ActorState>,
}

/// The state of a registry, which a restarted registry takes over.
#[derive(Debug, Default)]
struct ActorState {
    config: RegistryConfig,
    sessions: HashMap<SessionKey, SessionEntry>,
    losses: Losses,
    next_generation: u64,
    draining: bool,
}

#[derive(Debug)]
struct SessionEntry {
    session: Supervised<Session>,
    generation: u64,
    status: Arc<SessionStatus>,
}

impl Actor for Registry {
    type Context = Context<Self>;

    fn started(&mut self, ctx: &mut Self::Context) {
        // Senders wait if the mailbox is full. The load is bounded by admission and by the sessions, not by this
        // capacity.
        ctx.set_mailbox_capacity(1024);
        self.catch_up();
    }
}

/// Starts an empty registry on the current arbiter. The sandboxes of its sessions come from `pool`.
pub(crate) fn start(
    config: RegistryConfig,
    pool: Supervised<Pool>,
    admission: Admission,
    restarts: Restarts,
) -> Supervised<Registry> {
    let state = ActorState {
        config,
        ..ActorState::default()
    };
    let counter = Arc::clone(&restarts.registry);
    Supervised::start("registry", counter, state, move |state| Registry {
        pool: pool.clone(),
        admission: admission.clone(),
        restarts: restarts.clone(),
        state,
    })
}

impl Registry {
    /// Handles the ends of sessions that happened while no registry ran.
    fn catch_up(&mut self) {
        let ended = |(key, entry): (&SessionKey, &SessionEntry)| {
            let lost = entry.status.ended.get()?.clone();
            let generation = entry.generation;
            let key = key.clone();
            Some(SessionEnd {
                key,
                generation,
                lost,
            })
        };
        let ended: Vec<SessionEnd> = self.state.sessions.iter().filter_map(ended).collect();
        for ended in ended {
            self.on_ended(ended);
        }
    }

    #[cfg(test)]
    pub(crate) fn find(&self, key: &SessionKey) -> Option<Supervised<Session>> {
        self.state
            .sessions
            .get(key)
            .map(|entry| entry.session.clone())
    }

    fn on_ended(&mut self, ended: SessionEnd) {
        let current = self.state.sessions.get(&ended.key);
        if current.is_none_or(|entry| entry.generation != ended.generation) {
            return;
        }
        self.state.sessions.remove(&ended.key);
        if let Some(reason) = ended.lost {
            self.state.losses.insert(ended.key, reason);
        }
    }

    /// Returns the session of this key, or starts one. A session is entered before it has a sandbox, so that the second
    /// of two concurrent first requests finds it.
    fn find_or_start(
        &mut self,
        key: &SessionKey,
        job: &Job,
    ) -> Result<Supervised<Session>, ExecuteError> {
        if self.state.draining {
            return Err(ExecuteError::ShuttingDown);
        }
        let loss = self.state.losses.take(key);
        // A client that creates a session does not expect an earlier one, so the loss is not reported to it.
        if let (Some(reason), None) = (loss, &job.creates) {
            let session = key.id.clone();
            return Err(ExecuteError::SessionLost { session, reason });
        }
        if let Some(entry) = self.state.sessions.get(key) {
            if job.creates.is_some() {
                let session = key.id.clone();
                return Err(ExecuteError::SessionExists { session });
            }
            return Ok(entry.session.clone());
        }
        let limit = self.state.config.max_sessions;
        if self.state.sessions.len() >= limit {
            return Err(ExecuteError::TooManySessions { limit });
        }
        let limit = self.state.config.max_sessions_per_tenant;
        let of_tenant = |other: &&SessionKey| other.tenant == key.tenant;
        if limit < self.state.config.max_sessions
            && self.state.sessions.keys().filter(of_tenant).count() >= limit
        {
            return Err(ExecuteError::TooManySessionsOfTenant { limit });
        }
        let status = Arc::new(SessionStatus::new(job.runtime()));
        let mut context = self.context(key, job.sandbox.clone(), &status);
        context.defaults.clone_from(&job.creates);
        let generation = context.generation;
        let session = session::start(context, Arc::clone(&self.restarts.sessions));
        let entry = SessionEntry {
            session: session.clone(),
            generation,
            status,
        };
        self.state.sessions.insert(key.clone(), entry);
        Ok(session)
    }

    fn context(
        &mut self,
        key: &SessionKey,
        spec: SandboxSpec,
        status: &Arc<SessionStatus>,
    ) -> SessionContext {
        let generation = self.state.next_generation;
        self.state.next_generation += 1;
        SessionContext {
            key: key.clone(),
            generation,
            spec,
            defaults: None,
            queue_limit: self.state.config.queue_limit,
            status: Arc::clone(status),
            pool: self.pool.clone(),
            admission: self.admission.clone(),
            registry: self.state.handle().recipient(),
        }
    }

    fn adopt(&mut self, adopted: Adopted) {
        let Adopted {
            claim,
            idle,
            sandbox,
        } = adopted;
        let key = SessionKey {
            tenant: claim.tenant.clone(),
            id: claim.session.clone(),
        };
        let sandbox = match sandbox {
            Ok(sandbox) => sandbox,
            Err(reason) => {
                log::warn!(session:% = key.id, tenant:% = key.tenant, reason:%; "session lost");
                return self.state.losses.insert(key, reason);
            }
        };
        let status = Arc::new(SessionStatus::adopted(&claim, idle, sandbox.id()));
        let mut context = self.context(&key, claim.spec.clone(), &status);
        context.defaults = claim.defaults;
        let generation = context.generation;
        let held = PooledSandbox {
            sandbox,
            made: Instant::now(),
            spec: claim.spec,
            history: SandboxHistory {
                usage: None,
                unreported_loss: false,
            },
        };
        let restarts = Arc::clone(&self.restarts.sessions);
        let entry = SessionEntry {
            session: session::adopt(context, restarts, held, idle),
            generation,
            status,
        };
        // There cannot be two claims of one session. If there were, the replaced session would remove its sandbox.
        self.state.sessions.insert(key, entry);
    }
}

impl Handler<Execute> for Registry {
    type Result = ResponseFuture<Result<ExecutionResult, ExecuteError>>;

    fn handle(&mut self, execute: Execute, _: &mut Self::Context) -> Self::Result {
        match self.find_or_start(&execute.key, &execute.job) {
            Ok(session) => {
                // Sent before the future is polled, so that jobs keep their order of arrival.
                let first = ask(&session, &execute);
                Box::pin(answer(session, execute, first))
            }
            Err(error) => Box::pin(async { Err(error) }),
        }
    }
}

impl Handler<SessionEvent> for Registry {
    type Result = ();

    fn handle(&mut self, event: SessionEvent, _: &mut Self::Context) {
        match event {
            SessionEvent::Ended(end) => self.on_ended(end),
            SessionEvent::LossReported(key) => drop(self.state.losses.take(&key)),
            SessionEvent::Requeue(key, run) => match self.find_or_start(&key, &run.job) {
                Ok(session) => session.do_send(run),
                // Ignore a closed channel: the requester has gone.
                Err(error) => drop(run.reply.send(Err(error))),
            },
        }
    }
}

type Answer = oneshot::Receiver<Result<ExecutionResult, ExecuteError>>;

fn ask(session: &Supervised<Session>, execute: &Execute) -> Answer {
    let (reply, answer) = oneshot::channel();
    // Not `send`, because a message that waits for a full mailbox can be overtaken.
    session.do_send(RunJob {
        job: Arc::clone(&execute.job),
        attachment: execute.attachment.clone(),
        cancel: execute.cancel.clone(),
        received: Instant::now(),
        reply,
    });
    answer
}

/// Waits for the answer, but not after the caller has gone: a session may first run other jobs for hours. Sends the job
/// again if the session panicked before the job started.
async fn answer(
    session: Supervised<Session>,
    execute: Execute,
    first: Answer,
) -> Result<ExecutionResult, ExecuteError> {
    let mut first = Some(first);
    for _ in 0..ATTEMPTS {
        let answer = first.take().unwrap_or_else(|| ask(&session, &execute));
        tokio::select! {
            biased;
            answered = answer => if let Ok(answered) = answered {
                return answered;
            },
            () = execute.cancel.cancelled() => return Err(ExecuteError::Cancelled),
        }
    }
    Err(ExecuteError::Internal("session gave no answer".to_owned()))
}

impl Handler<List> for Registry {
    type Result = MessageResult<List>;

    fn handle(&mut self, list: List, _: &mut Self::Context) -> Self::Result {
        let asked = |key: &SessionKey| list.tenant.as_ref().is_none_or(|t| *t == key.tenant);
        let info = |key: &SessionKey, status: &SessionStatus| {
            Some(SessionInfo {
                id: key.id.clone(),
                is_active: status.is_active.load(Ordering::Relaxed),
                last_accessed_at: status.last_accessed_at.load(Ordering::Relaxed),
                runtime: status.runtime,
                created_at: status.created_at,
                // A session without a sandbox is not listed.
                container_id: status.container.get()?.clone(),
                // The caller computes this from the configuration.
                expires_at: None,
                tenant_id: list.tenant.is_none().then(|| key.tenant.clone()),
            })
        };
        let mut sessions: Vec<SessionInfo> = self
            .state
            .sessions
            .iter()
            .filter(|(key, _)| asked(key))
            .filter_map(|(key, entry)| info(key, &entry.status))
            .collect();
        sessions.sort_unstable_by(|a, b| (&a.tenant_id, &a.id).cmp(&(&b.tenant_id, &b.id)));
        MessageResult(sessions)
    }
}

impl Handler<Delete> for Registry {
    type Result = ResponseFuture<bool>;

    fn handle(&mut self, Delete(key): Delete, _: &mut Self::Context) -> Self::Result {
        let forgotten = self.state.losses.take(&key).is_some();
        match self.state.sessions.remove(&key) {
            Some(entry) => Box::pin(async move {
                // A session that does not answer has ended.
                let _ = entry.session.ask(|| session::Delete).await;
                true
            }),
            None => Box::pin(async move { forgotten }),
        }
    }
}

impl Handler<HealthCheck> for Registry {
    type Result = ();

    fn handle(&mut self, HealthCheck { max_idle }: HealthCheck, _: &mut Self::Context) {
        for entry in self.state.sessions.values() {
            entry.session.do_send(session::HealthCheck { max_idle });
        }
    }
}

impl Handler<Adopt> for Registry {
    type Result = ();

    fn handle(&mut self, Adopt(adopted): Adopt, _: &mut Self::Context) {
        for adopted in adopted {
            self.adopt(adopted);
        }
    }
}

impl Handler<Configure> for Registry {
    type Result = ();

    fn handle(&mut self, Configure(config): Configure, _: &mut Self::Context) {
        self.state.config = config;
    }
}

impl Handler<Shutdown> for Registry {
    type Result = ResponseFuture<()>;

    fn handle(&mut self, shutdown: Shutdown, _: &mut Self::Context) -> Self::Result {
        self.state.draining = true;
        let sessions: Vec<_> = self
            .state
            .sessions
            .drain()
            .map(|(_, entry)| entry.session)
            .collect();
        Box::pin(async move {
            let ending = sessions.iter().map(|session| async move {
                // A session that does not answer has ended.
                let _ = if shutdown.keep_sessions {
                    session.ask(|| session::LeaveForAdoption).await
                } else {
                    session.ask(|| session::Delete).await
                };
            });
            join_all(ending).await;
        })
    }
}

impl Handler<Observe> for Registry {
    type Result = RegistryState;

    fn handle(&mut self, _: Observe, _: &mut Self::Context) -> RegistryState {
        let is_active = |entry: &&SessionEntry| entry.status.is_active.load(Ordering::Relaxed);
        RegistryState {
            sessions: self.state.sessions.len(),
            active: self.state.sessions.values().filter(is_active).count(),
            losses: self.state.losses.len(),
            draining: self.state.draining,
        }
    }
}

impl Handler<ObserveSession> for Registry {
    type Result = ResponseFuture<Option<SessionState>>;

    fn handle(&mut self, asked: ObserveSession, _: &mut Self::Context) -> Self::Result {
        let entry = self.state.sessions.get(&asked.0);
        let session = entry.map(|entry| entry.session.clone());
        Box::pin(async move { session?.ask(|| session::Observe).await.ok() })
    }
}

/// Losses that no request has been told yet, oldest first.
#[derive(Debug, Default)]
struct Losses(VecDeque<(SessionKey, String)>);

impl Losses {
    fn insert(&mut self, key: SessionKey, reason: String) {
        if self.0.len() >= MAX_LOSSES {
            self.0.pop_front();
        }
        self.0.push_back((key, reason));
    }

    fn take(&mut self, key: &SessionKey) -> Option<String> {
        let at = self.0.iter().position(|(lost, _)| lost == key)?;
        self.0.remove(at).map(|(_, reason)| reason)
    }

    fn len(&self) -> usize {
        self.0.len()
    }
}
