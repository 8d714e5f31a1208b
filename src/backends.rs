//! The backends there are, and which one to use.

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
use crate::launcher::client::Client;
pub use choice::{Chosen, Needs, pick};

/// First argument of this executable where it is to be the spawner.
pub(crate) const SPAWNER_ARGUMENT: &str = "__spawner";

/// Where a spawner that outlives its command writes its log.
const SPAWNER_LOG: &str = "spawner.log";

/// This executable, even where its file was replaced in the meantime.
pub(crate) const THIS_EXECUTABLE: &str = "/proc/self/exe";

/// Root of the file system whose programs sandboxes share.
pub(crate) const HOST: &str = "/";

/// The guest agent, built with this executable.
static GUEST: &[u8] = include_bytes!(env!("ISOL8_GUEST"));

/// A concrete backend.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Linux namespaces.
    Native,
    /// The Docker engine.
    Docker,
}

impl Kind {
    /// Every backend there is.
    pub const ALL: [Self; 2] = [Self::Native, Self::Docker];

    /// As it stands in the configuration.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Native => "native",
            Self::Docker => "docker",
        }
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// Whether this process was started as the spawner of another one.
#[must_use]
pub fn is_spawner() -> bool {
    std::env::args_os().nth(1).as_deref() == Some(SPAWNER_ARGUMENT.as_ref())
}

/// The bounds that a launcher gave the spawner which this process is.
#[must_use]
pub fn spawner_grant() -> Option<String> {
    std::env::args().nth(2)
}

/// What a backend is started for.
#[derive(Clone, Debug)]
pub enum Purpose {
    /// A server, which goes on with the sessions of one that is gone; with a launcher where it runs without
    /// privileges.
    Serve(Option<Arc<Client>>),
    /// A single command.
    Command,
    /// A command that goes on with the session of an earlier one, and leaves it to the next.
    Session,
}

/// Starts the backend that the configuration asks for; `needs` is what counts beside it where the choice is left to
/// this program.
///
/// # Errors
/// [`BackendError`], which names the fix.
pub async fn start(
    config: &Config,
    purpose: Purpose,
    needs: &Needs,
) -> Result<Chosen, BackendError> {
    let chosen = match candidates(config.backend) {
        [kind] => Chosen {
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

/// The reason for a backend that the configuration names.
#[must_use]
pub fn configured(kind: Kind) -> String {
    format!("backend = \"{kind}\" is set")
}

/// The backends that a configuration leaves to choose from.
#[must_use]
pub fn candidates(choice: BackendChoice) -> &'static [Kind] {
    match choice {
        BackendChoice::Native => &[Kind::Native],
        BackendChoice::Docker => &[Kind::Docker],
        BackendChoice::Auto => &Kind::ALL,
    }
}

/// Removes what dead processes left. A server adopts first what it wants to go on with.
pub async fn sweep(backend: &dyn Backend) {
    let name = backend.name();
    match backend.sweep().await {
        Ok(0) => {}
        Ok(count) => log::info!(backend = name, count; "removed what dead processes left"),
        Err(error) => log::warn!(backend = name, error:%; "something of dead processes is left"),
    }
}

/// Makes sure that the modules which runs are to find imported can be: in a sandbox made for it.
///
/// # Errors
/// [`BackendError`]; a module that is refused is named with the reason.
pub async fn check_preload(backend: &dyn Backend, config: &Config) -> Result<(), BackendError> {
    for runtime in Runtime::ALL {
        let settings = config.kernels.of(runtime);
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
    kind: Kind,
    config: &Config,
    purpose: &Purpose,
) -> Result<Arc<dyn Backend>, BackendError> {
    match kind {
        Kind::Native => {
            let instance = match purpose {
                Purpose::Serve(Some(launcher)) => given_instance(launcher, config).await?,
                _ => instance(kind, config, purpose)?,
            };
            let backend = NativeBackend::start(native_config(config, purpose), instance);
            Ok(Arc::new(backend.await?))
        }
        Kind::Docker => Ok(Arc::new(docker(config, purpose).await?)),
    }
}

async fn docker(config: &Config, purpose: &Purpose) -> Result<DockerBackend, BackendError> {
    let instance = instance(Kind::Docker, config, purpose)?;
    DockerBackend::connect(docker_config(config), instance).await
}

/// What the Docker backend needs to know, for running sandboxes and for building images.
#[must_use]
pub fn docker_config(config: &Config) -> DockerConfig {
    let mut images = DockerConfig::default().images;
    images.extend(config.docker.images.clone());
    DockerConfig {
        host: config.docker.host.clone(),
        images,
        prewarm: config.kernels.clone(),
        adoptable_for: config.adoptable_for,
        certificates: config.certificates.clone(),
        shm_bytes: config.ceilings.limits.memory.bytes(),
    }
}

fn native_config(config: &Config, purpose: &Purpose) -> NativeConfig {
    NativeConfig {
        state: state_of(Kind::Native, config),
        spawner: SpawnerCommand {
            program: THIS_EXECUTABLE.into(),
            arguments: vec![SPAWNER_ARGUMENT.to_owned()],
            launcher: match purpose {
                Purpose::Serve(Some(launcher)) => Some(Arc::clone(launcher) as _),
                _ => None,
            },
            host: HOST.into(),
            roots: config.images_root.as_deref().map(Roots::new),
            adoptable_for: config.adoptable_for,
            certificates: config.certificates.clone(),
            log: matches!(purpose, Purpose::Session).then(|| SPAWNER_LOG.to_owned()),
        },
        prewarm: config.kernels.clone(),
        shm_bytes: config.ceilings.limits.memory.bytes(),
    }
}

/// Each backend sweeps only what it made.
pub(crate) fn state_of(kind: Kind, config: &Config) -> PathBuf {
    config.state.join(kind.name())
}

fn instance(kind: Kind, config: &Config, purpose: &Purpose) -> Result<Arc<Instance>, BackendError> {
    let state = state_of(kind, config);
    match purpose {
        Purpose::Command => Instance::create(&state, GUEST),
        Purpose::Serve(_) | Purpose::Session => adopt_or_create(&state),
    }
    .map(Arc::new)
}

/// The instance that an earlier process left with something claimed, or a new one.
///
/// # Errors
/// [`BackendError::Io`] naming the path.
pub(crate) fn adopt_or_create(state: &Path) -> Result<Instance, BackendError> {
    match Instance::adopt(state, GUEST)? {
        Some(instance) => Ok(instance),
        None => Instance::create(state, GUEST),
    }
}

/// The native backend's instance, which root makes for a server without privileges.
async fn given_instance(
    launcher: &Arc<Client>,
    config: &Config,
) -> Result<Arc<Instance>, BackendError> {
    let (launcher, state) = (Arc::clone(launcher), state_of(Kind::Native, config));
    let given = tokio::task::spawn_blocking(move || launcher.instance(&state)).await;
    let given = given.unwrap_or_else(|panic| Err(BackendError::Unavailable(panic.to_string())));
    given.map(Arc::new)
}
