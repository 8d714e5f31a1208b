//! The choice of a backend for `auto`.
//!
//! Native is taken if it offers everything that the configuration and the request need, because a cold run takes a
//! fifth of the time there and no daemon is required. Docker is taken if it offers something that native lacks.

use std::sync::Arc;

use isol8_api::Runtime;
use isol8_backend::{Backend, BackendError, RuntimeStatus};
use isol8_config::Config;

use super::kind::BackendKind;
use super::start::{Purpose, check_preload, start_kind};

/// Requirements of a request, in addition to those of the configuration.
#[derive(Clone, Debug, Default)]
pub struct Needs {
    /// The only runtime that is needed; `None` means all of them.
    pub runtime: Option<Runtime>,
    /// A requirement that only images meet, in the words of the user: `--image names one`.
    pub images: Option<String>,
}

/// A started backend, and the reason for choosing it.
#[derive(Clone, Debug)]
pub struct ChosenBackend {
    /// The started backend.
    pub backend: Arc<dyn Backend>,
    /// The reason, shown to the operator.
    pub reason: String,
}

/// Starts the backend that suits the configuration and the request best.
///
/// # Errors
/// Returns [`BackendError::Unavailable`] with the problem of each backend.
pub(super) async fn start(
    config: &Config,
    purpose: &Purpose,
    needs: &Needs,
) -> Result<ChosenBackend, BackendError> {
    match purpose {
        Purpose::Command => choose(config, needs).await,
        // A server or session takes over what an earlier process left; a backend that is only tried must not touch
        // that. So the choice is made with an instance of its own, and the chosen backend started again.
        Purpose::Serve(_) | Purpose::Session => {
            let ChosenBackend { backend, reason } = choose(config, needs).await?;
            let kind = kind_of(backend.as_ref());
            backend.shutdown().await?;
            let backend = start_kind(kind, config, purpose).await?;
            Ok(ChosenBackend { backend, reason })
        }
    }
}

/// Chooses a backend, stops it, and returns its kind with the reason for the choice.
///
/// # Errors
/// Returns [`BackendError::Unavailable`] with the problem of each backend.
pub async fn pick(config: &Config, needs: &Needs) -> Result<(BackendKind, String), BackendError> {
    let ChosenBackend { backend, reason } = choose(config, needs).await?;
    backend.shutdown().await?;
    Ok((kind_of(backend.as_ref()), reason))
}

fn kind_of(backend: &dyn Backend) -> BackendKind {
    let named = |kind: &BackendKind| kind.name() == backend.name();
    BackendKind::ALL
        .into_iter()
        .find(named)
        .unwrap_or(BackendKind::Native)
}

async fn choose(config: &Config, needs: &Needs) -> Result<ChosenBackend, BackendError> {
    let purpose = &Purpose::Command;
    let native = match wants_images(config, needs) {
        Some(reason) => Err(Shortfall::general(reason)),
        None => match start_kind(BackendKind::Native, config, purpose).await {
            Ok(backend) => Ok(backend),
            Err(error) => Err(Shortfall::general(format!("native is not usable: {error}"))),
        },
    };
    let (native, shortfall) = match native {
        Err(shortfall) => (None, shortfall),
        Ok(backend) => match shortfall_of(backend.as_ref(), config, needs).await {
            None => {
                let reason = "native offers all that the configuration asks for".to_owned();
                return Ok(ChosenBackend { backend, reason });
            }
            Some(shortfall) => (Some(backend), shortfall),
        },
    };
    let because = shortfall.reason;
    match with_docker(config, needs, &shortfall.runtimes).await {
        Ok(docker) => {
            if let Some(native) = native {
                native.shutdown().await?;
            }
            Ok(ChosenBackend {
                backend: docker,
                reason: because,
            })
        }
        Err(refusal) => {
            let backend = match native {
                Some(native) => native,
                None => start_kind(BackendKind::Native, config, purpose)
                    .await
                    .map_err(|error| neither(&error, &refusal))?,
            };
            let reason = format!("{because}, and docker is no alternative: {refusal}");
            Ok(ChosenBackend { backend, reason })
        }
    }
}

fn neither(native: &BackendError, docker: &str) -> BackendError {
    BackendError::Unavailable(format!("native: {native}; docker: {docker}"))
}

/// A requirement that native does not meet.
struct Shortfall {
    reason: String,
    /// The runtimes that native lacks; empty if it lacks something else.
    runtimes: Vec<Runtime>,
}

impl Shortfall {
    fn general(reason: String) -> Self {
        Self {
            reason,
            runtimes: Vec::new(),
        }
    }
}

/// Returns the reason why images are needed, which only Docker has.
fn wants_images(config: &Config, needs: &Needs) -> Option<String> {
    let key = if !config.startup.images.dependencies.is_empty() {
        Some("dependencies".to_owned())
    } else if !config.startup.images.prebuilt.is_empty() {
        Some("prebuiltImages".to_owned())
    } else {
        let own = config.startup.docker.images.keys().next();
        own.map(|runtime| format!("runtimes.{runtime}.image"))
    };
    let configured = key.map(|key| format!("{key} is configured, which is for docker"));
    configured.or_else(|| needs.images.clone())
}

async fn shortfall_of(native: &dyn Backend, config: &Config, needs: &Needs) -> Option<Shortfall> {
    let mut runtimes = Vec::new();
    for runtime in needed(needs) {
        if let RuntimeStatus::Unavailable(_) = native.runtime_status(runtime).await {
            runtimes.push(runtime);
        }
    }
    if !runtimes.is_empty() {
        let names: Vec<_> = runtimes.iter().map(ToString::to_string).collect();
        let reason = format!("native has no {} here", names.join(", "));
        return Some(Shortfall { reason, runtimes });
    }
    if let Some(shortcoming) = native.shortcomings().into_iter().next() {
        return Some(Shortfall::general(format!(
            "native falls short: {shortcoming}"
        )));
    }
    // A single command checks its modules when it runs.
    if needs.runtime.is_some() {
        return None;
    }
    let error = check_preload(native, config).await.err()?;
    Some(Shortfall::general(format!("native falls short: {error}")))
}

fn needed(needs: &Needs) -> Vec<Runtime> {
    match needs.runtime {
        Some(runtime) => vec![runtime],
        None => Runtime::ALL.into(),
    }
}

/// Starts the Docker backend; fails if the engine does not answer or lacks the needed runtimes.
async fn with_docker(
    config: &Config,
    needs: &Needs,
    lacking: &[Runtime],
) -> Result<Arc<dyn Backend>, String> {
    let docker = start_kind(BackendKind::Docker, config, &Purpose::Command).await;
    let docker = docker.map_err(|error| error.to_string())?;
    let wanted = match lacking {
        [] => needed(needs),
        lacking => lacking.to_vec(),
    };
    let mut refusal = String::new();
    for runtime in wanted {
        match docker.runtime_status(runtime).await {
            RuntimeStatus::Available(_) => return Ok(docker),
            RuntimeStatus::Unavailable(reason) => refusal = reason,
        }
    }
    let ended = docker.shutdown().await;
    ended.map_err(|error| error.to_string())?;
    Err(refusal)
}
