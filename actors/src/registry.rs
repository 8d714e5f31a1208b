//! Which sessions there are.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use actix::prelude::*;
use futures::future::join_all;
use isol8_api::{ExecutionResult, SessionInfo, TenantId};
use serde::Serialize;
use tokio::sync::oneshot;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::admission::Admission;
use crate::error::ExecuteError;
use crate::job::Job;
use crate::pool::Pool;
use crate::session::{self, Run, Session, SessionKey, SessionState, Setting, Status};

/// Losses that nobody was told of yet, at most; the oldest is forgotten.
const MAX_LOSSES: usize = 10_000;

/// Bounds of the registry.
#[derive(Clone, Copy, Debug)]
pub struct RegistryConfig {
    /// Sessions of all tenants together.
    pub max_sessions: usize,
    /// Jobs that wait in one session, beside the one that runs.
    pub queue_limit: usize,
}

impl Default for RegistryConfig {
    fn default() -> Self {
        Self {
            max_sessions: 1000,
            queue_limit: 32,
        }
    }
}

/// Runs a job in a session, which is made where there is none.
#[derive(Debug, Message)]
#[rtype(result = "Result<ExecutionResult, ExecuteError>")]
pub struct Execute {
    /// The session.
    pub key: SessionKey,
    /// The job.
    pub job: Job,
    /// Triggered when nobody waits for the answer any longer.
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

/// Makes no more sessions, deletes those there are, and answers when they are gone.
#[derive(Debug, Message)]
#[rtype(result = "()")]
pub struct Shutdown;

/// Ends the sessions that have been idle for this long. Each decides for itself.
#[derive(Clone, Copy, Debug, Message)]
#[rtype(result = "()")]
pub struct Prune {
    /// How long a session may be idle.
    pub max_idle: Duration,
}

/// Replaces the bounds. Sessions that there are stay.
#[derive(Clone, Copy, Debug, Message)]
#[rtype(result = "()")]
pub struct Configure(pub RegistryConfig);

/// Asks for a [`RegistryState`].
#[derive(Debug, Message)]
#[rtype(result = "RegistryState")]
pub struct Observe;

/// Asks for the state of one session, where there is one.
#[derive(Debug, Message)]
#[rtype(result = "Option<SessionState>")]
pub struct ObserveSession(pub SessionKey);

/// A session is over.
#[derive(Debug, Message)]
#[rtype(result = "()")]
pub(crate) struct Ended {
    pub(crate) key: SessionKey,
    pub(crate) generation: u64,
    /// Why, where it was lost and nobody was told.
    pub(crate) lost: Option<String>,
}

/// A loss was told of after all.
#[derive(Debug, Message)]
#[rtype(result = "()")]
pub(crate) struct LossReported(pub(crate) SessionKey);

/// What the registry shows of itself.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, MessageResponse)]
#[serde(rename_all = "camelCase")]
pub struct RegistryState {
    /// Sessions.
    pub sessions: usize,
    /// Sessions that run a job.
    pub active: usize,
    /// Losses that nobody was told of yet.
    pub losses: usize,
    /// Whether no more sessions are made.
    pub draining: bool,
}

/// The actor.
#[derive(Debug)]
pub struct Registry {
    config: RegistryConfig,
    pool: Addr<Pool>,
    admission: Admission,
    live: HashMap<SessionKey, Slot>,
    losses: Losses,
    next_generation: u64,
    draining: bool,
}

#[derive(Debug)]
struct Slot {
    session: Addr<Session>,
    generation: u64,
    status: Arc<Status>,
}

impl Actor for Registry {
    type Context = Context<Self>;

    fn started(&mut self, ctx: &mut Self::Context) {
        // Senders wait beyond this; it is not what bounds them, admission and sessions do.
        ctx.set_mailbox_capacity(1024);
    }
}

impl Registry {
    /// A registry of no sessions, whose sandboxes come from `pool`.
    #[must_use]
    pub fn new(config: RegistryConfig, pool: Addr<Pool>, admission: Admission) -> Self {
        Self {
            config,
            pool,
            admission,
            live: HashMap::new(),
            losses: Losses::default(),
            next_generation: 0,
            draining: false,
        }
    }

    /// The session of this key. It is entered before it has a sandbox: so the second of two first
    /// requests finds it.
    fn find_or_start(
        &mut self,
        key: &SessionKey,
        job: &Job,
        ctx: &mut Context<Self>,
    ) -> Result<Addr<Session>, ExecuteError> {
        if let Some(reason) = self.losses.take(key) {
            let session = key.id.clone();
            return Err(ExecuteError::SessionLost { session, reason });
        }
        if let Some(slot) = self.live.get(key) {
            return Ok(slot.session.clone());
        }
        let limit = self.config.max_sessions;
        if self.live.len() >= limit {
            return Err(ExecuteError::TooManySessions { limit });
        }
        let generation = self.next_generation;
        self.next_generation += 1;
        let status = Arc::new(Status::new(job.runtime()));
        let session = Session::new(Setting {
            key: key.clone(),
            generation,
            spec: job.sandbox.clone(),
            queue_limit: self.config.queue_limit,
            status: Arc::clone(&status),
            pool: self.pool.clone(),
            admission: self.admission.clone(),
            registry: ctx.address().downgrade(),
        })
        .start();
        let slot = Slot {
            session: session.clone(),
            generation,
            status,
        };
        self.live.insert(key.clone(), slot);
        Ok(session)
    }
}

impl Handler<Execute> for Registry {
    type Result = ResponseFuture<Result<ExecutionResult, ExecuteError>>;

    fn handle(&mut self, execute: Execute, ctx: &mut Self::Context) -> Self::Result {
        if self.draining {
            return Box::pin(async { Err(ExecuteError::ShuttingDown) });
        }
        let session = match self.find_or_start(&execute.key, &execute.job, ctx) {
            Ok(session) => session,
            Err(error) => return Box::pin(async { Err(error) }),
        };
        let (reply, answer) = oneshot::channel();
        // Not `send`: what is sent to a full mailbox that way loses its place in the order.
        session.do_send(Run {
            job: execute.job,
            cancel: execute.cancel.clone(),
            received: Instant::now(),
            reply,
        });
        Box::pin(async move {
            // Not a moment longer than its caller: a session may have jobs of hours before this.
            tokio::select! {
                biased;
                answer = answer => answer.unwrap_or_else(|_| {
                    Err(ExecuteError::Internal("session gave no answer".to_owned()))
                }),
                () = execute.cancel.cancelled() => Err(ExecuteError::Cancelled),
            }
        })
    }
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
                // What has no sandbox yet is no session yet.
                container_id: status.container.get()?.clone(),
                tenant_id: list.tenant.is_none().then(|| key.tenant.clone()),
            })
        };
        let mut sessions: Vec<SessionInfo> = self
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
        let forgotten = self.losses.take(&key).is_some();
        match self.live.remove(&key) {
            Some(slot) => Box::pin(async move {
                // A session that does not answer is gone.
                let _ = slot.session.send(session::Delete).await;
                true
            }),
            None => Box::pin(async move { forgotten }),
        }
    }
}

impl Handler<Prune> for Registry {
    type Result = ();

    fn handle(&mut self, Prune { max_idle }: Prune, _: &mut Self::Context) {
        for slot in self.live.values() {
            slot.session.do_send(session::Prune { max_idle });
        }
    }
}

impl Handler<Configure> for Registry {
    type Result = ();

    fn handle(&mut self, Configure(config): Configure, _: &mut Self::Context) {
        self.config = config;
    }
}

impl Handler<Ended> for Registry {
    type Result = ();

    fn handle(&mut self, ended: Ended, _: &mut Self::Context) {
        let current = self.live.get(&ended.key);
        if current.is_none_or(|slot| slot.generation != ended.generation) {
            return;
        }
        self.live.remove(&ended.key);
        if let Some(reason) = ended.lost {
            self.losses.insert(ended.key, reason);
        }
    }
}

impl Handler<LossReported> for Registry {
    type Result = ();

    fn handle(&mut self, LossReported(key): LossReported, _: &mut Self::Context) {
        self.losses.take(&key);
    }
}

impl Handler<Shutdown> for Registry {
    type Result = ResponseFuture<()>;

    fn handle(&mut self, _: Shutdown, _: &mut Self::Context) -> Self::Result {
        self.draining = true;
        let sessions: Vec<_> = self.live.drain().map(|(_, slot)| slot.session).collect();
        Box::pin(async move {
            let deleting = sessions.iter().map(|session| session.send(session::Delete));
            join_all(deleting).await;
        })
    }
}

impl Handler<Observe> for Registry {
    type Result = RegistryState;

    fn handle(&mut self, _: Observe, _: &mut Self::Context) -> RegistryState {
        let is_active = |slot: &&Slot| slot.status.is_active.load(Ordering::Relaxed);
        RegistryState {
            sessions: self.live.len(),
            active: self.live.values().filter(is_active).count(),
            losses: self.losses.len(),
            draining: self.draining,
        }
    }
}

impl Handler<ObserveSession> for Registry {
    type Result = ResponseFuture<Option<SessionState>>;

    fn handle(&mut self, asked: ObserveSession, _: &mut Self::Context) -> Self::Result {
        let slot = self.live.get(&asked.0);
        let asking = slot.map(|slot| slot.session.send(session::Observe));
        Box::pin(async move { asking?.await.ok() })
    }
}

/// Losses that nobody was told of, in the order in which they happened.
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
