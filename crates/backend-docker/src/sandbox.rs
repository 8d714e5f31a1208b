//! The life of a container: made, connected to, used, and removed in every case.

use std::collections::HashSet;
use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use bollard::query_parameters::CreateContainerOptionsBuilder;
use futures::TryFutureExt as _;
use isol8_backend::cgroup::CgroupReader;
use isol8_backend::instance;
use isol8_backend::{
    BackendError, Certificates, Claim, Control, Instance, Limits, PrewarmConfig, Sandbox,
    SandboxId, SandboxSpec, SandboxUsage,
};
use tokio::net::UnixStream;
use tokio::runtime::Handle;
use tokio::sync::OnceCell;

use crate::DockerConfig;
use crate::container::{self, Placement};
use crate::directory::Directory;
use crate::engine::{CALL_DEADLINE, Engine, EngineError};
use crate::handover::Handover;
use crate::ids::Ids;
use crate::image;

/// From the request to start the container to a guest that can be connected to. The guest itself
/// needs a millisecond; the engine's queue needs the rest.
const GUEST_DEADLINE: Duration = CALL_DEADLINE;

/// Pause between two attempts to connect. The guest listens as soon as it has its socket, so one is hardly ever
/// needed.
const CONNECT_PAUSE: Duration = Duration::from_millis(1);

/// The values that all containers of one backend share.
#[derive(Debug)]
pub(crate) struct Owner {
    pub(crate) engine: Engine,
    pub(crate) instance: Arc<Instance>,
    /// The base state directory, without links: the same in every process that uses it.
    pub(crate) state: PathBuf,
    prewarm: PrewarmConfig,
    pub(crate) certificates: Option<Certificates>,
    pub(crate) shm_bytes: u64,
    ids: Ids,
    live: Mutex<HashSet<SandboxId>>,
}

impl Owner {
    pub(crate) fn new(
        engine: Engine,
        instance: Arc<Instance>,
        state: PathBuf,
        config: &DockerConfig,
    ) -> Self {
        Self {
            ids: Ids::of_engine(engine.socket()),
            engine,
            instance,
            state,
            prewarm: config.prewarm.clone(),
            certificates: config.certificates.clone(),
            shm_bytes: config.shm_bytes,
            live: Mutex::default(),
        }
    }

    /// Sandboxes that are in use. Every other container with this instance's label was to be removed and was not.
    /// Nothing is awaited under the lock, so a blocking lock is right.
    pub(crate) fn live(&self) -> MutexGuard<'_, HashSet<SandboxId>> {
        // Every change under the lock is a single operation: a panic cannot leave it half done.
        self.live.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Removes a container of this instance, and the sandbox's directory on the host.
    pub(crate) async fn remove(&self, id: &str) -> Result<(), EngineError> {
        self.engine
            .remove(&format!("{}{id}", container::NAME_PREFIX))
            .await?;
        // Small files only, so this is not worth a thread of its own.
        self.directory(id).remove();
        Ok(())
    }

    fn directory(&self, id: &str) -> Directory {
        Directory::of(self.instance.directory(), id)
    }
}

/// Makes a container, and waits until its guest answers. `own` is the image of the runtime.
pub(crate) async fn make(
    owner: &Arc<Owner>,
    spec: &SandboxSpec,
    own: &str,
) -> Result<Arc<dyn Sandbox>, BackendError> {
    let (container, user) = Container::reserve(owner)?;
    // Both to their end: a directory that is still being made could not be removed.
    let (handover, image) = tokio::join!(
        container.prepare(user),
        image::choose(&owner.engine, spec, own)
    );
    let (handover, image) = (handover?, image?);
    container.create(spec, &image, user).await?;
    let started = container.start().map_err(engine_to_create);
    let connected = container.connect(handover);
    let ((), stream) = tokio::try_join!(started, connected)?;

    let cgroup = guest_cgroup(&stream);
    bound_sockets(&container.id, &cgroup, &spec.limits);
    let control = Control::open(stream)
        .await
        .map_err(|error| BackendError::Create(error.to_string()))?;
    owner.prewarm.prepare(&control, spec);
    Ok(Arc::new(DockerSandbox {
        container,
        control,
        cgroup,
    }))
}

/// A claimed container of an earlier process; one whose guest cannot be connected to goes with its claim.
pub(crate) async fn find(owner: &Arc<Owner>, id: SandboxId) -> Result<Arc<dyn Sandbox>, String> {
    let container = Container::found(owner, id);
    let stream = connect_once(container.directory().path()).await;
    let stream = stream.map_err(|error| format!("guest cannot be reached: {error}"))?;
    let cgroup = guest_cgroup(&stream);
    let control = Control::open(stream).await;
    Ok(Arc::new(DockerSandbox {
        container,
        control: control.map_err(|error| error.to_string())?,
        cgroup,
    }))
}

/// Found by the process that listens on the socket, which the kernel recorded: it saves asking the
/// engine for the container's process.
fn guest_cgroup(stream: &UnixStream) -> Result<CgroupReader, String> {
    let credentials = stream.peer_cred().map_err(|error| error.to_string())?;
    let pid = credentials.pid().unwrap_or_default();
    CgroupReader::of_pid(pid).map_err(|error| error.to_string())
}

/// Bounds what the sandbox's sockets hold, where that does not count towards its memory limit. Engines pass
/// their own setting for it to runtimes that ignore it, so it is written where the container's cgroup is.
fn bound_sockets(id: &SandboxId, cgroup: &Result<CgroupReader, String>, limits: &Limits) {
    // A failure is reported when the usage is read.
    if let Ok(cgroup) = cgroup
        && let Err(error) = cgroup.bound_sockets(limits.memory.bytes())
    {
        log::debug!(sandbox:% = id, error:%; "socket buffers cannot be bounded");
    }
}

/// A container that is removed when this value goes, at whatever point of its making.
#[derive(Debug)]
struct Container {
    owner: Arc<Owner>,
    id: SandboxId,
    /// The runtime that removes the container in the background. If the runtime is gone by then, a later sweep finds
    /// the container.
    runtime: Handle,
    is_claimed: AtomicBool,
    /// To a later process.
    is_left: AtomicBool,
    removed: OnceCell<()>,
}

impl Container {
    /// Chooses a name, with an id for user code that no other sandbox has. From here on everything is undone
    /// when the value is dropped.
    fn reserve(owner: &Arc<Owner>) -> Result<(Self, u32), BackendError> {
        let mut live = owner.live();
        let (id, user) = owner.ids.name(live.iter()).ok_or_else(|| {
            let count = live.len();
            BackendError::Create(format!(
                "no user id is left beside those of {count} sandboxes"
            ))
        })?;
        // Under the same lock: another sandbox that is being made must not get the same.
        live.insert(id.clone());
        drop(live);
        Ok((Self::owned(owner, id, false), user))
    }

    /// Makes the sandbox's directory, and the socket that its guest will listen on.
    async fn prepare(&self, user: u32) -> Result<Handover, BackendError> {
        let directory = self.directory();
        let error = BackendError::io(format!(
            "sandbox directory {} cannot be made",
            directory.path().display()
        ));
        let (made, guest) = (directory.clone(), self.owner.instance.guest());
        let certificates = self.owner.certificates.clone();
        let making =
            tokio::task::spawn_blocking(move || made.make(&guest, user, certificates.as_ref()));
        let made = making.await.unwrap_or_else(|panic| Err(panic.into()));
        made.and_then(|()| Handover::prepare(&directory))
            .map_err(error)
    }

    /// A container that exists already, and is claimed.
    fn found(owner: &Arc<Owner>, id: SandboxId) -> Self {
        Self::owned(owner, id, true)
    }

    fn owned(owner: &Arc<Owner>, id: SandboxId, is_claimed: bool) -> Self {
        owner.live().insert(id.clone());
        Self {
            owner: Arc::clone(owner),
            id,
            runtime: Handle::current(),
            is_claimed: AtomicBool::new(is_claimed),
            is_left: AtomicBool::new(false),
            removed: OnceCell::new(),
        }
    }

    /// Before the container goes: a claim on one that is gone would be taken for a loss.
    fn give_up_claim(&self) {
        if self.is_claimed.swap(false, Ordering::AcqRel) {
            self.owner.instance.claims().remove(&self.id);
        }
    }

    fn directory(&self) -> Directory {
        self.owner.directory(self.id.as_str())
    }

    async fn create(&self, spec: &SandboxSpec, image: &str, user: u32) -> Result<(), BackendError> {
        let Owner {
            engine,
            instance,
            state,
            ..
        } = &*self.owner;
        let placement = Placement {
            image,
            directory: &self.directory(),
            user,
            state,
            instance: instance.id(),
            has_certificates: self.owner.certificates.is_some(),
            shm_bytes: self.owner.shm_bytes,
        };
        let options = CreateContainerOptionsBuilder::new()
            .name(&container::name(&self.id))
            .build();
        let body = container::create_body(spec, &placement);
        let created = engine.docker.create_container(Some(options), body);
        let created = engine.call(CALL_DEADLINE, created).await;
        let answer = created.map_err(engine_to_create)?;
        log::debug!(sandbox:% = self.id, container:% = answer.id; "container created");
        Ok(())
    }

    async fn start(&self) -> Result<(), EngineError> {
        let engine = &self.owner.engine;
        let name = container::name(&self.id);
        let started = engine.docker.start_container(&name, None);
        engine.call(CALL_DEADLINE, started).await
    }

    /// Gives the guest its socket, and connects as soon as it listens.
    async fn connect(&self, handover: Handover) -> Result<UnixStream, BackendError> {
        let directory = self.directory();
        let connecting = async {
            handover.complete().await?;
            connect(directory.path()).await
        };
        let connecting = connecting.map_err(|error: io::Error| error.to_string());
        let reason = match tokio::time::timeout(GUEST_DEADLINE, connecting).await {
            Ok(Ok(stream)) => return Ok(stream),
            Ok(Err(reason)) => reason,
            Err(_) => format!("not there within {} s", GUEST_DEADLINE.as_secs()),
        };
        let state = self.state().await;
        let text = format!("guest cannot be connected to: {reason}; its container {state}");
        Err(BackendError::Create(text))
    }

    /// The container's state according to the engine, for a person who looks for the reason of a failure.
    async fn state(&self) -> String {
        let engine = &self.owner.engine;
        let name = container::name(&self.id);
        let inspected = engine.docker.inspect_container(&name, None);
        match engine.call(CALL_DEADLINE, inspected).await {
            Ok(container) => {
                let state = container.state.unwrap_or_default();
                let status = state.status.map(|status| status.to_string());
                format!(
                    "is {}, exit code {}",
                    status.unwrap_or_default(),
                    state.exit_code.unwrap_or_default()
                )
            }
            Err(error) => format!("cannot be inspected: {error}"),
        }
    }

    /// Whether the engine was told that the kernel ended a process of the container for want of memory.
    async fn was_oom_killed(&self) -> Option<bool> {
        let engine = &self.owner.engine;
        let name = container::name(&self.id);
        let inspected = engine.docker.inspect_container(&name, None);
        let container = engine.call(CALL_DEADLINE, inspected).await.ok()?;
        container.state?.oom_killed
    }

    async fn set_limits(&self, limits: &Limits) -> Result<(), EngineError> {
        let engine = &self.owner.engine;
        let name = container::name(&self.id);
        let update = container::update_body(limits);
        let updated = engine.docker.update_container(&name, update);
        engine.call(CALL_DEADLINE, updated).await
    }

    /// Callers that come while a removal is under way wait for it; a failed one can be repeated.
    async fn remove(&self) -> Result<(), BackendError> {
        let removal = || async {
            // No longer live even where this fails: that is what the next sweep goes by.
            self.owner.live().remove(&self.id);
            self.give_up_claim();
            let removed = self.owner.remove(self.id.as_str()).await;
            removed.map_err(|error| BackendError::Destroy(error.to_string()))
        };
        self.removed.get_or_try_init(removal).await.copied()
    }
}

impl Drop for Container {
    fn drop(&mut self) {
        if self.removed.initialized() || self.is_left.load(Ordering::Acquire) {
            return;
        }
        self.give_up_claim();
        self.owner.live().remove(&self.id);
        let owner = Arc::clone(&self.owner);
        let id = self.id.clone();
        self.runtime.spawn(async move {
            if let Err(error) = owner.remove(id.as_str()).await {
                log::warn!(sandbox:% = id, error:%; "sandbox could not be removed, the next sweep tries again");
            }
        });
    }
}

/// Tries until the guest listens.
async fn connect(directory: &Path) -> io::Result<UnixStream> {
    let directory = File::open(directory)?;
    let path = instance::socket_in(&directory, container::SOCKET);
    loop {
        match UnixStream::connect(&path).await {
            Err(error) if is_not_yet(&error) => tokio::time::sleep(CONNECT_PAUSE).await,
            answer => return answer,
        }
    }
}

/// To a guest that has listened for long.
async fn connect_once(directory: &Path) -> io::Result<UnixStream> {
    let directory = File::open(directory)?;
    UnixStream::connect(instance::socket_in(&directory, container::SOCKET)).await
}

/// Not bound, or bound and not listening.
fn is_not_yet(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused
    )
}

fn engine_to_create(error: EngineError) -> BackendError {
    error.into_backend(BackendError::Create)
}

/// A container whose guest has answered.
#[derive(Debug)]
struct DockerSandbox {
    container: Container,
    control: Control,
    /// The reader of resource usage, or the reason why it is not available.
    cgroup: Result<CgroupReader, String>,
}

#[async_trait]
impl Sandbox for DockerSandbox {
    fn id(&self) -> &SandboxId {
        &self.container.id
    }

    fn control(&self) -> &Control {
        &self.control
    }

    async fn set_limits(&self, limits: &Limits) -> Result<(), BackendError> {
        let changed = self.container.set_limits(limits).await;
        changed.map_err(|error| BackendError::Limits(error.to_string()))?;
        bound_sockets(&self.container.id, &self.cgroup, limits);
        Ok(())
    }

    async fn usage(&self) -> Result<SandboxUsage, BackendError> {
        match &self.cgroup {
            Ok(cgroup) => cgroup.usage(),
            Err(reason) => Err(BackendError::Unavailable(reason.clone())),
        }
    }

    async fn has_memory_for(&self, bytes: u64) -> bool {
        let reader = self.cgroup.as_ref().ok();
        reader.is_none_or(|reader| reader.has_memory_for(bytes))
    }

    async fn final_oom_kills(&self) -> Option<u64> {
        // The engine removes the cgroup a moment after the last process has ended.
        if let Ok(cgroup) = &self.cgroup
            && let Ok(kills) = cgroup.oom_kills()
        {
            return Some(kills);
        }
        let killed = self.container.was_oom_killed().await?;
        // The engine keeps no count, so the largest number stands for one more than before.
        Some(if killed { u64::MAX } else { 0 })
    }

    async fn claim(&self, claim: &Claim) -> Result<(), BackendError> {
        let Container {
            owner,
            id,
            is_claimed,
            ..
        } = &self.container;
        // First, so that whatever becomes of the rest is undone.
        is_claimed.store(true, Ordering::Release);
        owner.instance.claim(id, claim).await
    }

    async fn touch(&self) {
        let Container { owner, id, .. } = &self.container;
        owner.instance.touch_claim(id).await;
    }

    fn leave(&self) {
        self.container.owner.instance.leave();
        self.container.is_left.store(true, Ordering::Release);
    }

    async fn destroy(&self) -> Result<(), BackendError> {
        self.container.remove().await
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::fd::AsRawFd as _;
    use std::os::unix::net::UnixListener;

    use super::*;

    #[tokio::test]
    async fn a_socket_is_connected_to_as_soon_as_it_listens() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().to_owned();
        let connecting = tokio::spawn(async move { connect(&path).await });
        tokio::task::yield_now().await;
        let listener = UnixListener::bind(directory.path().join(container::SOCKET)).unwrap();
        connecting.await.unwrap().unwrap();
        drop(listener);
    }

    #[tokio::test]
    async fn a_state_directory_may_have_a_path_longer_than_an_address() {
        let root = tempfile::tempdir().unwrap();
        let deep = root.path().join("d".repeat(120));
        fs::create_dir(&deep).unwrap();
        let handle = File::open(&deep).unwrap();
        let short = format!("/proc/self/fd/{}/{}", handle.as_raw_fd(), container::SOCKET);
        let _listener = UnixListener::bind(short).unwrap();
        connect(&deep).await.unwrap();
    }

    #[tokio::test]
    async fn a_control_directory_that_is_gone_is_an_error_at_once() {
        let directory = tempfile::tempdir().unwrap();
        let gone = directory.path().join("gone");
        let error = connect(&gone).await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::NotFound);
    }
}
