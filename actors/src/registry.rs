//! The registry of sessions.

mod open;

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
use crate::pool::{Pool, PooledSandbox};
use crate::run::{Attachment, SandboxHistory};
use crate::session::{self, Run, Session, SessionContext, SessionKey, SessionState, Status};
use crate::supervisor::{ATTEMPTS, Restarts, StateGuard, Supervised};
pub(crate) use open::Open;

/// Highest number of unreported losses that are remembered; the oldest is dropped.
const MAX_LOSSES: usize = 10_000;

/// Bounds of the registry.
#[derive(Clone, Copy, Debug)]
pub struct RegistryConfig {
    /// Sessions of all tenants together.
    pub max_sessions: usize,
    /// Highest number of sessions of one tenant.
    pub max_sessions_per_tenant: usize,
    /// Jobs that wait in one session, beside the one that runs.
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
    pub live: Option<Attachment>,
    /// Triggered when the requester has gone.
    pub cancel: CancellationToken,
}

/// Asks for the sessions of one tenant, or of all.
#[derive(Debug, Message)]
#[rtype(result = "Vec<SessionInfo>")]
pub struct List {
    /// `None` for all; then each entry says whose it is.
    pub tenant: Option<TenantId>,
}

/// Deletes a session, and ends what runs in it. The id is free at once; the answer comes when the
/// sandbox is gone. Says whether there was one.
#[derive(Debug, Message)]
#[rtype(result = "bool")]
pub struct Delete(pub SessionKey);

/// Makes no more sessions, ends those there are, and answers when they are gone.
#[derive(Clone, Copy, Debug, Message)]
#[rtype(result = "()")]
pub struct Shutdown {
    /// Whether their sandboxes are left to the next server, rather than removed.
    pub keep_sessions: bool,
}

/// Makes sessions of what an earlier server left, and remembers what was lost.
#[derive(Clone, Debug, Message)]
#[rtype(result = "()")]
pub struct Adopt(pub Vec<Adopted>);

/// Has every session look after itself.
#[derive(Clone, Copy, Debug, Message)]
#[rtype(result = "()")]
pub struct HealthCheck {
    /// Ends those that have been idle for this long. Each decides for itself.
    pub max_idle: Option<Duration>,
}

/// Replaces the bounds. Sessions that there are stay.
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

/// A session is over.
#[derive(Debug, Message)]
#[rtype(result = "()")]
pub(crate) struct Ended {
    pub(crate) key: SessionKey,
    pub(crate) generation: u64,
    /// Reason of a loss that no request has been told yet.
    pub(crate) lost: Option<String>,
}

/// A loss was told of after all.
#[derive(Debug, Message)]
#[rtype(result = "()")]
pub(crate) struct LossReported(pub(crate) SessionKey);

/// The state that the registry reports.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, MessageResponse)]
#[serde(rename_all = "camelCase")]
pub struct RegistryState {
    /// Sessions.
    pub sessions: usize,
    /// Sessions that run a job.
    pub active: usize,
    /// Number of losses that no request has been told yet.
    pub losses: usize,
    /// Whether no more sessions are made.
    pub draining: bool,
}

/// The actor.
#[derive(Debug)]
pub struct Registry {
    pool: Supervised<Pool>,
    admission: Admission,
    restarts: Restarts,
    own: StateGuard<Self, ActorState>,
}

/// The state of a registry, which a restarted registry takes over.
#[derive(Debug, Default)]
struct ActorState {
    config: RegistryConfig,
    live: HashMap<SessionKey, Slot>,
    losses: Losses,
    next_generation: u64,
    draining: bool,
}

#[derive(Debug)]
struct Slot {
    session: Supervised<Session>,
    generation: u64,
    status: Arc<Status>,
}

impl Actor for Registry {
    type Context = Context<Self>;

    fn started(&mut self, ctx: &mut Self::Context) {
        // Senders wait beyond this; it is not what bounds them, admission and sessions do.
        ctx.set_mailbox_capacity(1024);
        self.catch_up();
    }
}

/// Starts a registry of no sessions on the current arbiter, whose sandboxes come from `pool`.
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
    Supervised::start("registry", counter, state, move |own| Registry {
        pool: pool.clone(),
        admission: admission.clone(),
        restarts: restarts.clone(),
        own,
    })
}

impl Registry {
    /// Handles the ends of sessions that happened while no registry ran.
    fn catch_up(&mut self) {
        let ended = |(key, slot): (&SessionKey, &Slot)| {
            let lost = slot.status.ended.get()?.clone();
            let generation = slot.generation;
            let key = key.clone();
            Some(Ended {
                key,
                generation,
                lost,
            })
        };
        let ended: Vec<Ended> = self.own.live.iter().filter_map(ended).collect();
        for ended in ended {
            self.note_end(ended);
        }
    }

    #[cfg(test)]
    pub(crate) fn find(&self, key: &SessionKey) -> Option<Supervised<Session>> {
        self.own.live.get(key).map(|slot| slot.session.clone())
    }

    fn note_end(&mut self, ended: Ended) {
        let current = self.own.live.get(&ended.key);
        if current.is_none_or(|slot| slot.generation != ended.generation) {
            return;
        }
        self.own.live.remove(&ended.key);
        if let Some(reason) = ended.lost {
            self.own.losses.insert(ended.key, reason);
        }
    }

    /// Returns the session of this key, or starts it. The session is entered before it has a sandbox, so that the
    /// second of two first requests finds it.
    fn find_or_start(
        &mut self,
        key: &SessionKey,
        job: &Job,
    ) -> Result<Supervised<Session>, ExecuteError> {
        if self.own.draining {
            return Err(ExecuteError::ShuttingDown);
        }
        let loss = self.own.losses.take(key);
        // A client that makes a session expects none, and so misses nothing.
        if let (Some(reason), None) = (loss, &job.creates) {
            let session = key.id.clone();
            return Err(ExecuteError::SessionLost { session, reason });
        }
        if let Some(slot) = self.own.live.get(key) {
            if job.creates.is_some() {
                let session = key.id.clone();
                return Err(ExecuteError::SessionExists { session });
            }
            return Ok(slot.session.clone());
        }
        let limit = self.own.config.max_sessions;
        if self.own.live.len() >= limit {
            return Err(ExecuteError::TooManySessions { limit });
        }
        let limit = self.own.config.max_sessions_per_tenant;
        let of_tenant = |other: &&SessionKey| other.tenant == key.tenant;
        if limit < self.own.config.max_sessions
            && self.own.live.keys().filter(of_tenant).count() >= limit
        {
            return Err(ExecuteError::TooManySessionsOfTenant { limit });
        }
        let status = Arc::new(Status::new(job.runtime()));
        let mut setting = self.setting(key, job.sandbox.clone(), &status);
        setting.defaults.clone_from(&job.creates);
        let generation = setting.generation;
        let session = session::start(setting, Arc::clone(&self.restarts.sessions));
        let slot = Slot {
            session: session.clone(),
            generation,
            status,
        };
        self.own.live.insert(key.clone(), slot);
        Ok(session)
    }

    fn setting(
        &mut self,
        key: &SessionKey,
        spec: SandboxSpec,
        status: &Arc<Status>,
    ) -> SessionContext {
        let generation = self.own.next_generation;
        self.own.next_generation += 1;
        SessionContext {
            key: key.clone(),
            generation,
            spec,
            defaults: None,
            queue_limit: self.own.config.queue_limit,
            status: Arc::clone(status),
            pool: self.pool.clone(),
            admission: self.admission.clone(),
            registry: self.own.handle(),
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
                return self.own.losses.insert(key, reason);
            }
        };
        let status = Arc::new(Status::adopted(&claim, idle, sandbox.id()));
        let mut setting = self.setting(&key, claim.spec.clone(), &status);
        setting.defaults = claim.defaults;
        let generation = setting.generation;
        let held = PooledSandbox {
            sandbox,
            made: Instant::now(),
            spec: claim.spec,
            memory: SandboxHistory {
                usage: None,
                unreported_loss: false,
            },
        };
        let restarts = Arc::clone(&self.restarts.sessions);
        let slot = Slot {
            session: session::adopt(setting, restarts, held, idle),
            generation,
            status,
        };
        // Two claims of one session cannot be; the one that goes removes its sandbox.
        self.own.live.insert(key, slot);
    }
}

impl Handler<Execute> for Registry {
    type Result = ResponseFuture<Result<ExecutionResult, ExecuteError>>;

    fn handle(&mut self, execute: Execute, _: &mut Self::Context) -> Self::Result {
        match self.find_or_start(&execute.key, &execute.job) {
            Ok(session) => {
                // In the order of arrival, so before the future is polled.
                let first = ask(&session, &execute);
                Box::pin(answer(session, execute, first))
            }
            Err(error) => Box::pin(async { Err(error) }),
        }
    }
}

/// A job that came to a session after its end, where that never had a sandbox.
#[derive(Debug, Message)]
#[rtype(result = "()")]
pub(crate) struct Again {
    pub(crate) key: SessionKey,
    pub(crate) run: Run,
}

impl Handler<Again> for Registry {
    type Result = ();

    fn handle(&mut self, Again { key, run }: Again, _: &mut Self::Context) {
        match self.find_or_start(&key, &run.job) {
            Ok(session) => session.do_send(run),
            // Ignore a closed channel: the requester has gone.
            Err(error) => drop(run.reply.send(Err(error))),
        }
    }
}

type Answer = oneshot::Receiver<Result<ExecutionResult, ExecuteError>>;

fn ask(session: &Supervised<Session>, execute: &Execute) -> Answer {
    let (reply, answer) = oneshot::channel();
    // Not `send`: what is sent to a full mailbox that way loses its place in the order.
    session.do_send(Run {
        job: Arc::clone(&execute.job),
        live: execute.live.clone(),
        cancel: execute.cancel.clone(),
        received: Instant::now(),
        reply,
    });
    answer
}

/// Waits for the answer, not a moment longer than its caller does: a session may have jobs of hours
/// before this one. Asks again where the session panicked before it began.
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
        let info = |key: &SessionKey, status: &Status| {
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
            .own
            .live
            .iter()
            .filter(|(key, _)| asked(key))
            .filter_map(|(key, slot)| info(key, &slot.status))
            .collect();
        sessions.sort_unstable_by(|a, b| (&a.tenant_id, &a.id).cmp(&(&b.tenant_id, &b.id)));
        MessageResult(sessions)
    }
}

impl Handler<Delete> for Registry {
    type Result = ResponseFuture<bool>;

    fn handle(&mut self, Delete(key): Delete, _: &mut Self::Context) -> Self::Result {
        let forgotten = self.own.losses.take(&key).is_some();
        match self.own.live.remove(&key) {
            Some(slot) => Box::pin(async move {
                // A session that does not answer is gone.
                let _ = slot.session.ask(|| session::Delete).await;
                true
            }),
            None => Box::pin(async move { forgotten }),
        }
    }
}

impl Handler<HealthCheck> for Registry {
    type Result = ();

    fn handle(&mut self, HealthCheck { max_idle }: HealthCheck, _: &mut Self::Context) {
        for slot in self.own.live.values() {
            slot.session.do_send(session::HealthCheck { max_idle });
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
        self.own.config = config;
    }
}

impl Handler<Ended> for Registry {
    type Result = ();

    fn handle(&mut self, ended: Ended, _: &mut Self::Context) {
        self.note_end(ended);
    }
}

impl Handler<LossReported> for Registry {
    type Result = ();

    fn handle(&mut self, LossReported(key): LossReported, _: &mut Self::Context) {
        self.own.losses.take(&key);
    }
}

impl Handler<Shutdown> for Registry {
    type Result = ResponseFuture<()>;

    fn handle(&mut self, shutdown: Shutdown, _: &mut Self::Context) -> Self::Result {
        self.own.draining = true;
        let sessions: Vec<_> = self
            .own
            .live
            .drain()
            .map(|(_, slot)| slot.session)
            .collect();
        Box::pin(async move {
            let ending = sessions.iter().map(|session| async move {
                // A session that does not answer is gone.
                let _ = if shutdown.keep_sessions {
                    session.ask(|| session::Leave).await
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
        let is_active = |slot: &&Slot| slot.status.is_active.load(Ordering::Relaxed);
        RegistryState {
            sessions: self.own.live.len(),
            active: self.own.live.values().filter(is_active).count(),
            losses: self.own.losses.len(),
            draining: self.own.draining,
        }
    }
}

impl Handler<ObserveSession> for Registry {
    type Result = ResponseFuture<Option<SessionState>>;

    fn handle(&mut self, asked: ObserveSession, _: &mut Self::Context) -> Self::Result {
        let slot = self.own.live.get(&asked.0);
        let session = slot.map(|slot| slot.session.clone());
        Box::pin(async move { session?.ask(|| session::Observe).await.ok() })
    }
}

/// Losses that no request has been told yet, in the order in which they happened.
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
