//! Which backend `auto` takes: native where it can do all that the configuration and the request need, because a cold
//! run takes a fifth of the time there and no daemon; Docker where it offers something that native lacks.

use std::sync::Arc;

use isol8_api::Runtime;
use isol8_backend::{Backend, BackendError, RuntimeStatus};

use super::{Kind, Purpose, check_preload, start_kind};
use crate::config::Config;

/// What a request needs beside what the configuration does.
#[derive(Clone, Debug, Default)]
pub struct Needs {
    /// The only runtime that is needed; all of them where there is none.
    pub runtime: Option<Runtime>,
    /// What only images offer, in the words of the user: `--image names one`.
    pub images: Option<String>,
}

/// A backend that was taken, and why.
#[derive(Clone, Debug)]
pub struct Chosen {
    /// The backend, started.
    pub backend: Arc<dyn Backend>,
    /// The reason, for the operator.
    pub reason: String,
}

/// Starts the backend that suits the configuration and the request best.
///
/// # Errors
/// [`BackendError::Unavailable`] with what is wrong with each backend.
pub(super) async fn start(
    config: &Config,
    purpose: &Purpose,
    needs: &Needs,
) -> Result<Chosen, BackendError> {
    match purpose {
        Purpose::Command => choose(config, needs).await,
        // These take over what an earlier process left, which a backend that is not taken must not touch.
        Purpose::Serve(_) | Purpose::Session => {
            let Chosen { backend, reason } = choose(config, needs).await?;
            let kind = kind_of(backend.as_ref());
            backend.shutdown().await?;
            let backend = start_kind(kind, config, purpose).await?;
            Ok(Chosen { backend, reason })
        }
    }
}

/// Chooses without leaving a backend started, and says why.
///
/// # Errors
/// [`BackendError::Unavailable`] with what is wrong with each backend.
pub async fn pick(config: &Config, needs: &Needs) -> Result<(Kind, String), BackendError> {
    let Chosen { backend, reason } = choose(config, needs).await?;
    backend.shutdown().await?;
    Ok((kind_of(backend.as_ref()), reason))
}

fn kind_of(backend: &dyn Backend) -> Kind {
    let named = |kind: &Kind| kind.name() == backend.name();
    Kind::ALL.into_iter().find(named).unwrap_or(Kind::Native)
}

async fn choose(config: &Config, needs: &Needs) -> Result<Chosen, BackendError> {
    let purpose = &Purpose::Command;
    let native = match wants_images(config, needs) {
        Some(reason) => Err(Lack::everything(reason)),
        None => match start_kind(Kind::Native, config, purpose).await {
            Ok(backend) => Ok(backend),
            Err(error) => Err(Lack::everything(format!("native is not usable: {error}"))),
        },
    };
    let (native, lack) = match native {
        Err(lack) => (None, lack),
        Ok(backend) => match lack_of(backend.as_ref(), config, needs).await {
            None => {
                let reason = "native offers all that the configuration asks for".to_owned();
                return Ok(Chosen { backend, reason });
            }
            Some(lack) => (Some(backend), lack),
        },
    };
    let because = lack.reason;
    match with_docker(config, needs, &lack.runtimes).await {
        Ok(docker) => {
            if let Some(native) = native {
                native.shutdown().await?;
            }
            Ok(Chosen {
                backend: docker,
                reason: because,
            })
        }
        Err(refusal) => {
            let backend = match native {
                Some(native) => native,
                None => start_kind(Kind::Native, config, purpose)
                    .await
                    .map_err(|error| neither(&error, &refusal))?,
            };
            let reason = format!("{because}, and docker is no alternative: {refusal}");
            Ok(Chosen { backend, reason })
        }
    }
}

fn neither(native: &BackendError, docker: &str) -> BackendError {
    BackendError::Unavailable(format!("native: {native}; docker: {docker}"))
}

/// Something that native lacks.
struct Lack {
    reason: String,
    /// Runtimes that it lacks, where that is all.
    runtimes: Vec<Runtime>,
}

impl Lack {
    fn everything(reason: String) -> Self {
        Self {
            reason,
            runtimes: Vec::new(),
        }
    }
}

/// Why images are needed, which only Docker has.
fn wants_images(config: &Config, needs: &Needs) -> Option<String> {
    let key = if !config.images.dependencies.is_empty() {
        Some("dependencies".to_owned())
    } else if !config.images.prebuilt.is_empty() {
        Some("prebuiltImages".to_owned())
    } else {
        let own = config.docker.images.keys().next();
        own.map(|runtime| format!("runtimes.{runtime}.image"))
    };
    let configured = key.map(|key| format!("{key} is configured, which is for docker"));
    configured.or_else(|| needs.images.clone())
}

async fn lack_of(native: &dyn Backend, config: &Config, needs: &Needs) -> Option<Lack> {
    let mut runtimes = Vec::new();
    for runtime in needed(needs) {
        if let RuntimeStatus::Unavailable(_) = native.runtime_status(runtime).await {
            runtimes.push(runtime);
        }
    }
    if !runtimes.is_empty() {
        let names: Vec<_> = runtimes.iter().map(ToString::to_string).collect();
        let reason = format!("native has no {} here", names.join(", "));
        return Some(Lack { reason, runtimes });
    }
    if let Some(shortcoming) = native.shortcomings().into_iter().next() {
        return Some(Lack::everything(format!(
            "native falls short: {shortcoming}"
        )));
    }
    // A single command looks when it runs.
    if needs.runtime.is_some() {
        return None;
    }
    let error = check_preload(native, config).await.err()?;
    Some(Lack::everything(format!("native falls short: {error}")))
}

fn needed(needs: &Needs) -> Vec<Runtime> {
    match needs.runtime {
        Some(runtime) => vec![runtime],
        None => Runtime::ALL.into(),
    }
}

/// The Docker backend, where its engine answers and it has what is needed.
async fn with_docker(
    config: &Config,
    needs: &Needs,
    lacking: &[Runtime],
) -> Result<Arc<dyn Backend>, String> {
    let docker = start_kind(Kind::Docker, config, &Purpose::Command).await;
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
