//! The sessions that commands left on this host, found by their directories.

use std::fs;
use std::path::Path;
use std::time::{Duration, SystemTime};

use isol8_api::{SessionId, SessionInfo};
use isol8_backend::instance::Instance;
use isol8_backend::{Claim, Claims, SandboxId};
use isol8_config::{BackendChoice, Config};

use super::lock::SessionLock;
use super::{LocalError, LocalService, directory, max_age, root};
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
    idle: Duration,
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
fn ids(config: &Config) -> Vec<SessionId> {
    let entries = fs::read_dir(root(config)).into_iter().flatten().flatten();
    let ids = entries.filter_map(|entry| {
        let name = entry.file_name().into_string().ok()?;
        name.strip_suffix('@')?.parse().ok()
    });
    ids.collect()
}

/// Ends a session, and returns whether it existed.
///
/// # Errors
/// Returns [`LocalError::Busy`] while another command uses the session, or the error of a failed removal.
pub async fn delete(config: &Config, id: &SessionId) -> Result<bool, LocalError> {
    let mut deleted = false;
    for session in found(config, id) {
        let mut config = config.clone();
        config.startup.backend = match session.backend {
            BackendKind::Native => BackendChoice::Native,
            BackendKind::Docker => BackendChoice::Docker,
        };
        let Some(local) = LocalService::existing(&config, id.clone()).await? else {
            continue;
        };
        let removed = local.remove_session(id).await;
        local.end().await?;
        // Report the error only after `end`: a session whose sandbox is lost is gone too.
        removed?;
        deleted = true;
    }
    Ok(deleted)
}

/// Ends every session. Returns the number of ended sessions, and the errors of the others.
pub async fn clean_up(config: &Config) -> (usize, Vec<LocalError>) {
    delete_all(config, list(config)).await
}

/// Ends the sessions that have been idle for too long, and removes the directories of sessions that ended by
/// themselves. Sessions in use are left alone.
pub async fn expire(config: &Config) {
    remove_ended(config);
    let Some(max_age) = max_age(config) else {
        return;
    };
    let mut expired = list(config);
    expired.retain(|session| session.idle >= max_age && !session.info.is_active);
    for error in delete_all(config, expired).await.1 {
        log::warn!(error:%; "cannot end an expired session");
    }
}

fn remove_ended(config: &Config) {
    for id in ids(config) {
        if is_empty(&directory(config, &id))
            && let Ok(Some(lock)) = SessionLock::try_now(config, &id)
        {
            lock.release();
        }
    }
}

async fn delete_all(config: &Config, sessions: Vec<LocalSession>) -> (usize, Vec<LocalError>) {
    let (mut removed, mut failed) = (0, Vec::new());
    for session in sessions {
        match delete(config, &session.info.id).await {
            Ok(deleted) => removed += usize::from(deleted),
            Err(error) => failed.push(error),
        }
    }
    (removed, failed)
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

/// Returns whether a session's directory holds nothing for a later command.
pub(super) fn is_empty(directory: &Path) -> bool {
    let mut kinds = BackendKind::ALL
        .iter()
        .map(|kind| directory.join(kind.name()));
    kinds.all(|state| Instance::all(&state).is_empty())
}

/// Returns the session on each backend, at most one on each.
fn found(config: &Config, id: &SessionId) -> Vec<LocalSession> {
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

#[cfg(test)]
mod tests {
    use super::*;
    use isol8_config::Overrides;

    #[test]
    fn the_directory_of_a_session_that_has_ended_goes_where_nobody_uses_it() {
        let state = tempfile::tempdir().unwrap();
        let lookup = |name: &str| {
            (name == "ISOL8_STATE_DIR").then(|| state.path().to_string_lossy().into_owned())
        };
        let config = Config::load(&Overrides::default(), &lookup).unwrap();
        let [ended, in_use, alive] =
            ["ended", "used", "alive"].map(|id| directory(&config, &id.parse().unwrap()));
        fs::create_dir_all(ended.join("native")).unwrap();
        fs::create_dir_all(alive.join("native/0123456789abcdef")).unwrap();
        let lock = SessionLock::try_now(&config, &"used".parse().unwrap());
        let lock = lock.unwrap().unwrap();
        remove_ended(&config);
        assert!(!ended.exists());
        assert!(in_use.exists() && alive.exists());
        drop(lock);
        remove_ended(&config);
        assert!(!in_use.exists() && alive.exists());
    }
}
