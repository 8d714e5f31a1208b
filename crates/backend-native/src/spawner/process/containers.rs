//! The containers of one instance.

use std::cell::RefCell;
use std::collections::HashMap;
use std::error::Error;
use std::fs::{self, File};
use std::io::{self, PipeReader, PipeWriter, Read as _, Write as _};
use std::os::fd::{AsFd as _, BorrowedFd, IntoRawFd as _, OwnedFd};
use std::os::unix::fs::{DirBuilderExt as _, PermissionsExt as _, lchown};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::time::Duration;

use isol8_backend::instance::DeadInstance;
use isol8_backend::{Claims, Instance, Owner};
use libcontainer::container::Container;
use libcontainer::container::builder::ContainerBuilder;
use libcontainer::syscall::syscall::SyscallType;
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::prctl;
use nix::sys::wait::waitpid;
use nix::unistd::{ForkResult, Pid, dup2_raw, fork};

use super::cgroups::Cgroups;
use super::dup_above;
use super::mounts;
use super::views::Views;
use crate::identity::Identity;
use crate::oci::{self, SpecInputs};
use crate::rootfs;
use crate::roots::Roots;
use crate::spawner::message::{NewSandbox, SandboxLimits};

/// Descriptor of the guest's listening socket: libcontainer passes descriptors from 3 on to the container's first
/// process.
const LISTENER_DESCRIPTOR: i32 = 3;

/// Name of the control socket in a sandbox's directory.
pub(crate) const CONTROL_SOCKET: &str = "control";

/// Directory of the layers of roots, in the instance's directory.
const VIEWS_DIRECTORY: &str = "root";

/// Directory of libcontainer's state files of all containers, in the instance's directory.
const STATE_DIRECTORY: &str = "containers";

#[derive(Debug)]
pub(super) struct Containers {
    instance: PathBuf,
    name: String,
    identity: Identity,
    views: Views,
    /// The user of a server that runs without privileges.
    owner: Option<Owner>,
    /// The unpacked roots that sandboxes may use instead of the host's programs.
    roots: Option<Roots>,
    /// `None` if the spawner may not use cgroups.
    cgroups: Option<Cgroups>,
    running: HashMap<String, RunningContainer>,
    inherited: InheritedDescriptor,
    /// Child processes that have made a container and were not reaped yet. A container becomes a child of this process
    /// only when its maker has ended.
    makers: RefCell<Vec<Pid>>,
    /// Lock of the instance, which keeps sweeps of other processes away after the server has ended, while containers
    /// are removed.
    _instance_lock: File,
}

#[derive(Debug)]
struct RunningContainer {
    /// Becomes readable when the container's first process has ended, and with it all processes of the container.
    process: OwnedFd,
    pid: Pid,
    /// Numbers of the requests that wait for the removal.
    removals: Vec<u64>,
}

impl Containers {
    pub(super) fn prepare(
        instance: &Path,
        host: &Path,
        roots: Option<&Path>,
        owner: Option<Owner>,
    ) -> Result<Self, String> {
        let inherited = InheritedDescriptor::reserve()
            .map_err(|error| format!("descriptor for sockets cannot be reserved: {error}"))?;
        let name = instance
            .file_name()
            .and_then(|name| name.to_str())
            .ok_or_else(|| format!("instance directory {} has no name", instance.display()))?
            .to_owned();
        let instance_lock = Instance::lock_as_helper(instance)
            .map_err(|error| format!("instance {name} cannot be locked: {error}"))?;
        let identity = Identity::assume()?;
        if identity == Identity::Root {
            let shared = rootfs::shared_directories(host);
            let shared = shared.iter().map(|shared| shared.source.as_path());
            mounts::isolate_mounts(shared.chain([instance]).chain(roots))
                .map_err(|error| format!("mounts cannot be isolated: {error}"))?;
        }
        let prepare = || -> io::Result<Views> {
            let views = Views::prepare(&instance.join(VIEWS_DIRECTORY), host, roots, identity)?;
            views.set_guest(&Instance::guest_in(instance))?;
            mounts::mount_tmpfs(&instance.join(STATE_DIRECTORY))?;
            Ok(views)
        };
        let views =
            prepare().map_err(|error| format!("sandbox root could not be made: {error}"))?;
        let cgroups = (identity == Identity::Root)
            .then(|| Cgroups::open_and_hide(&name))
            .transpose()
            .map_err(|error| format!("cgroups cannot be used: {error}"))?;
        prctl::set_child_subreaper(true)
            .map_err(|error| format!("spawner cannot become a child subreaper: {error}"))?;
        Ok(Self {
            instance: instance.to_owned(),
            name,
            identity,
            views,
            owner,
            roots: roots.map(Roots::new),
            cgroups,
            running: HashMap::new(),
            inherited,
            makers: RefCell::default(),
            _instance_lock: instance_lock,
        })
    }

    pub(super) fn identity(&self) -> Identity {
        self.identity
    }

    /// Returns the directories that sandboxes share with the host and each other without an overlay.
    pub(super) fn shared(&self) -> Vec<PathBuf> {
        self.views.shared()
    }

    /// Sets the certificates of sandboxes that are made from now on.
    pub(super) fn set_certificates(&mut self, certificates: Option<&str>) -> Result<(), String> {
        self.views
            .set_certificates(certificates)
            .map_err(|error| format!("certificates could not be written to the root: {error}"))
    }

    /// Makes sandboxes that are made from now on use the guest executable that is in the instance's directory.
    pub(super) fn replace_guest(&self) -> Result<(), String> {
        self.views
            .set_guest(&Instance::guest_in(&self.instance))
            .map_err(|error| format!("the guest cannot be replaced: {error}"))
    }

    /// Returns the containers that were started and not reaped yet.
    pub(super) fn running(&self) -> impl Iterator<Item = (&str, BorrowedFd<'_>)> {
        self.running
            .iter()
            .map(|(id, running)| (id.as_str(), running.process.as_fd()))
    }

    pub(super) fn create(&mut self, sandbox: &NewSandbox) -> Result<(), String> {
        let created = self.try_create(sandbox);
        if created.is_err() {
            self.clean_up(&sandbox.id);
        }
        created
    }

    fn try_create(&mut self, sandbox: &NewSandbox) -> Result<(), String> {
        self.reap_makers();
        let directory = self.instance.join(&sandbox.id);
        self.check_root(sandbox.root.as_deref())?;
        let listener = self
            .make_directory(sandbox, &directory)
            .map_err(|error| format!("{}: {error}", directory.display()))?;
        if let Some(cgroups) = &self.cgroups {
            let created = cgroups.create(&sandbox.id, &sandbox.limits);
            created.map_err(|error| format!("cgroup cannot be made: {error}"))?;
        }
        let state = self.instance.join(STATE_DIRECTORY);
        let make_container = || {
            self.views
                .enter(sandbox)
                .map_err(|error| format!("root cannot be mounted: {error}"))?;
            start(&sandbox.id, &state, &directory)
        };
        let pid = self.inherited.with(&listener, || {
            self.make_in_child(&sandbox.id, make_container)
        })?;
        let process = open_process(pid).map_err(|error| format!("container ended: {error}"))?;
        let running = RunningContainer {
            process,
            pid,
            removals: Vec::new(),
        };
        self.running.insert(sandbox.id.clone(), running);
        Ok(())
    }

    /// Checks that a requested root is one of the unpacked roots. No root means the host's programs.
    fn check_root(&self, root: Option<&Path>) -> Result<(), String> {
        let Some(root) = root else { return Ok(()) };
        match &self.roots {
            Some(roots) if roots.contains(root) => Ok(()),
            _ => Err(format!("root {} is refused", root.display())),
        }
    }

    /// Makes a container in a child of this process, which is in the sandbox's cgroups. Returns the id of the
    /// container's first process, which becomes a child of this process when the maker ends.
    fn make_in_child(
        &self,
        id: &str,
        make: impl FnOnce() -> Result<i32, String>,
    ) -> Result<Pid, String> {
        let failed = |error: io::Error| format!("container cannot be made in a child: {error}");
        let (mut reader, writer) = io::pipe().map_err(failed)?;
        let forked = match &self.cgroups {
            Some(cgroups) => cgroups.fork_into(id),
            // SAFETY: this process has a single thread, so no lock can be held by another thread in the child.
            None => unsafe { fork() }
                .map(|forked| (forked, Ok(())))
                .map_err(Into::into),
        };
        let (forked, joined) = forked.map_err(failed)?;
        let ForkResult::Parent { child } = forked else {
            let made = joined.map_err(failed).and_then(|()| make());
            report_and_exit(writer, made);
        };
        drop(writer);
        let report = read_report(&mut reader, child).map_err(failed);
        // The maker is reaped later: its end takes a while, because the kernel unmounts its mounts.
        self.makers.borrow_mut().push(child);
        report?.map(Pid::from_raw)
    }

    /// Makes the sandbox's directory, with its specification. Returns the socket that the guest will listen on.
    fn make_directory(&self, sandbox: &NewSandbox, directory: &Path) -> io::Result<OwnedFd> {
        fs::DirBuilder::new().mode(0o700).create(directory)?;
        self.views.add_own_layer(sandbox)?;
        let inputs = SpecInputs {
            instance: &self.name,
            root: &self.views.root(),
            is_unpacked: sandbox.root.is_some(),
            is_shared: self.views.is_shared(sandbox),
            has_certificates: self.views.has_certificates(),
            identity: self.identity,
        };
        let specification = oci::specification(sandbox, &inputs);
        let text = serde_json::to_vec(&specification)?;
        fs::write(directory.join("config.json"), text)?;
        let socket = directory.join(CONTROL_SOCKET);
        let listener = UnixListener::bind(&socket)?;
        if let Some(owner) = self.owner {
            // The server may connect to the socket, but must not change the other files in the directory: the
            // container is made from them.
            lchown(directory, None, Some(owner.gid))?;
            fs::set_permissions(directory, fs::Permissions::from_mode(0o710))?;
            fs::set_permissions(&socket, fs::Permissions::from_mode(0o600))?;
            owner.chown(&socket)?;
        }
        dup_above(listener.as_fd())
    }

    pub(super) fn set_limits(&self, id: &str, limits: &SandboxLimits) -> Result<(), String> {
        // `running` does not contain sandboxes of an earlier spawner, so the directory decides.
        if !self.instance.join(id).exists() {
            return Err("the sandbox is gone".to_owned());
        }
        self.cgroups.as_ref().map_or(Ok(()), |cgroups| {
            let set = cgroups.set_limits(id, limits);
            set.map_err(|error| error.to_string())
        })
    }

    /// Ends a sandbox. Returns `true` if the sandbox is removed. Returns `false` if it will be removed once its
    /// processes are gone; [`Self::reap`] returns `number` then.
    pub(super) fn remove(&mut self, id: &str, number: u64) -> Result<bool, String> {
        let Some(running) = self.running.get_mut(id) else {
            // An earlier spawner made the sandbox, or it is gone already.
            self.clean_up(id);
            return Ok(true);
        };
        running.removals.push(number);
        kill(&running.process).map_err(|error| format!("container cannot be ended: {error}"))?;
        Ok(false)
    }

    /// Removes the remains of ended containers. Returns the numbers of the requests that waited for the removal.
    pub(super) fn reap(&mut self, ended: &[String]) -> Vec<u64> {
        let mut completed = Vec::new();
        for id in ended {
            match self.running.remove(id) {
                // The container ended by itself. Its cgroup stays: the server reads there whether the OOM killer ended
                // the container, and requests the removal afterwards.
                Some(running) if running.removals.is_empty() => {
                    self.reap_makers();
                    wait_for(id, &running);
                    self.remove_directories(id);
                }
                Some(running) => completed.extend(self.reap_one(id, running)),
                None => {}
            }
        }
        completed
    }

    fn reap_makers(&self) {
        for maker in self.makers.borrow_mut().drain(..) {
            let _ = waitpid(maker, None);
        }
    }

    fn reap_one(&self, id: &str, running: RunningContainer) -> Vec<u64> {
        self.reap_makers();
        wait_for(id, &running);
        self.clean_up(id);
        running.removals
    }

    /// Ends and removes every sandbox that is not claimed. Returns whether any sandbox is claimed.
    pub(super) fn remove_unclaimed(&mut self) -> bool {
        let claims = Claims::of(&self.instance);
        let (claimed, others) = std::mem::take(&mut self.running)
            .into_iter()
            .partition(|(id, _)| claims.has(id));
        self.running = claimed;
        self.end_all(others);
        // `running` does not contain sandboxes of an earlier spawner, so the directory decides.
        claims
            .ids()
            .any(|id| self.instance.join(id.as_str()).is_dir())
    }

    /// Ends and removes every sandbox.
    pub(super) fn remove_all(&mut self) {
        let all = std::mem::take(&mut self.running);
        self.end_all(all);
        if let Some(Err(error)) = self.cgroups.as_ref().map(Cgroups::remove_all) {
            log::warn!(error:%; "cgroups of the instance could not be removed");
        }
    }

    fn end_all(&self, sandboxes: HashMap<String, RunningContainer>) {
        for (id, running) in sandboxes {
            if let Err(error) = kill(&running.process) {
                log::warn!(sandbox = id.as_str(), error:%; "container cannot be ended");
                continue;
            }
            self.reap_one(&id, running);
        }
    }

    /// Removes the remains of other instances whose processes are dead. Returns the number of removed instances.
    pub(super) fn sweep(&self, adoptable_for: Duration) -> Result<usize, String> {
        let state = self.instance.parent().unwrap_or(&self.instance);
        let mut swept = 0;
        let mut failed = None;
        for dead in DeadInstance::others(state, adoptable_for, &self.instance) {
            let cgroups = self.cgroups.as_ref();
            match cgroups.map_or(Ok(()), |cgroups| cgroups.remove_instance(dead.id())) {
                Ok(()) => {
                    log::info!(instance = dead.id(); "removed the remains of a dead instance");
                    dead.remove();
                    swept += 1;
                }
                Err(error) => failed = Some(format!("instance {}: {error}", dead.id())),
            }
        }
        failed.map_or(Ok(swept), Err)
    }

    pub(super) fn instance(&self) -> &Path {
        &self.instance
    }

    /// Removes the instance's directory, for a server that has ended or has no privilege to do so.
    pub(super) fn remove_instance_directory(&self) {
        for name in [VIEWS_DIRECTORY, STATE_DIRECTORY] {
            // A mount point cannot be removed in the mount namespace in which it is mounted.
            if let Err(error) = mounts::detach(&self.instance.join(name)) {
                log::warn!(error:%; "mount of the instance could not be removed");
            }
        }
        Instance::remove_directory(&self.instance);
    }

    /// Removes the remains of a container whose processes have ended: cgroup and directories.
    pub(super) fn clean_up(&self, id: &str) {
        if let Some(Err(error)) = self.cgroups.as_ref().map(|cgroups| cgroups.remove(id)) {
            log::warn!(sandbox = id, error:%; "cgroup of the sandbox could not be removed");
        }
        self.remove_directories(id);
    }

    fn remove_directories(&self, id: &str) {
        if let Err(error) = self.views.remove_own_layer(id) {
            log::warn!(sandbox = id, error:%; "file layer of the sandbox could not be removed");
        }
        let state = self.instance.join(STATE_DIRECTORY).join(id);
        for directory in [state, self.instance.join(id)] {
            match fs::remove_dir_all(&directory) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => {
                    log::warn!(sandbox = id, error:%; "directory of the sandbox could not be removed");
                }
                _ => {}
            }
        }
    }
}

/// The descriptor number [`LISTENER_DESCRIPTOR`], which containers inherit. Between two containers the number refers
/// to `/dev/null`, so that no other file gets it: the next container's socket would replace that file, which would
/// release the file's lock.
#[derive(Debug)]
struct InheritedDescriptor {
    null: OwnedFd,
}

impl InheritedDescriptor {
    fn reserve() -> io::Result<Self> {
        let null = File::options().read(true).write(true).open("/dev/null")?;
        let copy = dup_above(null.as_fd())?;
        drop(null);
        let reserved = Self { null: copy };
        reserved.refer_to(&reserved.null)?;
        Ok(reserved)
    }

    /// Calls a function while the descriptor number refers to `listener`.
    fn with<T>(
        &self,
        listener: &OwnedFd,
        work: impl FnOnce() -> Result<T, String>,
    ) -> Result<T, String> {
        let failed = |error: io::Error| format!("control socket cannot be passed on: {error}");
        self.refer_to(listener).map_err(failed)?;
        let done = work();
        self.refer_to(&self.null).map_err(failed)?;
        done
    }

    fn refer_to(&self, fd: &OwnedFd) -> io::Result<()> {
        // SAFETY: no other value owns this descriptor number: it was unused when it was reserved, and is reserved
        // since then.
        let duplicate = unsafe { dup2_raw(fd, LISTENER_DESCRIPTOR) }?;
        // The descriptor stays open as long as this process lives.
        let _ = duplicate.into_raw_fd();
        Ok(())
    }
}

/// Makes and starts a container. Returns the process id of its first process.
fn start(id: &str, state: &Path, bundle: &Path) -> Result<i32, String> {
    let started = || -> Result<Container, Box<dyn Error>> {
        let null = File::options().write(true).open("/dev/null")?;
        let mut container = ContainerBuilder::new(id.to_owned(), SyscallType::default())
            .with_root_path(state)?
            .with_preserved_fds(1)
            .with_stderr(null)
            .as_init(bundle)
            .with_systemd(false)
            .with_detach(true)
            .build()?;
        container.start()?;
        Ok(container)
    };
    let container = started().map_err(|error| error_chain(error.as_ref()))?;
    let pid = container.pid().ok_or("container has no process")?;
    Ok(pid.as_raw())
}

/// Reports the result of the calling child process to its parent, and ends the child.
fn report_and_exit(mut writer: PipeWriter, made: Result<i32, String>) -> ! {
    let line = serde_json::to_vec(&made).unwrap_or_default();
    // The parent treats a missing report as a failure.
    let _ = writer.write_all(&[&line[..], b"\n"].concat());
    // SAFETY: _exit has no preconditions. No destructor runs: all resources belong to the spawner.
    unsafe { libc::_exit(0) }
}

/// Reads the report of a child. The container may have the pipe open too, so the end of the child does not close the
/// pipe, and is watched separately.
fn read_report(reader: &mut PipeReader, child: Pid) -> io::Result<Result<i32, String>> {
    let process = open_process(child)?;
    let mut line = Vec::new();
    while line.last() != Some(&b'\n') {
        let mut polled =
            [reader.as_fd(), process.as_fd()].map(|fd| PollFd::new(fd, PollFlags::POLLIN));
        match poll(&mut polled, PollTimeout::NONE) {
            Ok(_) => {}
            Err(Errno::EINTR) => continue,
            Err(error) => return Err(error.into()),
        }
        if !polled[0].any().unwrap_or(false) {
            return Err(io::Error::other("the child died"));
        }
        let mut piece = [0; 4096];
        match reader.read(&mut piece)? {
            0 => return Err(io::Error::other("the child died")),
            count => line.extend_from_slice(&piece[..count]),
        }
    }
    Ok(serde_json::from_slice(&line)?)
}

fn wait_for(id: &str, running: &RunningContainer) {
    if let Err(error) = waitpid(running.pid, None) {
        log::warn!(sandbox = id, error:%; "container was reaped by another process");
    }
}

fn open_process(pid: Pid) -> io::Result<OwnedFd> {
    let pid = rustix::process::Pid::from_raw(pid.as_raw())
        .ok_or_else(|| io::Error::from(io::ErrorKind::InvalidInput))?;
    let process = rustix::process::pidfd_open(pid, rustix::process::PidfdFlags::empty())?;
    dup_above(process.as_fd())
}

fn kill(process: &OwnedFd) -> io::Result<()> {
    match rustix::process::pidfd_send_signal(process, rustix::process::Signal::KILL) {
        Err(rustix::io::Errno::SRCH) => Ok(()),
        done => Ok(done?),
    }
}

/// Returns the text of an error and its causes: libcontainer's own texts name only the failed step.
fn error_chain(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(inner) = cause {
        text.push_str(": ");
        text.push_str(&inner.to_string());
        cause = inner.source();
    }
    text
}
