//! The life cycle of a container: it is made, connected to, used, and removed, also after errors.

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
use crate::container::{self, ContainerInputs};
use crate::directory::SandboxDirectory;
use crate::engine::{CALL_DEADLINE, Engine, EngineError};
use crate::handover::Handover;
use crate::ids::UserIds;
use crate::image;

/// Longest time from the request to start a container until the guest accepts a connection. The guest itself
/// needs a millisecond; the rest is for the engine's queue.
const GUEST_DEADLINE: Duration = CALL_DEADLINE;

/// Pause between two attempts to connect. The guest listens as soon as it has its socket, so a pause is rarely
/// needed.
const CONNECT_PAUSE: Duration = Duration::from_millis(1);

/// Resources and settings that all containers of one backend share.
#[derive(Debug)]
pub(crate) struct BackendContext {
    pub(crate) engine: Engine,
    pub(crate) instance: Arc<Instance>,
    /// The base state directory, resolved so that it is the same in every process that uses it.
    pub(crate) state: PathBuf,
    prewarm: PrewarmConfig,
    pub(crate) certificates: Option<Certificates>,
    pub(crate) shm_bytes: u64,
    ids: UserIds,
    live: Mutex<HashSet<SandboxId>>,
}

impl BackendContext {
    pub(crate) fn new(
        engine: Engine,
        instance: Arc<Instance>,
        state: PathBuf,
        config: &DockerConfig,
    ) -> Self {
        Self {
            ids: UserIds::of_engine(engine.socket()),
            engine,
            instance,
            state,
            prewarm: config.prewarm.clone(),
            certificates: config.certificates.clone(),
            shm_bytes: config.shm_bytes,
            live: Mutex::default(),
        }
    }

    /// Returns the sandboxes that are still referenced. All other containers with this instance's label should have
    /// been removed. The lock is never held across an await, so it is a blocking one.
    pub(crate) fn live(&self) -> MutexGuard<'_, HashSet<SandboxId>> {
        // Every change under the lock is a single operation: a panic cannot leave a change half done.
        self.live.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Removes a container of this instance, and the sandbox's directory on the host.
    pub(crate) async fn remove(&self, id: &str) -> Result<(), EngineError> {
        self.engine
            .remove(&format!("{}{id}", container::NAME_PREFIX))
            .await?;
        // The directory contains only small files, so removing it does not need a separate thread.
        self.directory(id).remove();
        Ok(())
    }

    fn directory(&self, id: &str) -> SandboxDirectory {
        SandboxDirectory::new(self.instance.directory(), id)
    }
}

/// Makes a container, and waits until its guest answers. `own` is the image of the runtime.
pub(crate) async fn make(
    context: &Arc<BackendContext>,
    spec: &SandboxSpec,
    own: &str,
) -> Result<Arc<dyn Sandbox>, BackendError> {
    let (container, user) = Container::reserve(context)?;
    // Neither future is cancelled if the other fails: a directory that is still being made cannot be removed.
    let (handover, image) = tokio::join!(
        container.prepare(user),
        image::choose(&context.engine, spec, own)
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
    context.prewarm.prepare(&control, spec);
    Ok(Arc::new(DockerSandbox {
        container,
        control,
        cgroup,
    }))
}

/// Connects to a claimed container of an earlier process. If that fails, removes the container and its claim.
pub(crate) async fn find(
    context: &Arc<BackendContext>,
    id: SandboxId,
) -> Result<Arc<dyn Sandbox>, String> {
    let container = Container::new(context, id, true);
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

/// Returns the cgroup of the guest at the other end of a socket. The kernel recorded the process that listens on
/// the socket, so the engine need not be asked for the container's process.
fn guest_cgroup(stream: &UnixStream) -> Result<CgroupReader, String> {
    let credentials = stream.peer_cred().map_err(|error| error.to_string())?;
    let pid = credentials.pid().unwrap_or_default();
    CgroupReader::of_pid(pid).map_err(|error| error.to_string())
}

/// Bounds the memory of the sandbox's socket buffers, if they do not count towards the memory limit. Engines have a
/// setting for this bound, but container runtimes ignore it, so the bound is written directly to the container's
/// cgroup.
fn bound_sockets(id: &SandboxId, cgroup: &Result<CgroupReader, String>, limits: &Limits) {
    // The reason of an unknown cgroup is reported when the usage is read.
    if let Ok(cgroup) = cgroup
        && let Err(error) = cgroup.bound_sockets(limits.memory.bytes())
    {
        log::debug!(sandbox:% = id, error:%; "socket buffers cannot be bounded");
    }
}

/// A container that is removed when this value is dropped, also if the container is not complete yet.
#[derive(Debug)]
struct Container {
    context: Arc<BackendContext>,
    id: SandboxId,
    /// The async runtime that runs the removal on drop. If the runtime has shut down by then, a later sweep removes
    /// the container.
    runtime: Handle,
    is_claimed: AtomicBool,
    /// Whether the container is left to a later process.
    is_left: AtomicBool,
    removed: OnceCell<()>,
}

impl Container {
    /// Reserves a name and a user id that no other sandbox has. Returns the container, whose resources are removed when
    /// it is dropped, and the user id.
    fn reserve(context: &Arc<BackendContext>) -> Result<(Self, u32), BackendError> {
        let mut live = context.live();
        let (id, user) = context.ids.allocate(live.iter()).ok_or_else(|| {
            let count = live.len();
            BackendError::Create(format!("{count} sandboxes use all available user ids"))
        })?;
        // The id is inserted under the same lock, so that no concurrent create chooses the same user id.
        live.insert(id.clone());
        drop(live);
        Ok((Self::new(context, id, false), user))
    }

    fn new(context: &Arc<BackendContext>, id: SandboxId, is_claimed: bool) -> Self {
        context.live().insert(id.clone());
        Self {
            context: Arc::clone(context),
            id,
            runtime: Handle::current(),
            is_claimed: AtomicBool::new(is_claimed),
            is_left: AtomicBool::new(false),
            removed: OnceCell::new(),
        }
    }

    /// Makes the sandbox's directory, and the socket that its guest will listen on.
    async fn prepare(&self, user: u32) -> Result<Handover, BackendError> {
        let directory = self.directory();
        let error = BackendError::io(format!(
            "sandbox directory {} cannot be made",
            directory.path().display()
        ));
        let (made, guest) = (directory.clone(), self.context.instance.guest());
        let certificates = self.context.certificates.clone();
        let making =
            tokio::task::spawn_blocking(move || made.make(&guest, user, certificates.as_ref()));
        let made = making.await.unwrap_or_else(|panic| Err(panic.into()));
        made.and_then(|()| Handover::prepare(&directory))
            .map_err(error)
    }

    /// Removes the claim. Must be called before the container is removed: a claim without a container would be
    /// reported as a lost session.
    fn remove_claim(&self) {
        if self.is_claimed.swap(false, Ordering::AcqRel) {
            self.context.instance.claims().remove(&self.id);
        }
    }

    fn directory(&self) -> SandboxDirectory {
        self.context.directory(self.id.as_str())
    }

    async fn create(&self, spec: &SandboxSpec, image: &str, user: u32) -> Result<(), BackendError> {
        let BackendContext {
            engine,
            instance,
            state,
            ..
        } = &*self.context;
        let inputs = ContainerInputs {
            image,
            directory: &self.directory(),
            user,
            state,
            instance: instance.id(),
            has_certificates: self.context.certificates.is_some(),
            shm_bytes: self.context.shm_bytes,
        };
        let options = CreateContainerOptionsBuilder::new()
            .name(&container::name(&self.id))
            .build();
        let body = container::create_body(spec, &inputs);
        let created = engine.docker.create_container(Some(options), body);
        let created = engine.call(CALL_DEADLINE, created).await;
        let answer = created.map_err(engine_to_create)?;
        log::debug!(sandbox:% = self.id, container:% = answer.id; "container created");
        Ok(())
    }

    async fn start(&self) -> Result<(), EngineError> {
        let engine = &self.context.engine;
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
            Err(_) => format!("no guest within {} s", GUEST_DEADLINE.as_secs()),
        };
        let state = self.state().await;
        let text = format!("guest cannot be connected to: {reason}; its container {state}");
        Err(BackendError::Create(text))
    }

    /// Returns the engine's description of the container's state, for error messages.
    async fn state(&self) -> String {
        let engine = &self.context.engine;
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

    /// Returns whether the engine has recorded that the OOM killer ended a process of the container.
    async fn was_oom_killed(&self) -> Option<bool> {
        let engine = &self.context.engine;
        let name = container::name(&self.id);
        let inspected = engine.docker.inspect_container(&name, None);
        let container = engine.call(CALL_DEADLINE, inspected).await.ok()?;
        container.state?.oom_killed
    }

    async fn set_limits(&self, limits: &Limits) -> Result<(), EngineError> {
        let engine = &self.context.engine;
        let name = container::name(&self.id);
        let update = container::update_body(limits);
        let updated = engine.docker.update_container(&name, update);
        engine.call(CALL_DEADLINE, updated).await
    }

    /// Removes the container. Concurrent callers wait for the same removal; a failed removal can be repeated.
    async fn remove(&self) -> Result<(), BackendError> {
        let removal = || async {
            // The id is no longer live even if the removal fails, so that the next sweep removes the container.
            self.context.live().remove(&self.id);
            self.remove_claim();
            let removed = self.context.remove(self.id.as_str()).await;
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
        self.remove_claim();
        self.context.live().remove(&self.id);
        let context = Arc::clone(&self.context);
        let id = self.id.clone();
        self.runtime.spawn(async move {
            if let Err(error) = context.remove(id.as_str()).await {
                log::warn!(sandbox:% = id, error:%; "sandbox could not be removed; the next sweep tries again");
            }
        });
    }
}

/// Connects to a guest, and waits until the guest listens.
async fn connect(directory: &Path) -> io::Result<UnixStream> {
    let directory = File::open(directory)?;
    let path = instance::socket_in(&directory, container::SOCKET);
    loop {
        match UnixStream::connect(&path).await {
            Err(error) if is_not_listening_yet(&error) => tokio::time::sleep(CONNECT_PAUSE).await,
            answer => return answer,
        }
    }
}

/// Connects to a guest that already listens.
async fn connect_once(directory: &Path) -> io::Result<UnixStream> {
    let directory = File::open(directory)?;
    UnixStream::connect(instance::socket_in(&directory, container::SOCKET)).await
}

/// Returns whether a connection failed because the socket is not bound or not listening yet.
fn is_not_listening_yet(error: &io::Error) -> bool {
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
    /// Reader of the resource usage, or the reason why the cgroup is unknown.
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
        // The engine keeps no count. The largest number is certainly more than the last known count.
        Some(if killed { u64::MAX } else { 0 })
    }

    async fn claim(&self, claim: &Claim) -> Result<(), BackendError> {
        let Container {
            context,
            id,
            is_claimed,
            ..
        } = &self.container;
        // Set first, so that a claim that is written only in part is removed too.
        is_claimed.store(true, Ordering::Release);
        context.instance.claim(id, claim).await
    }

    async fn touch(&self) {
        let Container { context, id, .. } = &self.container;
        context.instance.touch_claim(id).await;
    }

    fn leave(&self) {
        self.container.context.instance.leave();
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
