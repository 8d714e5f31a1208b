//! Starts backends, with the guest that this executable carries.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use isol8_api::Runtime;
use isol8_backend::{Backend, BackendError, Instance};
use isol8_backend_docker::{DockerBackend, DockerConfig};
use isol8_backend_native::roots::Roots;
use isol8_backend_native::spawner::client::{Launch, SpawnerCommand};
use isol8_backend_native::{NativeBackend, NativeConfig};
use isol8_config::Config;

use super::kind::BackendKind;

/// First argument with which this executable runs as the spawner.
pub const SPAWNER_ARGUMENT: &str = "__spawner";

/// Log file of a spawner that outlives its command.
const SPAWNER_LOG: &str = "spawner.log";

/// Path of this executable, valid even after its file has been replaced.
pub const THIS_EXECUTABLE: &str = "/proc/self/exe";

/// Root of the file system whose programs the native backend's sandboxes share.
pub const HOST_ROOT: &str = "/";

/// The guest agent, built with this executable.
static GUEST: &[u8] = include_bytes!(env!("ISOL8_GUEST"));

/// Returns the guest agent.
///
/// # Errors
/// [`BackendError::Create`] if this executable was built without one.
fn guest() -> Result<&'static [u8], BackendError> {
    if GUEST.is_empty() {
        let reason =
            "this executable has no guest agent: build it without the variable ISOL8_GUEST";
        return Err(BackendError::Create(reason.to_owned()));
    }
    Ok(GUEST)
}

/// The privileged process that makes instances and spawners for a server without privileges.
pub trait Launcher: Launch {
    /// Requests an instance of the native backend: one that an earlier server left, or a new one. This function may
    /// block.
    ///
    /// # Errors
    /// Returns [`BackendError::Unavailable`] with the launcher's reason.
    fn instance(&self, state: &Path) -> Result<Instance, BackendError>;
}

/// The kind of process that a backend is started for.
#[derive(Clone, Debug)]
pub enum Purpose {
    /// A server, which takes over the sessions of a server that has ended. Holds the launcher if the server runs
    /// without privileges.
    Serve(Option<Arc<dyn Launcher>>),
    /// A single command.
    Command,
    /// A command that continues the session of an earlier command and leaves it to the next.
    Session,
}

/// Checks in a new sandbox of each runtime that the configured `preload` modules can be imported.
///
/// # Errors
/// Returns a [`BackendError`] that names the module and the reason.
pub async fn check_preload(backend: &dyn Backend, config: &Config) -> Result<(), BackendError> {
    for runtime in Runtime::ALL {
        let settings = config.startup.prewarm.of(runtime);
        if settings.preload.is_empty() {
            continue;
        }
        let sandbox = backend
            .create(&config.defaults.sandbox.spec(runtime))
            .await?;
        let prepared = sandbox.control().prepare(runtime, settings).await;
        sandbox.destroy().await?;
        prepared.map_err(|error| {
            BackendError::Unavailable(format!("runtimes.{runtime}.preload: {error}"))
        })?;
    }
    Ok(())
}

/// Starts one backend.
///
/// # Errors
/// [`BackendError`], which names the fix.
pub async fn start_kind(
    kind: BackendKind,
    config: &Config,
    purpose: &Purpose,
) -> Result<Arc<dyn Backend>, BackendError> {
    match kind {
        BackendKind::Native => {
            let instance = match purpose {
                Purpose::Serve(Some(launcher)) => instance_from_launcher(launcher, config).await?,
                _ => instance(kind, config, purpose)?,
            };
            let backend = NativeBackend::start(native_config(config, purpose), instance);
            Ok(Arc::new(backend.await?))
        }
        BackendKind::Docker => Ok(Arc::new(docker(config, purpose).await?)),
    }
}

async fn docker(config: &Config, purpose: &Purpose) -> Result<DockerBackend, BackendError> {
    let instance = instance(BackendKind::Docker, config, purpose)?;
    DockerBackend::connect(docker_config(config), instance).await
}

/// Returns the Docker backend's configuration, for running sandboxes and for building images.
#[must_use]
pub fn docker_config(config: &Config) -> DockerConfig {
    let mut images = DockerConfig::default().images;
    images.extend(config.startup.docker.images.clone());
    DockerConfig {
        host: config.startup.docker.host.clone(),
        images,
        prewarm: config.startup.prewarm.clone(),
        adoptable_for: config.startup.shutdown.adoptable_for,
        certificates: config.startup.certificates.clone(),
        shm_bytes: config.ceilings.limits.memory.bytes(),
    }
}

fn native_config(config: &Config, purpose: &Purpose) -> NativeConfig {
    NativeConfig {
        state: state_of(BackendKind::Native, config),
        spawner: SpawnerCommand {
            program: THIS_EXECUTABLE.into(),
            arguments: vec![SPAWNER_ARGUMENT.to_owned()],
            launcher: match purpose {
                Purpose::Serve(Some(launcher)) => Some(Arc::clone(launcher) as _),
                _ => None,
            },
            host: HOST_ROOT.into(),
            roots: config.startup.images_root.as_deref().map(Roots::new),
            adoptable_for: config.startup.shutdown.adoptable_for,
            certificates: config.startup.certificates.clone(),
            log: matches!(purpose, Purpose::Session).then(|| SPAWNER_LOG.to_owned()),
        },
        prewarm: config.startup.prewarm.clone(),
        shm_bytes: config.ceilings.limits.memory.bytes(),
    }
}

/// Returns the backend's own state directory. Each backend has one, so that it sweeps only sandboxes that it made.
#[must_use]
pub fn state_of(kind: BackendKind, config: &Config) -> PathBuf {
    config.startup.state.join(kind.name())
}

fn instance(
    kind: BackendKind,
    config: &Config,
    purpose: &Purpose,
) -> Result<Arc<Instance>, BackendError> {
    let state = state_of(kind, config);
    match purpose {
        Purpose::Command => guest().and_then(|guest| Instance::create(&state, guest)),
        Purpose::Serve(_) | Purpose::Session => adopt_or_create(&state),
    }
    .map(Arc::new)
}

/// Returns the instance of an earlier process if it holds claimed sandboxes, otherwise a new one.
///
/// # Errors
/// [`BackendError::Io`] naming the path.
pub fn adopt_or_create(state: &Path) -> Result<Instance, BackendError> {
    let guest = guest()?;
    match Instance::adopt(state, guest)? {
        Some(instance) => Ok(instance),
        None => Instance::create(state, guest),
    }
}

/// Returns the native backend's instance, made by the launcher as root for a server without privileges.
async fn instance_from_launcher(
    launcher: &Arc<dyn Launcher>,
    config: &Config,
) -> Result<Arc<Instance>, BackendError> {
    let (launcher, state) = (Arc::clone(launcher), state_of(BackendKind::Native, config));
    let given = tokio::task::spawn_blocking(move || launcher.instance(&state)).await;
    let given = given.unwrap_or_else(|panic| Err(BackendError::Unavailable(panic.to_string())));
    given.map(Arc::new)
}

#[cfg(test)]
mod tests {
    use isol8_backend_docker::setup::DEFAULT_BASE;
    use isol8_config::ConfigFile;
    use isol8_config::images::runtime_image;

    use super::*;

    #[test]
    fn the_configuration_has_the_defaults_of_the_docker_backend() {
        let config = ConfigFile::default().check("/state".into()).unwrap();
        assert_eq!(config.startup.docker.base, DEFAULT_BASE);
        for (runtime, image) in DockerConfig::default().images {
            assert_eq!(image, runtime_image(runtime));
        }
    }
}
