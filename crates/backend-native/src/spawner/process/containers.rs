//! The containers of one instance.

use std::collections::HashMap;
use std::error::Error;
use std::fs::{self, File};
use std::io;
use std::os::fd::{AsFd as _, BorrowedFd, IntoRawFd as _, OwnedFd};
use std::os::unix::fs::DirBuilderExt as _;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};

use isol8_backend::Instance;
use libcgroups::common::{CgroupConfig, CgroupManager as _, ControllerOpt, create_cgroup_manager};
use libcontainer::container::Container;
use libcontainer::container::builder::ContainerBuilder;
use libcontainer::oci_spec::runtime::LinuxResources;
use libcontainer::syscall::syscall::SyscallType;
use nix::sys::wait::waitpid;
use nix::unistd::{Pid, dup2_raw};

use super::above_the_inherited;
use crate::cgroup;
use crate::identity::Identity;
use crate::oci::{self, Surroundings, SwapControl};
use crate::rootfs::{self, Share};
use crate::spawner::message::{NewSandbox, SandboxLimits};

/// libcontainer passes descriptors from 3 on to the container's first process.
const LISTENER_DESCRIPTOR: i32 = 3;

/// Name of the control socket in a sandbox's directory.
pub(crate) const CONTROL_SOCKET: &str = "control";

#[derive(Debug)]
pub(super) struct Containers {
    instance: PathBuf,
    name: String,
    shares: Vec<Share>,
    identity: Identity,
    swap: SwapControl,
    running: HashMap<String, Running>,
    inherited: Inherited,
    /// Keeps other processes' sweeps away while the server is gone and containers are removed.
    _hold: File,
}

#[derive(Debug)]
struct Running {
    /// Becomes readable when the container's first process, and with it all of them, has ended.
    process: OwnedFd,
    pid: Pid,
    container: Container,
    /// Requests that wait for the removal.
    removals: Vec<u64>,
}

impl Containers {
    pub(super) fn prepare(instance: &Path, host: &Path) -> Result<Self, String> {
        let inherited = Inherited::reserve()
            .map_err(|error| format!("descriptor for sockets cannot be reserved: {error}"))?;
        let name = instance
            .file_name()
            .and_then(|name| name.to_str())
            .ok_or_else(|| format!("instance directory {} has no name", instance.display()))?
            .to_owned();
        let hold = Instance::hold(instance)
            .map_err(|error| format!("instance {name} cannot be held: {error}"))?;
        rootfs::build(host, &instance.join("root"))
            .map_err(|error| format!("sandbox root could not be made: {error}"))?;
        let identity = Identity::assume()?;
        if identity == Identity::Root {
            cgroup::enter_spawner(&name)
                .map_err(|error| format!("cgroup for the spawner cannot be used: {error}"))?;
        }
        Ok(Self {
            instance: instance.to_owned(),
            name,
            shares: rootfs::shares(host),
            identity,
            swap: SwapControl::detect(cgroup::CGROUP_ROOT.as_ref(), "/proc".as_ref()),
            running: HashMap::new(),
            inherited,
            _hold: hold,
        })
    }

    pub(super) fn identity(&self) -> Identity {
        self.identity
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
        let directory = self.instance.join(&sandbox.id);
        let listener = self
            .make_directory(sandbox, &directory)
            .map_err(|error| format!("{}: {error}", directory.display()))?;
        let state = self.instance.join("containers");
        let container = self.inherited.while_it_is(&listener, || {
            start(&sandbox.id, &state, &directory).map_err(|error| chain(error.as_ref()))
        })?;
        let pid = container.pid().ok_or("container has no process")?;
        let pid = Pid::from_raw(pid.as_raw());
        let process = open_process(pid).map_err(|error| format!("container ended: {error}"))?;
        let running = Running {
            process,
            pid,
            container,
            removals: Vec::new(),
        };
        self.running.insert(sandbox.id.clone(), running);
        Ok(())
    }

    /// The sandbox's directory: its specification, and the socket that its guest will listen on.
    fn make_directory(&self, sandbox: &NewSandbox, directory: &Path) -> io::Result<OwnedFd> {
        fs::DirBuilder::new().mode(0o700).create(directory)?;
        let surroundings = Surroundings {
            instance: &self.name,
            root: &self.instance.join("root"),
            shares: &self.shares,
            guest: &Instance::guest_in(&self.instance),
            identity: self.identity,
            swap: self.swap,
        };
        let specification = oci::specification(sandbox, &surroundings);
        let text = serde_json::to_vec(&specification)?;
        fs::write(directory.join("config.json"), text)?;
        let listener = UnixListener::bind(directory.join(CONTROL_SOCKET))?;
        above_the_inherited(listener.as_fd())
    }

    pub(super) fn set_limits(&self, id: &str, limits: &SandboxLimits) -> Result<(), String> {
        if self.identity == Identity::User {
            return Ok(());
        }
        if !self.running.contains_key(id) {
            return Err("the sandbox is gone".to_owned());
        }
        let resources: LinuxResources = serde_json::from_value(oci::resources(limits, self.swap))
            .map_err(|error| error.to_string())?;
        let manager = create_cgroup_manager(CgroupConfig {
            cgroup_path: cgroup::path_of(&self.name, id).into(),
            systemd_cgroup: false,
            container_name: id.to_owned(),
        })
        .map_err(|error| chain(&error))?;
        manager
            .apply(&ControllerOpt {
                resources: &resources,
                disable_oom_killer: false,
                oom_score_adj: None,
                freezer_state: None,
            })
            .map_err(|error| chain(&error))
    }

    /// Ends a sandbox. `false` where it is removed only after its processes are gone, which
    /// [`Self::reap`] then says with `number`.
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
            if let Some(running) = self.running.remove(id) {
                answered.extend(self.reap_one(id, running));
            }
        }
        answered
    }

    fn reap_one(&self, id: &str, mut running: Running) -> Vec<u64> {
        if let Err(error) = waitpid(running.pid, None) {
            log::warn!(sandbox = id, error:%; "container was reaped by somebody else");
        }
        if let Err(error) = running.container.delete(true) {
            log::debug!(sandbox = id, error = chain(&error).as_str(); "container state is removed by hand");
        }
        self.clean_up(id);
        running.removals
    }

    /// Ends and removes every sandbox.
    pub(super) fn remove_all(&mut self) {
        for (id, running) in std::mem::take(&mut self.running) {
            if let Err(error) = kill(&running.process) {
                log::warn!(sandbox = id.as_str(), error:%; "container cannot be ended");
                continue;
            }
            self.reap_one(&id, running);
        }
        if self.identity == Identity::Root {
            let removed =
                cgroup::leave_spawner().and_then(|()| cgroup::remove_instance(&self.name));
            if let Err(error) = removed {
                log::warn!(error:%; "cgroups of the instance are left");
            }
        }
    }

    /// Removes the directory too, where the server cannot any more.
    pub(super) fn remove_instance_directory(&self) {
        Instance::remove_directory(&self.instance);
    }

    fn clean_up(&self, id: &str) {
        if self.identity == Identity::Root
            && let Err(error) = cgroup::remove_sandbox(&self.name, id)
        {
            log::warn!(sandbox = id, error:%; "cgroup of the sandbox is left");
        }
        for directory in [
            self.instance.join("containers").join(id),
            self.instance.join(id),
        ] {
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
        // It stays open as long as this process lives.
        let _ = taken.into_raw_fd();
        Ok(())
    }
}

fn start(id: &str, state: &Path, bundle: &Path) -> Result<Container, Box<dyn Error>> {
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
