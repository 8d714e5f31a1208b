//! Sandboxes of this host without a server: one for a single run, or one that stays between commands.
//!
//! What stays is a *session*, as a server's are: its sandbox is claimed, outlives the command that made
//! it, and is adopted by the next one. Each has a state directory of its own, `<state>/cli/<session>`,
//! so that neither a server nor a command for another session takes it for its own. Whoever uses a
//! session holds the lock of that directory.
//!
//! A session ends with [`delete`], or when nobody has used it for `cleanup.maxContainerAgeMs`: on the native
//! backend by itself, else with the next command that looks after sessions ([`expire`]).

mod lock;
mod sessions;

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use isol8_actors::pool::{PoolSize, Strategy};
use isol8_actors::{ExecuteError, Input, Job, JobStream, Service, ServiceConfig};
use isol8_api::{SessionId, TenantId};
use isol8_backend::BackendError;
use isol8_backend::instance::Instance;
use tokio::task::JoinHandle;
use tokio::time::sleep;

use crate::backends::{self, Kind, Needs, Purpose};
use crate::config::{BackendChoice, Config};
use lock::Lock;
pub use sessions::{LocalSession, clean_up, delete, expire, list};

/// Longer than anybody waits: a session that does not end by itself.
const FOR_EVER: Duration = Duration::from_secs(100 * 365 * 24 * 3600);

/// How long a command may take to end that has given up its session.
const LETTING_GO: Duration = Duration::from_secs(30);

/// Between two looks whether it has.
const LOOK_EVERY: Duration = Duration::from_millis(2);

/// Why there is nothing to run in.
#[derive(Debug, thiserror::Error)]
pub enum LocalError {
    /// The backend cannot be used; the text names the fix.
    #[error(transparent)]
    Backend(#[from] BackendError),
    /// The session cannot be used.
    #[error(transparent)]
    Execute(#[from] ExecuteError),
    /// Another command uses the session.
    #[error("session {0} is in use by another command, end that first")]
    Busy(SessionId),
    /// The session's directory cannot be used.
    #[error("{path}: {source}", path = .path.display())]
    Io {
        /// The directory.
        path: PathBuf,
        /// Why not.
        source: std::io::Error,
    },
}

/// What a command runs programs in.
#[derive(Debug)]
pub struct Local {
    service: Service,
    kind: &'static str,
    session: Option<(SessionId, Lock)>,
    /// Of what killed commands left.
    sweeping: Option<JoinHandle<()>>,
}

impl Local {
    /// Starts what makes a sandbox for each run, and removes it afterwards.
    ///
    /// # Errors
    /// [`LocalError::Backend`].
    pub async fn start(config: &Config, needs: &Needs) -> Result<Self, LocalError> {
        let backend = backends::start(config, Purpose::Command, needs)
            .await?
            .backend;
        // Beside the run, which does not depend on it.
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

    /// Goes on in a session, or begins it. Waits while another command uses it.
    ///
    /// # Errors
    /// Any [`LocalError`] but [`LocalError::Busy`].
    pub async fn session(
        config: &Config,
        id: SessionId,
        needs: &Needs,
    ) -> Result<Self, LocalError> {
        let lock = Lock::wait(config, &id).await?;
        let local = Self::open(config, id.clone(), lock, needs).await?;
        if sessions::is_expired(config, &id) {
            local.remove_session(&id).await?;
        }
        Ok(local)
    }

    /// Goes on in a session, where there is one and nobody uses it.
    ///
    /// # Errors
    /// Any [`LocalError`].
    pub async fn existing(config: &Config, id: SessionId) -> Result<Option<Self>, LocalError> {
        if !sessions::exists(config, &id) {
            return Ok(None);
        }
        let lock = Lock::try_now(config, &id)?.ok_or_else(|| LocalError::Busy(id.clone()))?;
        // Where a session is, is known.
        Self::open(config, id, lock, &Needs::default())
            .await
            .map(Some)
    }

    async fn open(
        config: &Config,
        id: SessionId,
        lock: Lock,
        needs: &Needs,
    ) -> Result<Self, LocalError> {
        let config = session_config(config, &id);
        if !is_let_go(&config.state).await {
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

    /// The name of the backend.
    #[must_use]
    pub fn backend(&self) -> &'static str {
        self.kind
    }

    /// For files of the session, which is the master's.
    #[must_use]
    pub fn service(&self) -> &Service {
        &self.service
    }

    /// Runs a job. Dropping the stream ends it.
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

    /// Removes what is not to stay.
    ///
    /// # Errors
    /// What the backend could not remove.
    pub async fn end(self) -> Result<(), LocalError> {
        if let Some(sweeping) = self.sweeping {
            // It tells of its own failures, and cannot panic without having told.
            let _ = sweeping.await;
        }
        self.service.shutdown().await?;
        if let Some((_, lock)) = self.session {
            lock.release();
        }
        Ok(())
    }
}

/// Waits until the command before has let go of the session's sandbox, which it does at its very end, after
/// it has given up the session's lock. Beside it, another sandbox would be made.
async fn is_let_go(state: &Path) -> bool {
    let is_in_use = || {
        Kind::ALL
            .iter()
            .any(|kind| Instance::is_any_in_use(&state.join(kind.name())))
    };
    let deadline = Instant::now() + LETTING_GO;
    while is_in_use() {
        if Instant::now() > deadline {
            return false;
        }
        sleep(LOOK_EVERY).await;
    }
    true
}

/// A service that makes one sandbox when it is asked for, and none ahead of time.
pub(crate) fn service_without_pool(config: &Config) -> ServiceConfig {
    let mut service = config.service();
    service.pool.sizes.clear();
    service.pool.size = PoolSize::fixed(0, 0);
    service.pool.strategy = Strategy::Secure;
    service
}

/// The configuration of a session's own instance.
fn session_config(config: &Config, id: &SessionId) -> Config {
    let mut own = config.clone();
    own.state = directory(config, id);
    own.keep_sessions = true;
    own.adoptable_for = max_age(config).unwrap_or(FOR_EVER);
    // Where there is one already, no engine need be asked.
    if config.backend == BackendChoice::Auto {
        own.backend = match sessions::kind_of(config, id) {
            Some(Kind::Native) => BackendChoice::Native,
            Some(Kind::Docker) => BackendChoice::Docker,
            None => BackendChoice::Auto,
        };
    }
    own
}

/// How long a session may be idle.
fn max_age(config: &Config) -> Option<Duration> {
    let cleanup = config.cleanup;
    cleanup.auto_prune.then_some(cleanup.max_age)
}

/// Where the directories of all sessions are.
fn root(config: &Config) -> PathBuf {
    config.state.join("cli")
}

/// The state directory of a session. An id is no path: none has a slash, and what could be taken for a
/// special name has one more character.
fn directory(config: &Config, id: &SessionId) -> PathBuf {
    root(config).join(format!("{id}@"))
}
