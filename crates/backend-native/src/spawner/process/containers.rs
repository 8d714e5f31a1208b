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

use super::above_the_inherited;
use super::cgroups::Cgroups;
use super::mounts;
use super::views::Views;
use crate::identity::Identity;
use crate::oci::{self, Surroundings};
use crate::rootfs;
use crate::roots::Roots;
use crate::spawner::message::{NewSandbox, SandboxLimits};

/// libcontainer passes descriptors from 3 on to the container's first process.
const LISTENER_DESCRIPTOR: i32 = 3;

/// Name of the control socket in a sandbox's directory.
pub(crate) const CONTROL_SOCKET: &str = "control";

/// Name, in the instance's directory, of what roots are made of.
const VIEWS: &str = "root";

/// And of what libcontainer writes down of each container.
const STATES: &str = "containers";

#[derive(Debug)]
pub(super) struct Containers {
    instance: PathBuf,
    name: String,
    identity: Identity,
    views: Views,
    /// The user of a server that runs without privileges.
    owner: Option<Owner>,
    /// The roots that sandboxes may have instead of the host's programs.
    roots: Option<Roots>,
    /// None where the spawner may not use them.
    cgroups: Option<Cgroups>,
    running: HashMap<String, Running>,
    inherited: Inherited,
    /// Processes that have made a container, and were not reaped yet. A container is this process's child only when
    /// its maker has ended.
    makers: RefCell<Vec<Pid>>,
    /// Keeps other processes' sweeps away while the server is gone and containers are removed.
    _hold: File,
}

#[derive(Debug)]
struct Running {
    /// Becomes readable when the container's first process, and with it all of them, has ended.
    process: OwnedFd,
    pid: Pid,
    /// Requests that wait for the removal.
    removals: Vec<u64>,
}

impl Containers {
    pub(super) fn prepare(
        instance: &Path,
        host: &Path,
        roots: Option<&Path>,
        owner: Option<Owner>,
    ) -> Result<Self, String> {
        let inherited = Inherited::reserve()
            .map_err(|error| format!("descriptor for sockets cannot be reserved: {error}"))?;
        let name = instance
            .file_name()
            .and_then(|name| name.to_str())
            .ok_or_else(|| format!("instance directory {} has no name", instance.display()))?
            .to_owned();
        let hold = Instance::lock_as_helper(instance)
            .map_err(|error| format!("instance {name} cannot be held: {error}"))?;
        let identity = Identity::assume()?;
        if identity == Identity::Root {
            let shares = rootfs::shares(host);
            let shared = shares.iter().map(|share| share.source.as_path());
            mounts::go_apart(shared.chain([instance]).chain(roots))
                .map_err(|error| format!("mounts cannot be set apart: {error}"))?;
        }
        let prepare = || -> io::Result<Views> {
            let views = Views::prepare(&instance.join(VIEWS), host, roots, identity)?;
            views.set_guest(&Instance::guest_in(instance))?;
            mounts::in_memory(&instance.join(STATES))?;
            Ok(views)
        };
        let views =
            prepare().map_err(|error| format!("sandbox root could not be made: {error}"))?;
        let cgroups = (identity == Identity::Root)
            .then(|| Cgroups::take(&name))
            .transpose()
            .map_err(|error| format!("cgroups cannot be used: {error}"))?;
        prctl::set_child_subreaper(true)
            .map_err(|error| format!("containers cannot be adopted: {error}"))?;
        Ok(Self {
            instance: instance.to_owned(),
            name,
            identity,
            views,
            owner,
            roots: roots.map(Roots::at),
            cgroups,
            running: HashMap::new(),
            inherited,
            makers: RefCell::default(),
            _hold: hold,
        })
    }

    pub(super) fn identity(&self) -> Identity {
        self.identity
    }

    /// The directories whose files sandboxes have as they are, and so share with the host and each other.
    pub(super) fn shared(&self) -> Vec<PathBuf> {
        self.views.shared()
    }

    /// Gives sandboxes that are made from now on these certificates.
    pub(super) fn trust(&mut self, certificates: Option<&str>) -> Result<(), String> {
        self.views
            .set_certificates(certificates)
            .map_err(|error| format!("certificates could not be put into the root: {error}"))
    }

    /// Gives sandboxes that are made from now on the guest that is in the instance's directory.
    pub(super) fn renew_guest(&self) -> Result<(), String> {
        self.views
            .set_guest(&Instance::guest_in(&self.instance))
            .map_err(|error| format!("the guest cannot be replaced: {error}"))
    }

    /// The containers that were started and not yet reaped.
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
        let state = self.instance.join(STATES);
        let work = || {
            self.views
                .enter(sandbox)
                .map_err(|error| format!("root cannot be mounted: {error}"))?;
            start(&sandbox.id, &state, &directory)
        };
        let pid = self
            .inherited
            .while_it_is(&listener, || self.apart(&sandbox.id, work))?;
        let process = open_process(pid).map_err(|error| format!("container ended: {error}"))?;
        let running = Running {
            process,
            pid,
            removals: Vec::new(),
        };
        self.running.insert(sandbox.id.clone(), running);
        Ok(())
    }

    /// A sandbox stands on the host's programs or on a root that was unpacked, and on nothing else.
    fn check_root(&self, root: Option<&Path>) -> Result<(), String> {
        let Some(root) = root else { return Ok(()) };
        match &self.roots {
            Some(roots) if roots.has(root) => Ok(()),
            _ => Err(format!("root {} is refused", root.display())),
        }
    }

    /// Has a container made by a child of this process, in the sandbox's cgroups. The process that is started there,
    /// whose id is returned, becomes this process's own child.
    fn apart(&self, id: &str, work: impl FnOnce() -> Result<i32, String>) -> Result<Pid, String> {
        let failed = |error: io::Error| format!("container cannot be made apart: {error}");
        let (mut report, far) = io::pipe().map_err(failed)?;
        let forked = match &self.cgroups {
            Some(cgroups) => cgroups.fork_into(id),
            // SAFETY: a single thread, so the child is a whole copy.
            None => unsafe { fork() }
                .map(|forked| (forked, Ok(())))
                .map_err(Into::into),
        };
        let (forked, joined) = forked.map_err(failed)?;
        let ForkResult::Parent { child } = forked else {
            let done = joined.map_err(failed).and_then(|()| work());
            tell(far, done);
        };
        drop(far);
        let told = hear(&mut report, child).map_err(failed);
        // The maker is about to end, which takes the kernel a while, because its mounts are taken apart.
        self.makers.borrow_mut().push(child);
        told?.map(Pid::from_raw)
    }

    /// The sandbox's directory: its specification, and the socket that its guest will listen on.
    fn make_directory(&self, sandbox: &NewSandbox, directory: &Path) -> io::Result<OwnedFd> {
        fs::DirBuilder::new().mode(0o700).create(directory)?;
        self.views.add(sandbox)?;
        let surroundings = Surroundings {
            instance: &self.name,
            root: &self.views.root(),
            is_unpacked: sandbox.root.is_some(),
            is_shared: self.views.is_shared(sandbox),
            has_certificates: self.views.has_certificates(),
            identity: self.identity,
        };
        let specification = oci::specification(sandbox, &surroundings);
        let text = serde_json::to_vec(&specification)?;
        fs::write(directory.join("config.json"), text)?;
        let socket = directory.join(CONTROL_SOCKET);
        let listener = UnixListener::bind(&socket)?;
        if let Some(owner) = self.owner {
            // The server connects to the socket, and may change nothing else: the container is made from
            // what stands beside it.
            lchown(directory, None, Some(owner.gid))?;
            fs::set_permissions(directory, fs::Permissions::from_mode(0o710))?;
            fs::set_permissions(&socket, fs::Permissions::from_mode(0o600))?;
            owner.chown(&socket)?;
        }
        above_the_inherited(listener.as_fd())
    }

    pub(super) fn set_limits(&self, id: &str, limits: &SandboxLimits) -> Result<(), String> {
        // A sandbox that an earlier spawner made is not among the running.
        if !self.instance.join(id).exists() {
            return Err("the sandbox is gone".to_owned());
        }
        self.cgroups.as_ref().map_or(Ok(()), |cgroups| {
            let set = cgroups.set_limits(id, limits);
            set.map_err(|error| error.to_string())
        })
    }

    /// Ends a sandbox. Returns `false` if it is removed only after its processes are gone, which [`Self::reap`] then
    /// reports with `number`.
    pub(super) fn remove(&mut self, id: &str, number: u64) -> Result<bool, String> {
        let Some(running) = self.running.get_mut(id) else {
            // Made by a spawner before this one, or gone already.
            self.clean_up(id);
            return Ok(true);
        };
        running.removals.push(number);
        kill(&running.process).map_err(|error| format!("container cannot be ended: {error}"))?;
        Ok(false)
    }

    /// Removes what is left of ended containers. Returns the requests that waited for it.
    pub(super) fn reap(&mut self, ended: &[String]) -> Vec<u64> {
        let mut answered = Vec::new();
        for id in ended {
            match self.running.remove(id) {
                // The container ended by itself. The server reads in its cgroup whether memory was out, and asks for
                // the removal then.
                Some(running) if running.removals.is_empty() => {
                    self.reap_makers();
                    wait_for(id, &running);
                    self.remove_directories(id);
                }
                Some(running) => answered.extend(self.reap_one(id, running)),
                None => {}
            }
        }
        answered
    }

    fn reap_makers(&self) {
        for maker in self.makers.borrow_mut().drain(..) {
            let _ = waitpid(maker, None);
        }
    }

    fn reap_one(&self, id: &str, running: Running) -> Vec<u64> {
        self.reap_makers();
        wait_for(id, &running);
        self.clean_up(id);
        running.removals
    }

    /// Ends and removes every sandbox that is not claimed. Tells whether one is.
    pub(super) fn remove_unclaimed(&mut self) -> bool {
        let claims = Claims::of(&self.instance);
        let (claimed, others) = std::mem::take(&mut self.running)
            .into_iter()
            .partition(|(id, _)| claims.has(id));
        self.running = claimed;
        self.end(others);
        // A sandbox that an earlier spawner made is not among the running.
        claims
            .ids()
            .any(|id| self.instance.join(id.as_str()).is_dir())
    }

    /// Ends and removes every sandbox.
    pub(super) fn remove_all(&mut self) {
        let all = std::mem::take(&mut self.running);
        self.end(all);
        if let Some(Err(error)) = self.cgroups.as_ref().map(Cgroups::remove_all) {
            log::warn!(error:%; "cgroups of the instance are left");
        }
    }

    fn end(&self, sandboxes: HashMap<String, Running>) {
        for (id, running) in sandboxes {
            if let Err(error) = kill(&running.process) {
                log::warn!(sandbox = id.as_str(), error:%; "container cannot be ended");
                continue;
            }
            self.reap_one(&id, running);
        }
    }

    /// Removes what other instances left whose processes are dead. Returns how many there were.
    pub(super) fn sweep(&self, adoptable_for: Duration) -> Result<usize, String> {
        let state = self.instance.parent().unwrap_or(&self.instance);
        let mut swept = 0;
        let mut left = None;
        for dead in DeadInstance::others(state, adoptable_for, &self.instance) {
            let cgroups = self.cgroups.as_ref();
            match cgroups.map_or(Ok(()), |cgroups| cgroups.remove_instance(dead.id())) {
                Ok(()) => {
                    log::info!(instance = dead.id(); "removed what a dead instance left");
                    dead.remove();
                    swept += 1;
                }
                Err(error) => left = Some(format!("instance {}: {error}", dead.id())),
            }
        }
        left.map_or(Ok(swept), Err)
    }

    pub(super) fn instance(&self) -> &Path {
        &self.instance
    }

    /// Removes the directory too, where the server cannot any more.
    pub(super) fn remove_instance_directory(&self) {
        for name in [VIEWS, STATES] {
            // A directory with mounts cannot be removed while they are visible.
            if let Err(error) = mounts::detach(&self.instance.join(name)) {
                log::warn!(error:%; "mount of the instance is left");
            }
        }
        Instance::remove_directory(&self.instance);
    }

    /// Removes all that is left of a container whose processes have ended.
    pub(super) fn clean_up(&self, id: &str) {
        if let Some(Err(error)) = self.cgroups.as_ref().map(|cgroups| cgroups.remove(id)) {
            log::warn!(sandbox = id, error:%; "cgroup of the sandbox is left");
        }
        self.remove_directories(id);
    }

    fn remove_directories(&self, id: &str) {
        if let Err(error) = self.views.remove(id) {
            log::warn!(sandbox = id, error:%; "names of the sandbox are left");
        }
        for directory in [self.instance.join(STATES).join(id), self.instance.join(id)] {
            match fs::remove_dir_all(&directory) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => {
                    log::warn!(sandbox = id, error:%; "directory of the sandbox is left");
                }
                _ => {}
            }
        }
    }
}

/// The descriptor that containers inherit. While it stands for nothing it is still taken: a file
/// that was opened there would be closed by the next container's socket, and with a file its lock.
#[derive(Debug)]
struct Inherited {
    nothing: OwnedFd,
}

impl Inherited {
    fn reserve() -> io::Result<Self> {
        let null = File::options().read(true).write(true).open("/dev/null")?;
        let nothing = above_the_inherited(null.as_fd())?;
        drop(null);
        let reserved = Self { nothing };
        reserved.stand_for(&reserved.nothing)?;
        Ok(reserved)
    }

    fn while_it_is<T>(
        &self,
        listener: &OwnedFd,
        work: impl FnOnce() -> Result<T, String>,
    ) -> Result<T, String> {
        let failed = |error: io::Error| format!("control socket cannot be passed on: {error}");
        self.stand_for(listener).map_err(failed)?;
        let done = work();
        self.stand_for(&self.nothing).map_err(failed)?;
        done
    }

    fn stand_for(&self, fd: &OwnedFd) -> io::Result<()> {
        // SAFETY: nothing else owns this descriptor: it was free, and has been taken ever since.
        let taken = unsafe { dup2_raw(fd, LISTENER_DESCRIPTOR) }?;
        // The descriptor stays open as long as this process lives.
        let _ = taken.into_raw_fd();
        Ok(())
    }
}

/// Makes and starts a container. Returns the id of its first process.
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
    let container = started().map_err(|error| chain(error.as_ref()))?;
    let pid = container.pid().ok_or("container has no process")?;
    Ok(pid.as_raw())
}

/// Says what a child has done, and ends it.
fn tell(mut report: PipeWriter, done: Result<i32, String>) -> ! {
    let line = serde_json::to_vec(&done).unwrap_or_default();
    // Nothing said is a failure too.
    let _ = report.write_all(&[&line[..], b"\n"].concat());
    // SAFETY: ends this process without what is the spawner's to do at its end.
    unsafe { libc::_exit(0) }
}

/// Reads the child's report. The container may have the pipe too, so there is no end of file to wait for if the child
/// dies.
fn hear(report: &mut PipeReader, child: Pid) -> io::Result<Result<i32, String>> {
    let process = open_process(child)?;
    let mut line = Vec::new();
    while line.last() != Some(&b'\n') {
        let mut polled =
            [report.as_fd(), process.as_fd()].map(|fd| PollFd::new(fd, PollFlags::POLLIN));
        match poll(&mut polled, PollTimeout::NONE) {
            Ok(_) => {}
            Err(Errno::EINTR) => continue,
            Err(error) => return Err(error.into()),
        }
        if !polled[0].any().unwrap_or(false) {
            return Err(io::Error::other("its maker died"));
        }
        let mut piece = [0; 4096];
        match report.read(&mut piece)? {
            0 => return Err(io::Error::other("its maker died")),
            count => line.extend_from_slice(&piece[..count]),
        }
    }
    Ok(serde_json::from_slice(&line)?)
}

fn wait_for(id: &str, running: &Running) {
    if let Err(error) = waitpid(running.pid, None) {
        log::warn!(sandbox = id, error:%; "container was reaped by another process");
    }
}

fn open_process(pid: Pid) -> io::Result<OwnedFd> {
    let pid = rustix::process::Pid::from_raw(pid.as_raw())
        .ok_or_else(|| io::Error::from(io::ErrorKind::InvalidInput))?;
    let process = rustix::process::pidfd_open(pid, rustix::process::PidfdFlags::empty())?;
    above_the_inherited(process.as_fd())
}

fn kill(process: &OwnedFd) -> io::Result<()> {
    match rustix::process::pidfd_send_signal(process, rustix::process::Signal::KILL) {
        Err(rustix::io::Errno::SRCH) => Ok(()),
        done => Ok(done?),
    }
}

/// An error and its causes: libcontainer's own texts name only the step that failed.
fn chain(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(inner) = cause {
        text.push_str(": ");
        text.push_str(&inner.to_string());
        cause = inner.source();
    }
    text
}
