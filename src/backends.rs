//! The available backends, and the choice between them.

mod choice;

use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use isol8_api::Runtime;
use isol8_backend::{Backend, BackendError, Instance, interpreter_of};
use isol8_backend_docker::{DockerBackend, DockerConfig};
use isol8_backend_native::roots::Roots;
use isol8_backend_native::spawner::client::SpawnerCommand;
use isol8_backend_native::{NativeBackend, NativeConfig};

use crate::config::{BackendChoice, Config};
use crate::launcher::client::LauncherClient;
pub use choice::{ChosenBackend, Needs, pick};

/// First argument with which this executable runs as the spawner.
pub(crate) const SPAWNER_ARGUMENT: &str = "__spawner";

/// Log file of a spawner that outlives its command.
const SPAWNER_LOG: &str = "spawner.log";

/// Path of this executable, valid even after its file has been replaced.
pub(crate) const THIS_EXECUTABLE: &str = "/proc/self/exe";

/// Root of the file system whose programs the native backend's sandboxes share.
pub(crate) const HOST_ROOT: &str = "/";

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

/// A concrete backend.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BackendKind {
    /// Linux namespaces.
    Native,
    /// The Docker engine.
    Docker,
}

impl BackendKind {
    /// All backends.
    pub const ALL: [Self; 2] = [Self::Native, Self::Docker];

    /// Returns the backend's name in the configuration.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Native => "native",
            Self::Docker => "docker",
        }
    }
}

impl fmt::Display for BackendKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

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

/// The kind of process that a backend is started for.
#[derive(Clone, Debug)]
pub enum Purpose {
    /// A server, which takes over the sessions of a server that has ended. Holds the launcher if the server runs
    /// without privileges.
    Serve(Option<Arc<LauncherClient>>),
    /// A single command.
    Command,
    /// A command that continues the session of an earlier command and leaves it to the next.
    Session,
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
    let chosen = match candidates(config.backend) {
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

/// Returns the backends that a configuration allows.
#[must_use]
pub fn candidates(choice: BackendChoice) -> &'static [BackendKind] {
    match choice {
        BackendChoice::Native => &[BackendKind::Native],
        BackendChoice::Docker => &[BackendKind::Docker],
        BackendChoice::Auto => &BackendKind::ALL,
    }
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

/// Checks in a new sandbox of each runtime that the configured `preload` modules can be imported.
///
/// # Errors
/// Returns a [`BackendError`] that names the module and the reason.
pub async fn check_preload(backend: &dyn Backend, config: &Config) -> Result<(), BackendError> {
    for runtime in Runtime::ALL {
        let settings = config.prewarm.of(runtime);
        if settings.preload.is_empty() {
            continue;
        }
        let sandbox = backend
            .create(&config.defaults.sandbox.spec(runtime))
            .await?;
        let prepared = sandbox
            .control()
            .prepare(interpreter_of(runtime), settings)
            .await;
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
    images.extend(config.docker.images.clone());
    DockerConfig {
        host: config.docker.host.clone(),
        images,
        prewarm: config.prewarm.clone(),
        adoptable_for: config.adoptable_for,
        certificates: config.certificates.clone(),
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
            roots: config.images_root.as_deref().map(Roots::new),
            adoptable_for: config.adoptable_for,
            certificates: config.certificates.clone(),
            log: matches!(purpose, Purpose::Session).then(|| SPAWNER_LOG.to_owned()),
        },
        prewarm: config.prewarm.clone(),
        shm_bytes: config.ceilings.limits.memory.bytes(),
    }
}

/// Returns the backend's own state directory. Each backend has one, so that it sweeps only sandboxes that it made.
pub(crate) fn state_of(kind: BackendKind, config: &Config) -> PathBuf {
    config.state.join(kind.name())
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
pub(crate) fn adopt_or_create(state: &Path) -> Result<Instance, BackendError> {
    let guest = guest()?;
    match Instance::adopt(state, guest)? {
        Some(instance) => Ok(instance),
        None => Instance::create(state, guest),
    }
}

/// Returns the native backend's instance, made by the launcher as root for a server without privileges.
async fn instance_from_launcher(
    launcher: &Arc<LauncherClient>,
    config: &Config,
) -> Result<Arc<Instance>, BackendError> {
    let (launcher, state) = (Arc::clone(launcher), state_of(BackendKind::Native, config));
    let given = tokio::task::spawn_blocking(move || launcher.instance(&state)).await;
    let given = given.unwrap_or_else(|panic| Err(BackendError::Unavailable(panic.to_string())));
    given.map(Arc::new)
}
