//! Sandboxes of this host without a server: one for a single run, or one that stays between commands.
//!
//! A sandbox that stays belongs to a *session*, as on a server: it is claimed, outlives the command that created
//! it, and is adopted by the next command. Each session has a state directory of its own, `<state>/cli/<session>`,
//! so that neither a server nor a command for another session adopts its sandbox. A command holds the lock of that
//! directory while it uses the session.
//!
//! A session ends with [`delete`], or when it has not been used for `cleanup.maxContainerAgeMs`: on the native
//! backend by itself, on Docker with the next command that removes expired sessions ([`expire`]).

mod directory;
mod error;
mod lock;
mod removal;
mod sessions;

use std::collections::BTreeMap;
use std::path::Path;
use std::time::{Duration, Instant};

use isol8_actors::pool::{PoolSize, Strategy};
use isol8_actors::{Input, Job, JobStream, Service, ServiceConfig};
use isol8_api::{SessionId, TenantId};
use isol8_backend::instance::Instance;
use isol8_config::{BackendChoice, Config};
use tokio::task::JoinHandle;
use tokio::time::sleep;

use crate::active::service_config;
use crate::backends::{self, BackendKind, Needs, Purpose};
use directory::{directory, max_age};
pub use error::LocalError;
use lock::SessionLock;
pub use removal::{clean_up, delete, expire};
pub use sessions::{LocalSession, list};

/// Idle time of a session that does not end by itself: a hundred years.
const NO_EXPIRY: Duration = Duration::from_secs(100 * 365 * 24 * 3600);

/// Longest time that a command may take to end after it has released its session's lock.
const RELEASE_TIMEOUT: Duration = Duration::from_secs(30);

/// Interval between checks whether that command has ended.
const POLL_INTERVAL: Duration = Duration::from_millis(2);

/// The service with which a command runs programs.
#[derive(Debug)]
pub struct LocalService {
    service: Service,
    kind: &'static str,
    session: Option<(SessionId, SessionLock)>,
    /// The task that removes leftovers of killed commands.
    sweeping: Option<JoinHandle<()>>,
}

impl LocalService {
    /// Starts a service that creates a sandbox for each run, and removes it afterwards.
    ///
    /// # Errors
    /// Returns [`LocalError::Backend`].
    pub async fn start(config: &Config, needs: &Needs) -> Result<Self, LocalError> {
        let backend = backends::start(config, Purpose::Command, needs)
            .await?
            .backend;
        // The run does not depend on the sweep, so both go on at the same time.
        let sweeping = tokio::spawn({
            let backend = backend.clone();
            async move { backends::sweep(backend.as_ref()).await }
        });
        Ok(Self {
            kind: backend.name(),
            service: Service::start(backend, service_without_pool(config)),
            session: None,
            sweeping: Some(sweeping),
        })
    }

    /// Opens a session, which is created if needed. Waits while another command uses it.
    ///
    /// # Errors
    /// Returns any [`LocalError`] except [`LocalError::Busy`].
    pub async fn session(
        config: &Config,
        id: SessionId,
        needs: &Needs,
    ) -> Result<Self, LocalError> {
        let lock = SessionLock::wait(config, &id).await?;
        let local = Self::open(config, id.clone(), lock, needs).await?;
        if sessions::is_expired(config, &id) {
            local.remove_session(&id).await?;
        }
        Ok(local)
    }

    /// Opens an existing session that no other command uses. Returns `None` if there is none.
    ///
    /// # Errors
    /// Returns any [`LocalError`].
    pub async fn existing(config: &Config, id: SessionId) -> Result<Option<Self>, LocalError> {
        if !sessions::exists(config, &id) {
            return Ok(None);
        }
        let lock =
            SessionLock::try_now(config, &id)?.ok_or_else(|| LocalError::Busy(id.clone()))?;
        // No requirements: the backend of an existing session is known.
        Self::open(config, id, lock, &Needs::default())
            .await
            .map(Some)
    }

    async fn open(
        config: &Config,
        id: SessionId,
        lock: SessionLock,
        needs: &Needs,
    ) -> Result<Self, LocalError> {
        let config = session_config(config, &id);
        if !wait_for_release(&config.startup.state).await {
            return Err(LocalError::Busy(id));
        }
        let backend = backends::start(&config, Purpose::Session, needs)
            .await?
            .backend;
        let adopted = backend.adopt().await?;
        let service = Service::start(backend.clone(), service_without_pool(&config));
        service.adopt(adopted).await?;
        let session = Some((id, lock));
        Ok(Self {
            kind: backend.name(),
            service,
            session,
            sweeping: None,
        })
    }

    /// Returns the name of the backend.
    #[must_use]
    pub fn backend(&self) -> &'static str {
        self.kind
    }

    /// Returns the service, for files of the session, which belongs to the master tenant.
    #[must_use]
    pub fn service(&self) -> &Service {
        &self.service
    }

    /// Runs a job. Dropping the stream ends the job.
    #[must_use]
    pub fn stream(&self, job: Job, input: Option<Input>) -> JobStream {
        let session = self.session.as_ref().map(|(id, _)| id.clone());
        self.service
            .execute_stream(TenantId::master(), session, job, input)
    }

    async fn remove_session(&self, id: &SessionId) -> Result<bool, LocalError> {
        let deleted = self.service.delete_session(TenantId::master(), id.clone());
        Ok(deleted.await?)
    }

    /// Ends the use of the sandbox, and removes a sandbox that does not belong to a session.
    ///
    /// # Errors
    /// Returns an error if the backend could not remove a sandbox.
    pub async fn end(self) -> Result<(), LocalError> {
        if let Some(sweeping) = self.sweeping {
            // Ignore the result: the sweep logs its own failures, and so does a panic.
            let _ = sweeping.await;
        }
        self.service.shutdown().await?;
        if let Some((_, lock)) = self.session {
            lock.release();
        }
        Ok(())
    }
}

/// Waits until the previous command has released the session's sandbox, and returns whether it has. A command does
/// so at its very end, after it has released the session's lock; without the wait, this command would create a
/// second sandbox.
async fn wait_for_release(state: &Path) -> bool {
    let is_in_use = || {
        BackendKind::ALL
            .iter()
            .any(|kind| Instance::is_any_in_use(&state.join(kind.name())))
    };
    let deadline = Instant::now() + RELEASE_TIMEOUT;
    while is_in_use() {
        if Instant::now() > deadline {
            return false;
        }
        sleep(POLL_INTERVAL).await;
    }
    true
}

/// Returns the configuration of a service that creates each sandbox on demand, and none ahead of time.
#[must_use]
pub fn service_without_pool(config: &Config) -> ServiceConfig {
    let mut service = service_config(config, BTreeMap::new());
    service.pool.sizes.clear();
    service.pool.size = PoolSize::fixed(0, 0);
    service.pool.strategy = Strategy::Secure;
    service
}

/// Returns the configuration of a session's own instance.
fn session_config(config: &Config, id: &SessionId) -> Config {
    let mut own = config.clone();
    own.startup.state = directory(config, id);
    own.startup.shutdown.keep_sessions = true;
    own.startup.shutdown.adoptable_for = max_age(config).unwrap_or(NO_EXPIRY);
    // Use the session's backend if the session exists, so that the engine need not be asked.
    if config.startup.backend == BackendChoice::Auto {
        own.startup.backend = match sessions::kind_of(config, id) {
            Some(BackendKind::Native) => BackendChoice::Native,
            Some(BackendKind::Docker) => BackendChoice::Docker,
            None => BackendChoice::Auto,
        };
    }
    own
}
