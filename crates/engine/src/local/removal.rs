//! The end of sessions of this host.

use isol8_api::SessionId;
use isol8_config::{BackendChoice, Config};

use super::LocalService;
use super::directory::{directory, is_empty, max_age};
use super::error::LocalError;
use super::lock::SessionLock;
use super::sessions::{LocalSession, found, ids, list};
use crate::backends::BackendKind;

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

#[cfg(test)]
mod tests {
    use std::fs;

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
