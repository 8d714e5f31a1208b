//! The sessions that commands left on this host, found by their directories.

use std::fs;
use std::time::{Duration, SystemTime};

use isol8_api::{SessionId, SessionInfo};
use isol8_backend::instance::Instance;
use isol8_backend::{Claim, Claims, SandboxId};
use isol8_config::Config;

use super::directory::{directory, max_age, root};
use super::lock::SessionLock;
use crate::backends::BackendKind;

/// A session that stays between commands.
#[derive(Clone, Debug)]
pub struct LocalSession {
    /// The session as a server would report it.
    pub info: SessionInfo,
    /// The backend of the session's sandbox.
    pub backend: BackendKind,
    /// The instance that holds the session's sandbox.
    pub instance: String,
    pub(super) idle: Duration,
}

/// Returns all sessions of this host, sorted by id.
#[must_use]
pub fn list(config: &Config) -> Vec<LocalSession> {
    let ids = ids(config).into_iter();
    let mut found: Vec<_> = ids.flat_map(|id| found(config, &id)).collect();
    found.sort_by(|one, other| one.info.id.as_str().cmp(other.info.id.as_str()));
    found
}

/// Returns the ids that have a directory: sessions, and sessions that ended by themselves.
pub(super) fn ids(config: &Config) -> Vec<SessionId> {
    let entries = fs::read_dir(root(config)).into_iter().flatten().flatten();
    let ids = entries.filter_map(|entry| {
        let name = entry.file_name().into_string().ok()?;
        name.strip_suffix('@')?.parse().ok()
    });
    ids.collect()
}

pub(super) fn exists(config: &Config, id: &SessionId) -> bool {
    !found(config, id).is_empty()
}

/// Returns the backend of a session, if it exists.
pub(super) fn kind_of(config: &Config, id: &SessionId) -> Option<BackendKind> {
    found(config, id).first().map(|session| session.backend)
}

/// Returns whether a session has been idle for too long.
pub(super) fn is_expired(config: &Config, id: &SessionId) -> bool {
    let idle = found(config, id).first().map(|session| session.idle);
    matches!((idle, max_age(config)), (Some(idle), Some(max_age)) if idle >= max_age)
}

/// Returns the session on each backend, at most one on each.
pub(super) fn found(config: &Config, id: &SessionId) -> Vec<LocalSession> {
    let directory = directory(config, id);
    let is_active = SessionLock::is_held(&directory);
    let mut found = Vec::new();
    for backend in BackendKind::ALL {
        for instance in Instance::all(&directory.join(backend.name())) {
            let claims = Claims::of(&instance).all().into_iter();
            let name = instance.file_name().unwrap_or_default();
            found.extend(claims.map(|(sandbox, claim, idle)| LocalSession {
                info: info(claim, &sandbox, idle, is_active, max_age(config)),
                backend,
                instance: name.to_string_lossy().into_owned(),
                idle,
            }));
        }
    }
    found
}

fn info(
    claim: Claim,
    sandbox: &SandboxId,
    idle: Duration,
    is_active: bool,
    max_age: Option<Duration>,
) -> SessionInfo {
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
    let used = now.unwrap_or_default().saturating_sub(idle);
    let milliseconds = |time: Duration| u64::try_from(time.as_millis()).unwrap_or(u64::MAX);
    SessionInfo {
        id: claim.session,
        is_active,
        last_accessed_at: milliseconds(used),
        runtime: claim.spec.runtime,
        created_at: claim.created_at,
        container_id: sandbox.to_string(),
        expires_at: max_age.map(|max_age| milliseconds(used + max_age)),
        tenant_id: None,
    }
}
