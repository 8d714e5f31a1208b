//! The backend's calls of the engine: making, sweeping, shutting down.

use std::collections::BTreeMap;
use std::collections::HashMap;
use std::fs;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bollard::models::ContainerSummary;
use futures::{StreamExt as _, stream};
use isol8_api::Runtime;
use isol8_backend::adoption;
use isol8_backend::instance::DeadInstance;
use isol8_backend::{
    Adopted, Backend, BackendError, Instance, RuntimeStatus, Sandbox, SandboxSpec,
};
use tokio::sync::RwLock;

use crate::DockerConfig;
use crate::container::{self, INSTANCE_LABEL, STATE_LABEL, label};
use crate::engine::{CALL_DEADLINE, Engine, EngineError};
use crate::image;
use crate::sandbox::{self, Owner};
use crate::setup::{self, VERSION_LABEL};

/// The backend's name.
pub(crate) const NAME: &str = "docker";

/// Removals under way at once. The engine does most of one under a lock of its own, so more would
/// only wait there, and let its other callers wait too.
const REMOVALS_AT_ONCE: usize = 4;

/// Makes sandboxes with a Docker engine.
#[derive(Debug)]
pub struct DockerBackend {
    owner: Arc<Owner>,
    images: BTreeMap<Runtime, String>,
    /// Whether sandboxes may be made. Held for reading while one is; so a shutdown that has it for
    /// writing knows that none is under way.
    open: Arc<RwLock<bool>>,
    adoptable_for: Duration,
}

impl DockerBackend {
    /// Connects to an engine, which must answer now. Sandboxes belong to `instance`.
    ///
    /// # Errors
    /// [`BackendError::Unavailable`] naming the fix; [`BackendError::Io`] for a state directory
    /// that cannot be read.
    pub async fn connect(
        config: DockerConfig,
        instance: Arc<Instance>,
    ) -> Result<Self, BackendError> {
        let engine = Engine::connect(config.host.as_deref())
            .await
            .map_err(|error| error.into_backend(BackendError::Unavailable))?;
        let directory = instance.directory();
        let parent = directory.parent().unwrap_or(directory);
        let state = fs::canonicalize(parent).map_err(BackendError::io(format!(
            "state directory {} cannot be read",
            parent.display()
        )))?;
        Ok(Self {
            owner: Arc::new(Owner::new(engine, instance, state, &config)),
            images: config.images,
            open: Arc::new(RwLock::new(true)),
            adoptable_for: config.adoptable_for,
        })
    }

    /// Removes every container of a process that no longer lives, and says how many there were. The
    /// instance's directory is left to the caller, who holds its [`DeadInstance`]: other backends
    /// may have something to remove first.
    ///
    /// # Errors
    /// [`BackendError::Destroy`] for what could not be removed; the rest was.
    pub async fn remove_instance(&self, instance_id: &str) -> Result<usize, BackendError> {
        let labels = vec![self.state_filter(), label(INSTANCE_LABEL, instance_id)];
        let found = self.list(labels).await?;
        self.remove_all(found).await
    }

    async fn remove_unclaimed(&self) -> Result<(), BackendError> {
        let instance = &self.owner.instance;
        let labels = vec![
            self.state_filter(),
            label(INSTANCE_LABEL, instance.id().as_str()),
        ];
        let mut found = self.list(labels).await?;
        let claims = instance.claims();
        found.retain(|found| !container::id_of_name(&found.name).is_some_and(|id| claims.has(id)));
        self.remove_all(found).await.map(drop)
    }

    fn no_image(&self) -> String {
        let offered: Vec<&str> = self.images.keys().map(|runtime| runtime.name()).collect();
        let offered = offered.join(", ");
        format!("no image is configured for it, only for: {offered}")
    }

    fn state_filter(&self) -> String {
        label(STATE_LABEL, &self.owner.state.display().to_string())
    }

    async fn list(&self, labels: Vec<String>) -> Result<Vec<Found>, BackendError> {
        let containers = self.owner.engine.labelled(labels).await;
        let containers =
            containers.map_err(|error| error.into_backend(BackendError::Unavailable))?;
        Ok(containers.into_iter().filter_map(Found::read).collect())
    }

    /// Removes what was found, a few at a time, and goes on after failures.
    async fn remove_all(&self, found: Vec<Found>) -> Result<usize, BackendError> {
        let removals = found.into_iter().map(|found| self.remove(found));
        let results: Vec<Result<(), String>> = stream::iter(removals)
            .buffer_unordered(REMOVALS_AT_ONCE)
            .collect()
            .await;
        let total = results.len();
        let failures: Vec<String> = results.into_iter().filter_map(Result::err).collect();
        match failures.first() {
            None => Ok(total),
            Some(first) => {
                let failed = failures.len();
                let text = format!("{failed} of {total} containers remain, the first: {first}");
                Err(BackendError::Destroy(text))
            }
        }
    }

    async fn remove(&self, found: Found) -> Result<(), String> {
        let own = found.instance == self.owner.instance.id().as_str();
        let removed = match container::id_of_name(&found.name) {
            Some(id) if own => self.owner.remove(id).await,
            _ => self.owner.engine.remove(&found.name).await,
        };
        removed.map_err(|error| format!("{}: {error}", found.name))
    }

    /// Whether no process is left that would remove this container.
    fn is_orphan(&self, found: &Found, dead: &[DeadInstance]) -> bool {
        if found.instance == self.owner.instance.id().as_str() {
            let id = container::id_of_name(&found.name);
            return !self
                .owner
                .live()
                .iter()
                .any(|live| Some(live.as_str()) == id);
        }
        let is_dead = dead.iter().any(|dead| dead.id() == found.instance);
        // An instance removes its directory at its end.
        is_dead || !self.owner.state.join(&found.instance).exists()
    }
}

#[async_trait]
impl Backend for DockerBackend {
    fn name(&self) -> &'static str {
        NAME
    }

    async fn runtime_status(&self, runtime: Runtime) -> RuntimeStatus {
        let Some(image) = self.images.get(&runtime) else {
            return RuntimeStatus::Unavailable(self.no_image());
        };
        let engine = &self.owner.engine;
        let inspected = engine.docker.inspect_image(image);
        match engine.call(CALL_DEADLINE, inspected).await {
            Ok(inspected) => {
                if let Err(reason) = image::check_volumes(&inspected) {
                    return RuntimeStatus::Unavailable(format!("image {image}: {reason}"));
                }
                let labels = inspected.config.and_then(|config| config.labels);
                RuntimeStatus::Available(available(image, &labels.unwrap_or_default()))
            }
            Err(error) if error.is_not_found() => RuntimeStatus::Unavailable(missing_image(image)),
            Err(EngineError::Refused { message, .. }) => RuntimeStatus::Unavailable(message),
            Err(EngineError::Silent(text)) => RuntimeStatus::Unavailable(text),
        }
    }

    async fn create(&self, spec: &SandboxSpec) -> Result<Arc<dyn Sandbox>, BackendError> {
        let Some(image) = self.images.get(&spec.runtime).cloned() else {
            return Err(BackendError::RuntimeUnavailable {
                runtime: spec.runtime,
                backend: NAME,
                reason: self.no_image(),
            });
        };
        let (owner, open, spec) = (
            Arc::clone(&self.owner),
            Arc::clone(&self.open),
            spec.clone(),
        );
        // A task of its own: where the caller goes away, no call to the engine is broken off with
        // its outcome unknown, and what was made is removed by being dropped.
        let making = tokio::spawn(async move {
            let open = open.read().await;
            if !*open {
                return Err(BackendError::Unavailable(
                    "isol8 is shutting down".to_owned(),
                ));
            }
            sandbox::make(&owner, &spec, &image).await
        });
        let made = making.await;
        made.unwrap_or_else(|error| Err(BackendError::Create(format!("internal error: {error}"))))
    }

    async fn adopt(&self) -> Result<Vec<Adopted>, BackendError> {
        let claims = self.owner.instance.claims();
        adoption::adopt(claims, |id| sandbox::find(&self.owner, id)).await
    }

    /// Directories of dead instances stay: see [`DockerBackend::remove_instance`].
    async fn sweep(&self) -> Result<usize, BackendError> {
        self.owner.instance.touch();
        let mut found = self.list(vec![self.state_filter()]).await?;
        // Held until the end, so that no other process sweeps them too.
        let dead = DeadInstance::all(&self.owner.state, self.adoptable_for);
        found.retain(|found| self.is_orphan(found, &dead));
        let removed = self.remove_all(found).await?;
        let volumes = vec![self.state_filter()];
        let swept = self.owner.engine.remove_unused_volumes(volumes).await;
        swept.map_err(|error| error.into_backend(BackendError::Destroy))?;
        // Only now: what could not be removed is found again by its directory.
        dead.into_iter().for_each(DeadInstance::remove);
        Ok(removed)
    }

    async fn remove_outdated_images(&self) -> Result<usize, BackendError> {
        let removed = setup::discard_outdated(&self.owner.engine).await;
        removed.map_err(|error| error.into_backend(BackendError::Unavailable))
    }

    async fn shutdown(&self) -> Result<(), BackendError> {
        *self.open.write().await = false;
        let instance = &self.owner.instance;
        if instance.is_left() {
            instance.touch();
            return self.remove_unclaimed().await;
        }
        self.remove_instance(instance.id().as_str()).await?;
        // Not left to the last owner of the instance: a worker thread may be it, which the process
        // does not wait for.
        Instance::remove_directory(instance.directory());
        Ok(())
    }
}

/// A container that carries our labels.
#[derive(Debug, PartialEq, Eq)]
struct Found {
    name: String,
    instance: String,
}

impl Found {
    fn read(container: ContainerSummary) -> Option<Self> {
        let name = container.names?.into_iter().next()?;
        Some(Self {
            name: name.trim_start_matches('/').to_owned(),
            instance: container.labels?.remove(INSTANCE_LABEL)?,
        })
    }
}

fn available(image: &str, labels: &HashMap<String, String>) -> String {
    match labels.get(VERSION_LABEL) {
        Some(version) => format!("{image}, {version}"),
        None => image.to_owned(),
    }
}

pub(crate) fn missing_image(image: &str) -> String {
    format!("image {image} is missing: run `isol8 setup`")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_container_is_found_by_its_name_and_its_instance() {
        let summary = |name: &str, labels: &[(&str, &str)]| ContainerSummary {
            names: Some(vec![name.to_owned()]),
            labels: Some(
                labels
                    .iter()
                    .map(|(key, value)| ((*key).to_owned(), (*value).to_owned()))
                    .collect(),
            ),
            ..Default::default()
        };
        let found = Found::read(summary("/isol8-1", &[(INSTANCE_LABEL, "abc")])).unwrap();
        assert_eq!(found.name, "isol8-1");
        assert_eq!(found.instance, "abc");
        assert_eq!(Found::read(summary("/isol8-1", &[])), None);
        assert_eq!(Found::read(ContainerSummary::default()), None);
    }

    #[test]
    fn a_status_names_the_version_where_the_image_tells_it() {
        let labels = HashMap::from([(VERSION_LABEL.to_owned(), "Python 3.11.2".to_owned())]);
        assert_eq!(
            available("isol8:python", &labels),
            "isol8:python, Python 3.11.2"
        );
        assert_eq!(available("mine:1", &HashMap::new()), "mine:1");
    }
}
