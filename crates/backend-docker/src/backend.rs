//! The backend's calls to an engine: making sandboxes, sweeping, shutting down.

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
use crate::sandbox::{self, BackendContext};
use crate::setup::{self, VERSION_LABEL};

/// Name of the backend.
pub(crate) const NAME: &str = "docker";

/// Most removals at the same time. The engine does most of a removal under a lock, so further removals would
/// only wait there, and delay other callers of the engine.
const MAX_CONCURRENT_REMOVALS: usize = 4;

/// A backend that makes sandboxes with a Docker engine.
#[derive(Debug)]
pub struct DockerBackend {
    context: Arc<BackendContext>,
    images: BTreeMap<Runtime, String>,
    /// Whether sandboxes may be made. Each create holds a read lock, so no create is in progress while a shutdown
    /// holds the write lock.
    open: Arc<RwLock<bool>>,
    adoptable_for: Duration,
}

impl DockerBackend {
    /// Connects to an engine, which must answer. Sandboxes belong to `instance`.
    ///
    /// # Errors
    /// [`BackendError::Unavailable`] with the fix if the engine does not answer; [`BackendError::Io`] if the state
    /// directory cannot be read.
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
            context: Arc::new(BackendContext::new(engine, instance, state, &config)),
            images: config.images,
            open: Arc::new(RwLock::new(true)),
            adoptable_for: config.adoptable_for,
        })
    }

    /// Removes every container of a process that has ended. Returns the number of removed containers. The
    /// caller, who holds the [`DeadInstance`], removes the instance's directory: other backends
    /// may have to remove resources first.
    ///
    /// # Errors
    /// [`BackendError::Destroy`] for containers that cannot be removed; all others are removed.
    pub async fn remove_instance(&self, instance_id: &str) -> Result<usize, BackendError> {
        let labels = vec![self.state_filter(), label(INSTANCE_LABEL, instance_id)];
        let found = self.list(labels).await?;
        self.remove_all(found).await
    }

    async fn remove_unclaimed(&self) -> Result<(), BackendError> {
        let instance = &self.context.instance;
        let labels = vec![
            self.state_filter(),
            label(INSTANCE_LABEL, instance.id().as_str()),
        ];
        let mut found = self.list(labels).await?;
        let claims = instance.claims();
        found.retain(|found| !container::id_of_name(&found.name).is_some_and(|id| claims.has(id)));
        self.remove_all(found).await.map(drop)
    }

    fn no_image_reason(&self) -> String {
        let offered: Vec<&str> = self.images.keys().map(|runtime| runtime.name()).collect();
        let offered = offered.join(", ");
        format!("no image is configured for this runtime, only for: {offered}")
    }

    fn state_filter(&self) -> String {
        label(STATE_LABEL, &self.context.state.display().to_string())
    }

    async fn list(&self, labels: Vec<String>) -> Result<Vec<FoundContainer>, BackendError> {
        let containers = self.context.engine.containers_with_labels(labels).await;
        let containers =
            containers.map_err(|error| error.into_backend(BackendError::Unavailable))?;
        Ok(containers
            .into_iter()
            .filter_map(FoundContainer::parse)
            .collect())
    }

    /// Removes containers, a few at a time, and continues after failures.
    async fn remove_all(&self, found: Vec<FoundContainer>) -> Result<usize, BackendError> {
        let removals = found.into_iter().map(|found| self.remove(found));
        let results: Vec<Result<(), String>> = stream::iter(removals)
            .buffer_unordered(MAX_CONCURRENT_REMOVALS)
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

    async fn remove(&self, found: FoundContainer) -> Result<(), String> {
        let own = found.instance == self.context.instance.id().as_str();
        let removed = match container::id_of_name(&found.name) {
            Some(id) if own => self.context.remove(id).await,
            _ => self.context.engine.remove(&found.name).await,
        };
        removed.map_err(|error| format!("{}: {error}", found.name))
    }

    /// Returns whether no living process will remove this container.
    fn is_orphan(&self, found: &FoundContainer, dead: &[DeadInstance]) -> bool {
        if found.instance == self.context.instance.id().as_str() {
            let id = container::id_of_name(&found.name);
            return !self
                .context
                .live()
                .iter()
                .any(|live| Some(live.as_str()) == id);
        }
        let is_dead = dead.iter().any(|dead| dead.id() == found.instance);
        // A process removes the directory of its instance when it ends.
        is_dead || !self.context.state.join(&found.instance).exists()
    }
}

#[async_trait]
impl Backend for DockerBackend {
    fn name(&self) -> &'static str {
        NAME
    }

    async fn runtime_status(&self, runtime: Runtime) -> RuntimeStatus {
        let Some(image) = self.images.get(&runtime) else {
            return RuntimeStatus::Unavailable(self.no_image_reason());
        };
        let engine = &self.context.engine;
        let inspected = engine.docker.inspect_image(image);
        match engine.call(CALL_DEADLINE, inspected).await {
            Ok(inspected) => {
                if let Err(reason) = image::check_volumes(&inspected) {
                    return RuntimeStatus::Unavailable(format!("image {image}: {reason}"));
                }
                let labels = inspected.config.and_then(|config| config.labels);
                RuntimeStatus::Available(describe_image(image, &labels.unwrap_or_default()))
            }
            Err(error) if error.is_not_found() => RuntimeStatus::Unavailable(missing_image(image)),
            Err(EngineError::Refused { message, .. }) => RuntimeStatus::Unavailable(message),
            Err(EngineError::NoAnswer(text)) => RuntimeStatus::Unavailable(text),
        }
    }

    async fn create(&self, spec: &SandboxSpec) -> Result<Arc<dyn Sandbox>, BackendError> {
        let Some(image) = self.images.get(&spec.runtime).cloned() else {
            return Err(BackendError::RuntimeUnavailable {
                runtime: spec.runtime,
                backend: NAME,
                reason: self.no_image_reason(),
            });
        };
        let (context, open, spec) = (
            Arc::clone(&self.context),
            Arc::clone(&self.open),
            spec.clone(),
        );
        // A separate task: if the caller drops the future, no call to the engine is cancelled with
        // an unknown outcome, and the sandbox is removed when the task's result is dropped.
        let making = tokio::spawn(async move {
            let open = open.read().await;
            if !*open {
                return Err(BackendError::Unavailable(
                    "isol8 is shutting down".to_owned(),
                ));
            }
            sandbox::make(&context, &spec, &image).await
        });
        let made = making.await;
        made.unwrap_or_else(|error| Err(BackendError::Create(format!("internal error: {error}"))))
    }

    async fn adopt(&self) -> Result<Vec<Adopted>, BackendError> {
        let claims = self.context.instance.claims();
        adoption::adopt(claims, |id| sandbox::find(&self.context, id)).await
    }

    async fn sweep(&self) -> Result<usize, BackendError> {
        self.context.instance.touch();
        let mut found = self.list(vec![self.state_filter()]).await?;
        // The locks are held until the end, so that no other process sweeps the same instances.
        let dead = DeadInstance::all(&self.context.state, self.adoptable_for);
        found.retain(|found| self.is_orphan(found, &dead));
        let removed = self.remove_all(found).await?;
        let volumes = vec![self.state_filter()];
        let swept = self.context.engine.remove_unused_volumes(volumes).await;
        swept.map_err(|error| error.into_backend(BackendError::Destroy))?;
        // The directories are removed last: a later sweep finds the remains of an instance by its directory.
        dead.into_iter().for_each(DeadInstance::remove);
        Ok(removed)
    }

    async fn remove_outdated_images(&self) -> Result<usize, BackendError> {
        let removed = setup::remove_outdated(&self.context.engine).await;
        removed.map_err(|error| error.into_backend(BackendError::Unavailable))
    }

    async fn shutdown(&self) -> Result<(), BackendError> {
        *self.open.write().await = false;
        let instance = &self.context.instance;
        if instance.is_left() {
            instance.touch();
            return self.remove_unclaimed().await;
        }
        self.remove_instance(instance.id().as_str()).await?;
        // Dropping the last reference to the instance would remove the directory too, but possibly on a worker thread,
        // which the process does not wait for.
        Instance::remove_directory(instance.directory());
        Ok(())
    }
}

/// A container with isol8's labels.
#[derive(Debug, PartialEq, Eq)]
struct FoundContainer {
    name: String,
    instance: String,
}

impl FoundContainer {
    fn parse(container: ContainerSummary) -> Option<Self> {
        let name = container.names?.into_iter().next()?;
        Some(Self {
            name: name.trim_start_matches('/').to_owned(),
            instance: container.labels?.remove(INSTANCE_LABEL)?,
        })
    }
}

fn describe_image(image: &str, labels: &HashMap<String, String>) -> String {
    match labels.get(VERSION_LABEL) {
        Some(version) => format!("{image}, {version}"),
        None => image.to_owned(),
    }
}

pub(crate) fn missing_image(image: &str) -> String {
    format!("image {image} is missing; run `isol8 setup`")
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
        let found = FoundContainer::parse(summary("/isol8-1", &[(INSTANCE_LABEL, "abc")])).unwrap();
        assert_eq!(found.name, "isol8-1");
        assert_eq!(found.instance, "abc");
        assert_eq!(FoundContainer::parse(summary("/isol8-1", &[])), None);
        assert_eq!(FoundContainer::parse(ContainerSummary::default()), None);
    }

    #[test]
    fn a_status_names_the_version_if_the_image_has_a_version_label() {
        let labels = HashMap::from([(VERSION_LABEL.to_owned(), "Python 3.11.2".to_owned())]);
        assert_eq!(
            describe_image("isol8:python", &labels),
            "isol8:python, Python 3.11.2"
        );
        assert_eq!(describe_image("mine:1", &HashMap::new()), "mine:1");
    }
}
