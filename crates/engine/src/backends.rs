//! The available backends, and the choice between them.

mod choice;
mod kind;
mod start;

use isol8_backend::{Backend, BackendError};
use isol8_config::Config;

pub use choice::{ChosenBackend, Needs, pick};
pub use kind::{BackendKind, candidates};
pub use start::{
    HOST_ROOT, Launcher, Purpose, SPAWNER_ARGUMENT, THIS_EXECUTABLE, adopt_or_create,
    check_preload, docker_config, start_kind, state_of,
};

/// Returns whether this process was started as the spawner of another process.
#[must_use]
pub fn is_spawner() -> bool {
    std::env::args_os().nth(1).as_deref() == Some(SPAWNER_ARGUMENT.as_ref())
}

/// Returns the bounds that the launcher gave to this process as its spawner.
#[must_use]
pub fn spawner_grant() -> Option<String> {
    std::env::args().nth(2)
}

/// Starts the configured backend. With `auto`, `needs` takes part in the choice.
///
/// # Errors
/// [`BackendError`], which names the fix.
pub async fn start(
    config: &Config,
    purpose: Purpose,
    needs: &Needs,
) -> Result<ChosenBackend, BackendError> {
    let chosen = match candidates(config.startup.backend) {
        [kind] => ChosenBackend {
            backend: start_kind(*kind, config, &purpose).await?,
            reason: configured(*kind),
        },
        _ => choice::start(config, &purpose, needs).await?,
    };
    for shortcoming in chosen.backend.shortcomings() {
        log::warn!(backend = chosen.backend.name(); "{shortcoming}");
    }
    log::debug!(backend = chosen.backend.name(), reason = chosen.reason.as_str(); "backend taken");
    Ok(chosen)
}

/// Returns the reason shown for a backend that the configuration names.
#[must_use]
pub fn configured(kind: BackendKind) -> String {
    format!("backend = \"{kind}\" is set")
}

/// Removes what dead processes left behind. A server must adopt the sessions that it wants to keep before this
/// call.
pub async fn sweep(backend: &dyn Backend) {
    let name = backend.name();
    match backend.sweep().await {
        Ok(0) => {}
        Ok(count) => log::info!(backend = name, count; "removed leftovers of dead processes"),
        Err(error) => {
            log::warn!(backend = name, error:%; "cannot remove leftovers of dead processes")
        }
    }
}
