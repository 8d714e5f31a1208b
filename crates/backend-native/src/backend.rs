//! The backend and its sandboxes, as the server sees them.

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
use crate::roots::Held;
use crate::roots::install::Installer;
use crate::spawner::client::{Spawner, SpawnerCommand};
use crate::spawner::message::{Action, NewSandbox, Outcome, Started};
use crate::spawner::process::CONTROL_SOCKET;

const NAME: &str = "native";

/// The settings of the backend.
#[derive(Clone, Debug)]
pub struct NativeConfig {
    /// The state directory, which holds all instances.
    pub state: PathBuf,
    /// How the spawner is started.
    pub spawner: SpawnerCommand,
    /// How interpreters are kept booted.
    pub prewarm: PrewarmConfig,
    /// Least size of `/dev/shm` where cgroups bound the memory: the most that a request may ask for.
    pub shm_bytes: u64,
}

/// Makes sandboxes from namespaces.
#[derive(Debug)]
pub struct NativeBackend {
    config: NativeConfig,
    instance: Arc<Instance>,
    spawner: Arc<Spawner>,
    identity: Identity,
    /// Directories whose files sandboxes share with the host and each other as they are.
    shared: Vec<PathBuf>,
    closed: AtomicBool,
}

impl NativeBackend {
    /// Starts the spawner.
    ///
    /// # Errors
    /// [`BackendError::Unavailable`] where this host cannot make sandboxes; it names the fix.
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

    /// Describes the interpreter that runs, for a person.
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
            let program = rootfs::interpreter(runtime);
            format!(
                "{program} is not in /usr of this host: install it there, or set `images.root` and run \
                 `isol8 setup --backend native`"
            )
        })
    }

    /// The root that a sandbox is made on, which stays as long as the answer is held; `None` for the host's own
    /// programs.
    fn base(&self, runtime: Runtime) -> Result<Option<Held>, BackendError> {
        let base = match &self.config.spawner.roots {
            Some(roots) => roots.hold(runtime).map(Some),
            None => self.host_interpreter(runtime).map(|_| None),
        };
        base.map_err(|reason| BackendError::RuntimeUnavailable {
            runtime,
            backend: NAME,
            reason,
        })
    }

    /// Size of `/dev/shm`: what the memory limit may be raised to, because what is in it counts towards that. Without
    /// cgroups there is no limit, so this size is the only bound.
    fn shm_bytes(&self, spec: &SandboxSpec) -> u64 {
        match self.identity {
            Identity::Root => self.config.shm_bytes.max(spec.limits.memory.bytes()),
            Identity::User => spec.limits.memory.bytes(),
        }
    }

    fn place(&self, id: &SandboxId, is_claimed: bool) -> Place {
        Place {
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

    /// A claimed sandbox of an earlier process; one that is not to be found goes with its claim.
    async fn find(&self, id: SandboxId) -> Result<Arc<dyn Sandbox>, String> {
        let place = self.place(&id, true);
        let control = self.connect(&id).await.map_err(|error| error.to_string())?;
        Ok(Arc::new(NativeSandbox {
            reader: self.reader(&id),
            control,
            place,
        }))
    }

    /// Removes the sandboxes of the instance that were not adopted: they were left if the spawner died too.
    async fn remove_others(&self, adopted: &[Adopted]) -> Result<(), BackendError> {
        let adopted: Vec<_> = adopted
            .iter()
            .filter_map(|one| Some(one.sandbox.as_ref().ok()?.id().clone()))
            .collect();
        let entries = std::fs::read_dir(self.instance.directory())
            .map_err(BackendError::io("instance directory cannot be read"))?;
        let names = entries.filter_map(|entry| entry.ok()?.file_name().into_string().ok());
        for id in names.filter_map(|name| SandboxId::parse(&name)) {
            if !adopted.contains(&id) {
                self.place(&id, false).remove().await?;
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
                reason: "it has none, custom images need the docker backend".to_owned(),
            });
        }
        // Until the sandbox has it mounted.
        let base = self.base(spec.runtime)?;
        let id = SandboxId::random();
        let place = self.place(&id, false);
        let action = Action::Create(NewSandbox {
            id: id.as_str().to_owned(),
            root: base.as_ref().map(|held| held.path.clone()),
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
            place,
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
            // The leftovers are root's.
            return match self.spawner.request(Action::Sweep).await? {
                Ok(Outcome::Swept { count }) => Ok(count),
                Ok(_) => Ok(0),
                Err(reason) => Err(BackendError::Destroy(reason)),
            };
        }
        let state = self.config.state.clone();
        let adoptable_for = self.config.spawner.adoptable_for;
        let enforced = self.identity == Identity::Root;
        // Waits for killed processes, so not on the runtime's own threads.
        tokio::task::spawn_blocking(move || sweep(&state, adoptable_for, enforced))
            .await
            .map_err(|error| BackendError::Destroy(format!("sweep failed: {error}")))?
    }

    async fn remove_outdated_images(&self) -> Result<usize, BackendError> {
        let Some(roots) = self.config.spawner.roots.clone() else {
            return Ok(0);
        };
        if self.config.spawner.launcher.is_some() {
            // Unused roots are root's, and the next setup removes them.
            return Ok(0);
        }
        let removal = move || {
            let installer = Installer::if_idle(&roots);
            installer.map_or(Ok(0), |installer| installer.remove_unused())
        };
        // Thousands of files, so not on the runtime's own threads.
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
        // Not left to the last owner of the instance: a worker thread may be it, which the process
        // does not wait for.
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
         sandboxes, and so that it cannot watch them, inotify is off",
        names.join(", ")
    )
}

/// Removes what dead instances left under `state`.
fn sweep(state: &Path, adoptable_for: Duration, enforced: bool) -> Result<usize, BackendError> {
    let mut swept = 0;
    let mut left = None;
    for dead in DeadInstance::all(state, adoptable_for) {
        // As an ordinary user there are no cgroups, and sandboxes end with their spawner.
        let removed = if enforced {
            cgroup::remove_instance(dead.id())
        } else {
            Ok(())
        };
        match removed {
            Ok(()) => {
                log::info!(instance = dead.id(); "removed what a dead instance left");
                dead.remove();
                swept += 1;
            }
            Err(error) => left = Some(format!("instance {}: {error}", dead.id())),
        }
    }
    match left {
        None => Ok(swept),
        Some(reason) => Err(BackendError::Destroy(reason)),
    }
}

/// A sandbox made by the spawner.
#[derive(Debug)]
struct NativeSandbox {
    control: Control,
    /// `None` where no limits, and so no cgroup, could be made.
    reader: Option<CgroupReader>,
    place: Place,
}

/// The parts of a sandbox that have to be removed, from before it is made until it is known to be gone.
#[derive(Debug)]
struct Place {
    id: SandboxId,
    instance: Arc<Instance>,
    spawner: Arc<Spawner>,
    is_claimed: AtomicBool,
    /// Or left to a later process.
    removed: AtomicBool,
}

impl Place {
    async fn remove(&self) -> Result<(), BackendError> {
        if self.removed.load(Ordering::Acquire) {
            return Ok(());
        }
        self.give_up_claim();
        let id = self.id.as_str().to_owned();
        self.spawner
            .request(Action::Remove { id })
            .await?
            .map_err(BackendError::Destroy)?;
        self.removed.store(true, Ordering::Release);
        Ok(())
    }
}

impl Place {
    /// Before the sandbox goes: a claim on one that is gone would be taken for a loss.
    fn give_up_claim(&self) {
        if self.is_claimed.swap(false, Ordering::AcqRel) {
            self.instance.claims().remove(&self.id);
        }
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        if !self.removed.load(Ordering::Acquire) {
            self.give_up_claim();
            let id = self.id.as_str().to_owned();
            self.spawner.remove_in_background(id);
        }
    }
}

#[async_trait]
impl Sandbox for NativeSandbox {
    fn id(&self) -> &SandboxId {
        &self.place.id
    }

    fn control(&self) -> &Control {
        &self.control
    }

    async fn set_limits(&self, limits: &Limits) -> Result<(), BackendError> {
        let action = Action::SetLimits {
            id: self.place.id.as_str().to_owned(),
            limits: limits.into(),
        };
        self.place
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
        // The spawner leaves the cgroup of a sandbox that ended by itself until it is told to remove it.
        self.reader.as_ref()?.oom_kills().ok()
    }

    async fn claim(&self, claim: &Claim) -> Result<(), BackendError> {
        // First, so that whatever becomes of the rest is undone.
        self.place.is_claimed.store(true, Ordering::Release);
        self.place.instance.claim(&self.place.id, claim).await
    }

    async fn touch(&self) {
        self.place.instance.touch_claim(&self.place.id).await;
    }

    fn leave(&self) {
        self.place.instance.leave();
        self.place.removed.store(true, Ordering::Release);
    }

    async fn destroy(&self) -> Result<(), BackendError> {
        self.place.remove().await
    }
}
