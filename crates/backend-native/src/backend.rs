//! The native backend and its sandboxes.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use isol8_api::Runtime;
use isol8_backend::adoption;
use isol8_backend::cgroup::CgroupReader;
use isol8_backend::instance::DeadInstance;
use isol8_backend::{
    Adopted, Backend, BackendError, Claim, Control, Instance, Limits, PrewarmConfig, RuntimeStatus,
    Sandbox, SandboxId, SandboxSpec, SandboxUsage,
};
use tokio::net::UnixStream;

use crate::cgroup;
use crate::identity::Identity;
use crate::rootfs;
use crate::roots::LockedRoot;
use crate::roots::install::Installer;
use crate::spawner::client::{Spawner, SpawnerCommand};
use crate::spawner::message::{Action, NewSandbox, Outcome, Started};
use crate::spawner::process::CONTROL_SOCKET;

const NAME: &str = "native";

/// Configuration of the backend.
#[derive(Clone, Debug)]
pub struct NativeConfig {
    /// The state directory, which contains all instances.
    pub state: PathBuf,
    /// Command that starts the spawner, and its settings.
    pub spawner: SpawnerCommand,
    /// Settings of the interpreters that guests keep booted.
    pub prewarm: PrewarmConfig,
    /// Minimum size of `/dev/shm` if cgroups bound the memory: the largest memory limit that a request may have.
    pub shm_bytes: u64,
}

/// A backend that makes sandboxes from namespaces.
#[derive(Debug)]
pub struct NativeBackend {
    config: NativeConfig,
    instance: Arc<Instance>,
    spawner: Arc<Spawner>,
    identity: Identity,
    /// Directories that sandboxes share with the host and each other without an overlay.
    shared: Vec<PathBuf>,
    closed: AtomicBool,
}

impl NativeBackend {
    /// Starts the spawner.
    ///
    /// # Errors
    /// [`BackendError::Unavailable`] if this host cannot make sandboxes; the text contains the fix.
    pub async fn start(
        config: NativeConfig,
        instance: Arc<Instance>,
    ) -> Result<Self, BackendError> {
        let spawner = Spawner::start(config.spawner.clone(), Arc::clone(&instance)).await?;
        let Started { identity, shared } = spawner.started().await?;
        Ok(Self {
            config,
            instance,
            spawner: Arc::new(spawner),
            identity,
            shared,
            closed: AtomicBool::new(false),
        })
    }

    /// Returns the interpreter of a runtime, for display.
    fn describe_runtime(&self, runtime: Runtime) -> Result<String, String> {
        match &self.config.spawner.roots {
            None => self
                .host_interpreter(runtime)
                .map(|path| path.display().to_string()),
            Some(roots) => roots.find(runtime).map(|root| {
                let link = roots.link(runtime);
                format!("{} in {}", root.version, link.display())
            }),
        }
    }

    fn host_interpreter(&self, runtime: Runtime) -> Result<PathBuf, String> {
        rootfs::find_interpreter(&self.config.spawner.host, runtime).ok_or_else(|| {
            let program = runtime.facts().executable;
            format!(
                "{program} is not in /usr of this host; install it there, or set `images.root` and run \
                 `isol8 setup --backend native`"
            )
        })
    }

    /// Returns the unpacked root for a sandbox, locked against removal; `None` for the host's programs.
    fn base(&self, runtime: Runtime) -> Result<Option<LockedRoot>, BackendError> {
        let base = match &self.config.spawner.roots {
            Some(roots) => roots.lock_root(runtime).map(Some),
            None => self.host_interpreter(runtime).map(|_| None),
        };
        base.map_err(|reason| BackendError::RuntimeUnavailable {
            runtime,
            backend: NAME,
            reason,
        })
    }

    /// Returns the size of `/dev/shm`: the largest value that the memory limit can be raised to, because the content
    /// of `/dev/shm` counts towards that limit. Without cgroups there is no memory limit, so this size is the only
    /// bound.
    fn shm_bytes(&self, spec: &SandboxSpec) -> u64 {
        match self.identity {
            Identity::Root => self.config.shm_bytes.max(spec.limits.memory.bytes()),
            Identity::User => spec.limits.memory.bytes(),
        }
    }

    fn resources(&self, id: &SandboxId, is_claimed: bool) -> SandboxResources {
        SandboxResources {
            id: id.clone(),
            instance: Arc::clone(&self.instance),
            spawner: Arc::clone(&self.spawner),
            is_claimed: AtomicBool::new(is_claimed),
            removed: AtomicBool::new(false),
        }
    }

    async fn connect(&self, id: &SandboxId) -> Result<Control, BackendError> {
        let directory = self.instance.directory().join(id.as_str());
        let stream = UnixStream::connect(directory.join(CONTROL_SOCKET))
            .await
            .map_err(|error| BackendError::Create(format!("guest cannot be reached: {error}")))?;
        Ok(Control::open(stream).await?)
    }

    /// Connects to a claimed sandbox of an earlier process. If that fails, removes the sandbox and its claim.
    async fn find(&self, id: SandboxId) -> Result<Arc<dyn Sandbox>, String> {
        let resources = self.resources(&id, true);
        let control = self.connect(&id).await.map_err(|error| error.to_string())?;
        Ok(Arc::new(NativeSandbox {
            reader: self.reader(&id),
            control,
            resources,
        }))
    }

    /// Removes the sandboxes of the instance that were not adopted. Such sandboxes exist if the spawner of the earlier
    /// process died too.
    async fn remove_others(&self, adopted: &[Adopted]) -> Result<(), BackendError> {
        let adopted: Vec<_> = adopted
            .iter()
            .filter_map(|adopted| Some(adopted.sandbox.as_ref().ok()?.id().clone()))
            .collect();
        let entries = std::fs::read_dir(self.instance.directory())
            .map_err(BackendError::io("instance directory cannot be read"))?;
        let names = entries.filter_map(|entry| entry.ok()?.file_name().into_string().ok());
        for id in names.filter_map(|name| SandboxId::parse(&name)) {
            if !adopted.contains(&id) {
                self.resources(&id, false).remove().await?;
            }
        }
        Ok(())
    }

    fn reader(&self, id: &SandboxId) -> Option<CgroupReader> {
        let path = cgroup::path_of(self.instance.id().as_str(), id.as_str());
        (self.identity == Identity::Root)
            .then(|| CgroupReader::new(cgroup::CGROUP_ROOT.as_ref(), &path))
    }
}

#[async_trait]
impl Backend for NativeBackend {
    fn name(&self) -> &'static str {
        NAME
    }

    async fn runtime_status(&self, runtime: Runtime) -> RuntimeStatus {
        match self.describe_runtime(runtime) {
            Ok(text) => RuntimeStatus::Available(text),
            Err(reason) => RuntimeStatus::Unavailable(reason),
        }
    }

    fn shortcomings(&self) -> Vec<String> {
        let mut shortcomings = self.identity.shortcomings();
        if !self.shared.is_empty() {
            shortcomings.push(describe_sharing(&self.shared));
        }
        shortcomings
    }

    fn enforces_limits(&self) -> bool {
        self.identity == Identity::Root
    }

    async fn create(&self, spec: &SandboxSpec) -> Result<Arc<dyn Sandbox>, BackendError> {
        if self.closed.load(Ordering::Acquire) {
            return Err(BackendError::Unavailable("backend is shut down".to_owned()));
        }
        if let Some(image) = &spec.image {
            return Err(BackendError::ImageUnavailable {
                image: image.clone(),
                backend: NAME,
                reason: "custom images need the docker backend".to_owned(),
            });
        }
        // The lock lasts until the sandbox has mounted the root.
        let base = self.base(spec.runtime)?;
        let id = SandboxId::random();
        let resources = self.resources(&id, false);
        let action = Action::Create(NewSandbox {
            id: id.as_str().to_owned(),
            root: base.as_ref().map(|root| root.path.clone()),
            limits: (&spec.limits).into(),
            sandbox_bytes: spec.sandbox_size.bytes(),
            tmp_bytes: spec.tmp_size.bytes(),
            shm_bytes: self.shm_bytes(spec),
            host_network: spec.host_network,
        });
        self.spawner
            .request(action)
            .await?
            .map_err(BackendError::Create)?;

        let control = self.connect(&id).await?;
        drop(base);
        self.config.prewarm.prepare(&control, spec);
        Ok(Arc::new(NativeSandbox {
            reader: self.reader(&id),
            control,
            resources,
        }))
    }

    async fn adopt(&self) -> Result<Vec<Adopted>, BackendError> {
        let claims = self.instance.claims();
        let adopted = adoption::adopt(claims, |id| self.find(id)).await?;
        self.remove_others(&adopted).await?;
        Ok(adopted)
    }

    async fn sweep(&self) -> Result<usize, BackendError> {
        self.instance.touch();
        if self.config.spawner.launcher.is_some() {
            // The remains of dead instances belong to root, so the spawner removes them.
            return match self.spawner.request(Action::Sweep).await? {
                Ok(Outcome::Swept { count }) => Ok(count),
                Ok(_) => Ok(0),
                Err(reason) => Err(BackendError::Destroy(reason)),
            };
        }
        let state = self.config.state.clone();
        let adoptable_for = self.config.spawner.adoptable_for;
        let enforced = self.identity == Identity::Root;
        // The sweep waits for killed processes, which would block a thread of the async runtime.
        tokio::task::spawn_blocking(move || sweep(&state, adoptable_for, enforced))
            .await
            .map_err(|error| BackendError::Destroy(format!("sweep failed: {error}")))?
    }

    async fn remove_outdated_images(&self) -> Result<usize, BackendError> {
        let Some(roots) = self.config.spawner.roots.clone() else {
            return Ok(0);
        };
        if self.config.spawner.launcher.is_some() {
            // Unused roots belong to root. The next setup removes them.
            return Ok(0);
        }
        let removal = move || {
            let installer = Installer::try_open(&roots);
            installer.map_or(Ok(0), |installer| installer.remove_unused())
        };
        // Removing thousands of files would block a thread of the async runtime.
        tokio::task::spawn_blocking(removal)
            .await
            .map_err(io::Error::other)
            .flatten()
            .map_err(BackendError::io("an outdated root cannot be removed"))
    }

    async fn shutdown(&self) -> Result<(), BackendError> {
        self.closed.store(true, Ordering::Release);
        if self.instance.is_left() {
            self.instance.touch();
            return self.spawner.leave().await;
        }
        self.spawner.stop().await?;
        // Dropping the last reference to the instance would remove the directory too, but possibly on a worker thread,
        // which the process does not wait for.
        Instance::remove_directory(self.instance.directory());
        Ok(())
    }
}

fn describe_sharing(directories: &[PathBuf]) -> String {
    let names: Vec<_> = directories
        .iter()
        .map(|directory| directory.display().to_string())
        .collect();
    format!(
        "this kernel refuses overlay file systems of {}: user code can lock these files for the host and for other \
         sandboxes; inotify is off, so that user code cannot watch these files",
        names.join(", ")
    )
}

/// Removes the remains of dead instances under `state`. Returns the number of removed instances.
fn sweep(state: &Path, adoptable_for: Duration, enforced: bool) -> Result<usize, BackendError> {
    let mut swept = 0;
    let mut failed = None;
    for dead in DeadInstance::all(state, adoptable_for) {
        // An ordinary user has no cgroups, and the sandboxes end with their spawner.
        let removed = if enforced {
            cgroup::remove_instance(dead.id())
        } else {
            Ok(())
        };
        match removed {
            Ok(()) => {
                log::info!(instance = dead.id(); "removed the remains of a dead instance");
                dead.remove();
                swept += 1;
            }
            Err(error) => failed = Some(format!("instance {}: {error}", dead.id())),
        }
    }
    match failed {
        None => Ok(swept),
        Some(reason) => Err(BackendError::Destroy(reason)),
    }
}

/// A sandbox made by the spawner.
#[derive(Debug)]
struct NativeSandbox {
    control: Control,
    /// `None` if limits are not enforced, so that the sandbox has no cgroup.
    reader: Option<CgroupReader>,
    resources: SandboxResources,
}

/// The resources of a sandbox, which are removed on drop. This value exists from before the sandbox is made until
/// the sandbox is known to be gone.
#[derive(Debug)]
struct SandboxResources {
    id: SandboxId,
    instance: Arc<Instance>,
    spawner: Arc<Spawner>,
    is_claimed: AtomicBool,
    /// Whether the sandbox was removed, or left to a later process.
    removed: AtomicBool,
}

impl SandboxResources {
    async fn remove(&self) -> Result<(), BackendError> {
        if self.removed.load(Ordering::Acquire) {
            return Ok(());
        }
        self.remove_claim();
        let id = self.id.as_str().to_owned();
        self.spawner
            .request(Action::Remove { id })
            .await?
            .map_err(BackendError::Destroy)?;
        self.removed.store(true, Ordering::Release);
        Ok(())
    }

    /// Removes the claim. Must be called before the sandbox is removed: a claim without a sandbox would be reported as
    /// a lost session.
    fn remove_claim(&self) {
        if self.is_claimed.swap(false, Ordering::AcqRel) {
            self.instance.claims().remove(&self.id);
        }
    }
}

impl Drop for SandboxResources {
    fn drop(&mut self) {
        if !self.removed.load(Ordering::Acquire) {
            self.remove_claim();
            let id = self.id.as_str().to_owned();
            self.spawner.remove_in_background(id);
        }
    }
}

#[async_trait]
impl Sandbox for NativeSandbox {
    fn id(&self) -> &SandboxId {
        &self.resources.id
    }

    fn control(&self) -> &Control {
        &self.control
    }

    async fn set_limits(&self, limits: &Limits) -> Result<(), BackendError> {
        let action = Action::SetLimits {
            id: self.resources.id.as_str().to_owned(),
            limits: limits.into(),
        };
        self.resources
            .spawner
            .request(action)
            .await?
            .map_err(BackendError::Limits)?;
        Ok(())
    }

    async fn usage(&self) -> Result<SandboxUsage, BackendError> {
        self.reader
            .as_ref()
            .ok_or_else(|| {
                BackendError::Unavailable("usage needs cgroups, which need root".into())
            })?
            .usage()
    }

    async fn has_memory_for(&self, bytes: u64) -> bool {
        let reader = self.reader.as_ref();
        reader.is_none_or(|reader| reader.has_memory_for(bytes))
    }

    async fn final_oom_kills(&self) -> Option<u64> {
        // The spawner keeps the cgroup of a sandbox that ended by itself until the server requests its removal.
        self.reader.as_ref()?.oom_kills().ok()
    }

    async fn claim(&self, claim: &Claim) -> Result<(), BackendError> {
        // Set first, so that a claim that is written only in part is removed too.
        self.resources.is_claimed.store(true, Ordering::Release);
        self.resources
            .instance
            .claim(&self.resources.id, claim)
            .await
    }

    async fn touch(&self) {
        self.resources
            .instance
            .touch_claim(&self.resources.id)
            .await;
    }

    fn leave(&self) {
        self.resources.instance.leave();
        self.resources.removed.store(true, Ordering::Release);
    }

    async fn destroy(&self) -> Result<(), BackendError> {
        self.resources.remove().await
    }
}
