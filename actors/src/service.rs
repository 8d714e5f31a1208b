//! The handle of the server and the command line to all actors.

mod files;

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use isol8_api::{ExecutionResult, SessionId, SessionInfo, TenantId};
use isol8_backend::{Adopted, Backend, BackendError};
use serde::Serialize;
use tokio::runtime::Handle;
use tokio::time::{Instant, timeout};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tokio_util::task::task_tracker::TaskTrackerToken;

use crate::admission::{Admission, AdmissionConfig, AdmissionState};
use crate::error::ExecuteError;
use crate::job::Job;
use crate::pool::{self, Pool, PoolConfig, PoolState};
use crate::pruner::{self, Pruner, PrunerConfig, PrunerState};
use crate::registry::{self, Registry, RegistryConfig, RegistryState};
use crate::run::{self, Attachment, Input, Mode, QueueTimings};
use crate::session::{SessionKey, SessionState};
use crate::stream::JobStream;
use crate::supervisor::{ActorGone, Restarts, Supervised};

/// How long each step of the end of a shutdown may take. Beyond it the backend removes what is
/// left without asking.
const STEP_TIMEOUT: Duration = Duration::from_secs(30);

/// How long the backend may take to remove what is left: longer than the 30 s after which a sandbox whose
/// making hangs is given up, because the backend waits for those that are being made.
const REMOVAL_TIMEOUT: Duration = Duration::from_secs(45);

/// Bounds of all parts.
#[derive(Clone, Debug)]
pub struct ServiceConfig {
    /// Limits for idle sandboxes in the pool.
    pub pool: PoolConfig,
    /// Limits for sessions.
    pub sessions: RegistryConfig,
    /// Limits for concurrent jobs.
    pub admission: AdmissionConfig,
    /// Limits for idle time.
    pub pruner: PrunerConfig,
    /// How long jobs may go on once a shutdown has begun.
    pub shutdown_grace: Duration,
    /// Whether a shutdown leaves sessions to the next server, rather than ending them.
    pub keep_sessions: bool,
}

impl Default for ServiceConfig {
    fn default() -> Self {
        Self {
            pool: PoolConfig::default(),
            sessions: RegistryConfig::default(),
            admission: AdmissionConfig::default(),
            pruner: PrunerConfig::default(),
            shutdown_grace: Duration::from_secs(10),
            keep_sessions: false,
        }
    }
}

/// The state that the service reports.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct ServiceState {
    /// Running and waiting jobs.
    pub admission: AdmissionState,
    /// Idle sandboxes.
    pub pool: PoolState,
    /// Sessions.
    pub sessions: RegistryState,
    /// Sessions that were ended.
    pub pruner: PrunerState,
    /// Actors that panicked and were restarted.
    pub restarts: RestartCounts,
}

/// How often actors panicked and were restarted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct RestartCounts {
    /// The pool.
    pub pool: u64,
    /// The registry.
    pub registry: u64,
    /// All sessions together.
    pub sessions: u64,
    /// The pruner.
    pub pruner: u64,
}

/// Why requests are better sent elsewhere.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Unready {
    /// The service has just started.
    #[error("sandboxes are being made")]
    Warming,
    /// The service is shutting down.
    #[error("server is shutting down")]
    Draining,
}

/// All actors. Clones share them.
#[derive(Clone, Debug)]
pub struct Service {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    backend: Arc<dyn Backend>,
    pool: Supervised<Pool>,
    registry: Supervised<Registry>,
    pruner: Supervised<Pruner>,
    restarts: Restarts,
    admission: Admission,
    /// Jobs under way.
    jobs: TaskTracker,
    /// Ends every job.
    stop: CancellationToken,
    grace: Duration,
    keep_sessions: bool,
    /// The runtime of the actors and of the connections to sandboxes. Tasks that talk to these run best on it.
    runtime: Handle,
}

impl Service {
    /// Starts the actors on the current arbiter.
    #[must_use]
    pub fn start(backend: Arc<dyn Backend>, config: ServiceConfig) -> Self {
        let admission = Admission::new(config.admission);
        let restarts = Restarts::default();
        let pool = pool::start(
            Arc::clone(&backend),
            config.pool,
            Arc::clone(&restarts.pool),
        );
        let registry = registry::start(
            config.sessions,
            pool.clone(),
            admission.clone(),
            restarts.clone(),
        );
        let pruner = pruner::start(
            config.pruner,
            registry.clone(),
            Arc::clone(&backend),
            Arc::clone(&restarts.pruner),
        );
        Self {
            shared: Arc::new(Shared {
                backend,
                pool,
                registry,
                pruner,
                restarts,
                admission,
                jobs: TaskTracker::new(),
                stop: CancellationToken::new(),
                grace: config.shutdown_grace,
                keep_sessions: config.keep_sessions,
                runtime: Handle::current(),
            }),
        }
    }

    /// Takes over the sessions that an earlier server left. A loss is reported to the next request for that session.
    /// Must be called before any request.
    ///
    /// # Errors
    /// [`ExecuteError::Internal`] where the service has ended.
    pub async fn adopt(&self, adopted: Vec<Adopted>) -> Result<(), ExecuteError> {
        let adopt = || registry::Adopt(adopted.clone());
        Ok(self.shared.registry.ask(adopt).await?)
    }

    /// Returns the backend.
    #[must_use]
    pub fn backend(&self) -> &Arc<dyn Backend> {
        &self.shared.backend
    }

    /// Runs a job, in a session where one is named. Dropping the future ends the run.
    ///
    /// # Errors
    /// Any [`ExecuteError`].
    pub async fn execute(
        &self,
        tenant: TenantId,
        session: Option<SessionId>,
        job: Job,
    ) -> Result<ExecutionResult, ExecuteError> {
        self.run(tenant, session, job, None).await
    }

    /// As [`Self::execute`], and tells of what happens while it happens. With an `input`, the client
    /// may write and signal to the program.
    #[must_use]
    pub fn execute_stream(
        &self,
        tenant: TenantId,
        session: Option<SessionId>,
        job: Job,
        input: Option<Input>,
    ) -> JobStream {
        let service = self.clone();
        JobStream::new(input, |live| async move {
            service.run(tenant, session, job, Some(live)).await
        })
    }

    async fn run(
        &self,
        tenant: TenantId,
        session: Option<SessionId>,
        job: Job,
        live: Option<Attachment>,
    ) -> Result<ExecutionResult, ExecuteError> {
        let shared = &self.shared;
        let _counted = self.count()?;
        let cancel = shared.stop.child_token();
        let _ended_with_this_future = cancel.clone().drop_guard();
        let result = match session {
            Some(id) => {
                let key = SessionKey { tenant, id };
                let job = Arc::new(job);
                let execute = || registry::Execute {
                    key: key.clone(),
                    job: Arc::clone(&job),
                    live: live.clone(),
                    cancel: cancel.clone(),
                };
                let answer = shared.registry.ask(execute).await;
                answer.unwrap_or_else(|gone| Err(gone.into()))
            }
            None => {
                let pool = shared.pool.clone();
                let admission = shared.admission.clone();
                // A task of its own: a panic in it is an error of this job and no more.
                let work = ephemeral(pool, admission, tenant, job, live, cancel);
                let running = shared.jobs.spawn_on(work, &shared.runtime);
                running.await.unwrap_or_else(|panic| {
                    log::error!(error:% = panic; "run panicked");
                    Err(ExecuteError::Internal("the run panicked".to_owned()))
                })
            }
        };
        match result {
            Err(ExecuteError::Cancelled) if shared.stop.is_cancelled() => {
                Err(ExecuteError::ShuttingDown)
            }
            result => result,
        }
    }

    /// Counts something that a shutdown waits for, as long as the token lives.
    fn count(&self) -> Result<TaskTrackerToken, ExecuteError> {
        let jobs = &self.shared.jobs;
        // Before the look at `is_closed`, so that a shutdown cannot slip in between.
        let counted = jobs.token();
        if jobs.is_closed() {
            return Err(ExecuteError::ShuttingDown);
        }
        Ok(counted)
    }

    /// Whether requests are best sent here: nothing has ended, and sandboxes wait.
    ///
    /// # Errors
    /// Why not yet, or not any more.
    pub async fn readiness(&self) -> Result<(), Unready> {
        if self.shared.jobs.is_closed() {
            return Err(Unready::Draining);
        }
        let pool = self.shared.pool.ask(|| pool::Observe).await;
        match pool {
            Ok(pool) if pool.draining => Err(Unready::Draining),
            Ok(pool) if pool.was_full => Ok(()),
            Ok(_) | Err(ActorGone) => Err(Unready::Warming),
        }
    }

    /// Replaces the limits of all parts. Running jobs run on, and waiting jobs keep their places. The grace period of a
    /// shutdown, and its effect on sessions, do not change.
    ///
    /// # Errors
    /// [`ExecuteError::ShuttingDown`].
    pub async fn configure(&self, config: ServiceConfig) -> Result<(), ExecuteError> {
        let shared = &self.shared;
        shared.admission.set_config(config.admission);
        let ServiceConfig {
            pool,
            sessions,
            pruner,
            ..
        } = config;
        let configured = async {
            let configure = || pool::Configure(pool.clone());
            shared.pool.ask(configure).await?;
            let configure = || registry::Configure(sessions);
            shared.registry.ask(configure).await?;
            shared.pruner.ask(|| pruner::Configure(pruner)).await
        };
        configured.await.map_err(ExecuteError::from)
    }

    /// The sessions of a tenant, or of all.
    ///
    /// # Errors
    /// [`ExecuteError::ShuttingDown`].
    pub async fn sessions(
        &self,
        tenant: Option<TenantId>,
    ) -> Result<Vec<SessionInfo>, ExecuteError> {
        let list = || registry::List {
            tenant: tenant.clone(),
        };
        Ok(self.shared.registry.ask(list).await?)
    }

    /// Creates a session by a job that asks for it ([`Job::creates`]), and returns its state. If the job's files do not
    /// fit into the sandbox, no session is created.
    ///
    /// # Errors
    /// [`ExecuteError::SessionExists`], and any other [`ExecuteError`].
    pub async fn create_session(
        &self,
        tenant: TenantId,
        id: SessionId,
        job: Job,
    ) -> Result<SessionInfo, ExecuteError> {
        let made = self.execute(tenant.clone(), Some(id.clone()), job).await;
        if let Err(ExecuteError::Invalid(_) | ExecuteError::NoSpace(_)) = made {
            self.delete_session(tenant.clone(), id.clone()).await?;
        }
        made?;
        let sessions = self.sessions(None).await?;
        let mut same = sessions.into_iter().filter(|session| session.id == id);
        let found = same.find(|session| session.tenant_id.as_ref() == Some(&tenant));
        found.ok_or(ExecuteError::SessionNotFound)
    }

    /// Deletes a session and ends what runs in it. Says whether there was one.
    ///
    /// # Errors
    /// [`ExecuteError::ShuttingDown`].
    pub async fn delete_session(
        &self,
        tenant: TenantId,
        id: SessionId,
    ) -> Result<bool, ExecuteError> {
        let key = SessionKey { tenant, id };
        let delete = || registry::Delete(key.clone());
        Ok(self.shared.registry.ask(delete).await?)
    }

    /// Deletes every session, of all tenants, and the sandboxes of dead processes. Says how many there
    /// were of each.
    ///
    /// # Errors
    /// [`ExecuteError::Internal`] if the service has ended. The answer contains the backend's failures to remove
    /// sandboxes.
    pub async fn clean_up(&self) -> Result<(usize, Result<usize, BackendError>), ExecuteError> {
        let sessions = self.sessions(None).await?;
        let deleting = sessions.into_iter().filter_map(|session| {
            let tenant = session.tenant_id?;
            Some(self.delete_session(tenant, session.id))
        });
        let deleted = futures::future::join_all(deleting).await;
        let deleted = deleted.iter().filter(|one| matches!(one, Ok(true))).count();
        Ok((deleted, self.shared.backend.sweep().await))
    }

    /// A snapshot of every part.
    ///
    /// # Errors
    /// [`ExecuteError::ShuttingDown`].
    pub async fn observe(&self) -> Result<ServiceState, ExecuteError> {
        let shared = &self.shared;
        let count = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        Ok(ServiceState {
            admission: shared.admission.observe(),
            pool: shared.pool.ask(|| pool::Observe).await?,
            sessions: shared.registry.ask(|| registry::Observe).await?,
            pruner: shared.pruner.ask(|| pruner::Observe).await?,
            restarts: RestartCounts {
                pool: count(&shared.restarts.pool),
                registry: count(&shared.restarts.registry),
                sessions: count(&shared.restarts.sessions),
                pruner: count(&shared.restarts.pruner),
            },
        })
    }

    /// Returns a snapshot of one session, if it exists.
    ///
    /// # Errors
    /// [`ExecuteError::ShuttingDown`].
    pub async fn observe_session(
        &self,
        tenant: TenantId,
        id: SessionId,
    ) -> Result<Option<SessionState>, ExecuteError> {
        let key = SessionKey { tenant, id };
        let observe = || registry::ObserveSession(key.clone());
        Ok(self.shared.registry.ask(observe).await?)
    }

    /// Takes no new work, lets jobs go on for a while, ends them, and removes every sandbox but those of
    /// sessions that are kept.
    ///
    /// # Errors
    /// The backend's failure to remove a sandbox.
    pub async fn shutdown(&self) -> Result<(), BackendError> {
        self.end(self.shared.keep_sessions).await
    }

    /// As [`Self::shutdown`], and leaves the sessions to the next server in any case: for one that could
    /// not begin.
    ///
    /// # Errors
    /// The backend's failure to remove a sandbox.
    pub async fn leave(&self) -> Result<(), BackendError> {
        self.end(true).await
    }

    async fn end(&self, keep_sessions: bool) -> Result<(), BackendError> {
        let shared = &self.shared;
        shared.jobs.close();
        let started = Instant::now();
        if timeout(shared.grace, shared.jobs.wait()).await.is_err() {
            log::warn!(jobs = shared.jobs.len(); "ending jobs that are still running");
        }
        shared.stop.cancel();
        let shutdown = registry::Shutdown { keep_sessions };
        let steps = async {
            shared.jobs.wait().await;
            // Actors that do not answer are gone.
            let _ = shared.registry.ask(|| shutdown).await;
            let _ = shared.pool.ask(|| pool::Shutdown).await;
        };
        if timeout(STEP_TIMEOUT, steps).await.is_err() {
            log::warn!("shutdown took too long, the backend removes what is left");
        }
        let removed = timeout(REMOVAL_TIMEOUT, shared.backend.shutdown()).await;
        log::info!(ms = started.elapsed().as_millis(); "service stopped");
        removed.unwrap_or_else(|_| {
            let seconds = REMOVAL_TIMEOUT.as_secs();
            let text = format!("backend did not shut down within {seconds} s");
            Err(BackendError::Destroy(text))
        })
    }
}

impl From<ActorGone> for ExecuteError {
    fn from(_: ActorGone) -> Self {
        Self::Internal("an actor does not answer".to_owned())
    }
}

/// Runs a job in a sandbox that serves only jobs of the same tenant before and after it.
async fn ephemeral(
    pool: Supervised<Pool>,
    admission: Admission,
    tenant: TenantId,
    job: Job,
    live: Option<Attachment>,
    cancel: CancellationToken,
) -> Result<ExecutionResult, ExecuteError> {
    let start = Instant::now();
    let permit = cancel.run_until_cancelled(admission.admit(&tenant)).await;
    let _permit = permit.ok_or(ExecuteError::Cancelled)??;
    let queue = start.elapsed();
    let spec = job.sandbox.clone();
    let acquiring = pool::acquire(&pool, tenant, spec);
    let acquired = cancel.run_until_cancelled(acquiring).await;
    let mut lease = acquired.ok_or(ExecuteError::Cancelled)??;
    let waits = QueueTimings {
        queue,
        acquire: start.elapsed() - queue,
    };
    let sandbox = Arc::clone(&lease.held.sandbox);
    let memory = &mut lease.held.memory;
    let result = run::run(
        sandbox.as_ref(),
        &job,
        Mode::Ephemeral,
        waits,
        memory,
        live.as_ref(),
        &cancel,
    )
    .await;
    if let Err(ExecuteError::SandboxLost(_)) = result {
        lease.discard();
    }
    result
}

#[cfg(test)]
mod tests;
