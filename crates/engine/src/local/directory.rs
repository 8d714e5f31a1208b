//! The directories of sessions.

use std::path::{Path, PathBuf};
use std::time::Duration;

use isol8_api::SessionId;
use isol8_backend::instance::Instance;
use isol8_config::Config;

use crate::backends::BackendKind;

/// Returns how long a session may be idle; `None` for any time.
pub(super) fn max_age(config: &Config) -> Option<Duration> {
    let cleanup = config.cleanup;
    cleanup.auto_prune.then_some(cleanup.max_age)
}

/// Returns the directory that holds the directories of all sessions.
pub(super) fn root(config: &Config) -> PathBuf {
    config.startup.state.join("cli")
}

/// Returns the state directory of a session. The suffix makes any id a safe file name: an id has no slash, and the
/// suffix keeps it from being a special name such as `..`.
pub(super) fn directory(config: &Config, id: &SessionId) -> PathBuf {
    root(config).join(format!("{id}@"))
}

/// Returns whether a session's directory holds nothing for a later command.
pub(super) fn is_empty(directory: &Path) -> bool {
    let mut kinds = BackendKind::ALL
        .iter()
        .map(|kind| directory.join(kind.name()));
    kinds.all(|state| Instance::all(&state).is_empty())
}
