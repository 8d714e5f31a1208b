//! What the server and the command line hold: all actors behind one handle.

use std::sync::Arc;
use std::time::Duration;

use actix::prelude::*;
use isol8_api::{ExecutionResult, SessionId, SessionInfo, TenantId};
use isol8_backend::{Backend, BackendError};
use serde::Serialize;
use tokio::runtime::Handle;
use tokio::time::{Instant, timeout};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::admission::{Admission, AdmissionConfig, AdmissionState};
use crate::error::ExecuteError;
use crate::job::Job;
use crate::pool::{self, Pool, PoolConfig, PoolState};
use crate::pruner::{self, Pruner, PrunerConfig, PrunerState};
use crate::registry::{self, Registry, RegistryConfig, RegistryState};
use crate::run::{self, Mode, Waits};
use crate::session::{SessionKey, SessionState};

/// How long each step of the end of a shutdown may take. Beyond it the backend removes what is
/// left without asking.
const STEP_TIMEOUT: Duration = Duration::from_secs(30);

/// Bounds of all parts.
#[derive(Clone, Debug)]
pub struct ServiceConfig {
    /// Of waiting sandboxes.
    pub pool: PoolConfig,
    /// Of sessions.
    pub sessions: RegistryConfig,
    /// Of concurrent jobs.
    pub admission: AdmissionConfig,
    /// Of idleness.
    pub pruner: PrunerConfig,
    /// How long jobs may go on once a shutdown has begun.
    pub shutdown_grace: Duration,
}

impl Default for ServiceConfig {
    fn default() -> Self {
        Self {
            pool: PoolConfig::default(),
            sessions: RegistryConfig::default(),
            admission: AdmissionConfig::default(),
            pruner: PrunerConfig::default(),
            shutdown_grace: Duration::from_secs(10),
        }
    }
}

/// What the service shows of itself.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct ServiceState {
    /// Who runs and waits.
    pub admission: AdmissionState,
    /// What waits for work.
    pub pool: PoolState,
    /// What keeps state.
    pub sessions: RegistryState,
    /// What was cleaned up.
    pub pruner: PrunerState,
}

/// All actors. Clones share them.
#[derive(Clone, Debug)]
pub struct Service {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    backend: Arc<dyn Backend>,
    pool: Addr<Pool>,
    registry: Addr<Registry>,
    pruner: Addr<Pruner>,
    admission: Admission,
    /// Jobs under way.
    jobs: TaskTracker,
    /// Ends every job.
    stop: CancellationToken,
    grace: Duration,
    /// Where the actors are, and connections to sandboxes with them: whoever talks to these is best
    /// there, too.
    runtime: Handle,
}

impl Service {
    /// Starts the actors on the current arbiter.
    #[must_use]
    pub fn start(backend: Arc<dyn Backend>, config: ServiceConfig) -> Self {
        let admission = Admission::new(config.admission);
        let pool = Pool::new(Arc::clone(&backend), config.pool).start();
        let registry = Registry::new(config.sessions, pool.clone(), admission.clone()).start();
        let pruner = Pruner::new(config.pruner, registry.clone(), Arc::clone(&backend)).start();
        Self {
            shared: Arc::new(Shared {
                backend,
                pool,
                registry,
                pruner,
                admission,
                jobs: TaskTracker::new(),
                stop: CancellationToken::new(),
                grace: config.shutdown_grace,
                runtime: Handle::current(),
            }),
        }
    }

    /// The backend's name.
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
        let shared = &self.shared;
        // Counted before the look at `is_closed`, so that a shutdown cannot slip in between.
        let _counted = shared.jobs.token();
        if shared.jobs.is_closed() {
            return Err(ExecuteError::ShuttingDown);
        }
        let cancel = shared.stop.child_token();
        let _ended_with_this_future = cancel.clone().drop_guard();
        let result = match session {
            Some(id) => {
                let key = SessionKey { tenant, id };
                let execute = registry::Execute { key, job, cancel };
                let answer = shared.registry.send(execute).await;
                answer.unwrap_or(Err(ExecuteError::ShuttingDown))
            }
            None => {
                let pool = shared.pool.clone();
                let admission = shared.admission.clone();
                // A task of its own: a panic in it is an error of this job and no more.
                let work = ephemeral(pool, admission, tenant, job, cancel);
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

    /// Replaces the bounds of all parts. What runs, runs on, and what waits keeps its place. The grace
    /// of a shutdown stays as it was.
    ///
    /// # Errors
    /// [`ExecuteError::ShuttingDown`].
    pub async fn configure(&self, config: ServiceConfig) -> Result<(), ExecuteError> {
        let shared = &self.shared;
        shared.admission.set_config(config.admission);
        let pool = shared.pool.send(pool::Configure(config.pool)).await;
        let registry = shared
            .registry
            .send(registry::Configure(config.sessions))
            .await;
        let pruner = shared.pruner.send(pruner::Configure(config.pruner)).await;
        pool.and(registry)
            .and(pruner)
            .map_err(|_| ExecuteError::ShuttingDown)
    }

    /// The sessions of a tenant, or of all.
    ///
    /// # Errors
    /// [`ExecuteError::ShuttingDown`].
    pub async fn sessions(
        &self,
        tenant: Option<TenantId>,
    ) -> Result<Vec<SessionInfo>, ExecuteError> {
        let list = registry::List { tenant };
        let answer = self.shared.registry.send(list).await;
        answer.map_err(|_| ExecuteError::ShuttingDown)
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
        let delete = registry::Delete(SessionKey { tenant, id });
        let answer = self.shared.registry.send(delete).await;
        answer.map_err(|_| ExecuteError::ShuttingDown)
    }

    /// A snapshot of every part.
    ///
    /// # Errors
    /// [`ExecuteError::ShuttingDown`].
    pub async fn observe(&self) -> Result<ServiceState, ExecuteError> {
        let pool = self.shared.pool.send(pool::Observe).await;
        let sessions = self.shared.registry.send(registry::Observe).await;
        let pruner = self.shared.pruner.send(pruner::Observe).await;
        Ok(ServiceState {
            admission: self.shared.admission.observe(),
            pool: pool.map_err(|_| ExecuteError::ShuttingDown)?,
            sessions: sessions.map_err(|_| ExecuteError::ShuttingDown)?,
            pruner: pruner.map_err(|_| ExecuteError::ShuttingDown)?,
        })
    }

    /// A snapshot of one session, where there is one.
    ///
    /// # Errors
    /// [`ExecuteError::ShuttingDown`].
    pub async fn observe_session(
        &self,
        tenant: TenantId,
        id: SessionId,
    ) -> Result<Option<SessionState>, ExecuteError> {
        let observe = registry::ObserveSession(SessionKey { tenant, id });
        let answer = self.shared.registry.send(observe).await;
        answer.map_err(|_| ExecuteError::ShuttingDown)
    }

    /// Takes no new work, lets jobs go on for a while, ends them, and removes every sandbox.
    ///
    /// # Errors
    /// What the backend could not remove.
    pub async fn shutdown(&self) -> Result<(), BackendError> {
        let shared = &self.shared;
        shared.jobs.close();
        let started = Instant::now();
        if timeout(shared.grace, shared.jobs.wait()).await.is_err() {
            log::warn!(jobs = shared.jobs.len(); "ending jobs that are still running");
        }
        shared.stop.cancel();
        let steps = async {
            shared.jobs.wait().await;
            // Actors that do not answer are gone.
            let _ = shared.registry.send(registry::Shutdown).await;
            let _ = shared.pool.send(pool::Shutdown).await;
        };
        if timeout(STEP_TIMEOUT, steps).await.is_err() {
            log::warn!("shutdown took too long, the backend removes what is left");
        }
        let removed = timeout(STEP_TIMEOUT, shared.backend.shutdown()).await;
        log::info!(ms = started.elapsed().as_millis(); "service stopped");
        removed.unwrap_or_else(|_| {
            let seconds = STEP_TIMEOUT.as_secs();
            let text = format!("backend did not shut down within {seconds} s");
            Err(BackendError::Destroy(text))
        })
    }
}

/// A job in a sandbox that nobody uses before or after it, but for its own tenant's others.
async fn ephemeral(
    pool: Addr<Pool>,
    admission: Admission,
    tenant: TenantId,
    job: Job,
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
    let waits = Waits {
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
        &cancel,
    )
    .await;
    if let Err(ExecuteError::SandboxLost(_)) = result {
        lease.discard();
    }
    result
}
