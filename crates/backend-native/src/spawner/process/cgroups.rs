//! Creation of the cgroups of an instance's sandboxes by the spawner.
//!
//! libcontainer could create cgroups, but it moves each container's first process into its cgroup, and the
//! kernel makes a process that moves another one wait for an RCU grace period: 5 to 20 ms. A thread that moves
//! itself on v1 does not wait (`cgroup_procs_write_start` in `kernel/cgroup/cgroup.c`), nor does a
//! process that is created in its cgroup on v2 (`CLONE_INTO_CGROUP`). So the cgroup file systems are
//! hidden from libcontainer, and containers are made by processes that are already in the right cgroup.

use std::fs::{self, File};
use std::io;
use std::os::fd::{AsFd as _, AsRawFd as _, OwnedFd};
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::unistd::{ForkResult, Pid, fork};

use super::dup_above;
use crate::cgroup::{self, CGROUP_ROOT};
use crate::spawner::message::SandboxLimits;

/// Controllers that enforce a sandbox's limits and count its usage, on v1.
const V1_CONTROLLERS: [&str; 4] = ["memory", "cpu", "cpuacct", "pids"];

/// The same controllers on v2, where `cpu` also counts processor time.
const V2_CONTROLLERS: &str = "+memory +cpu +pids";

/// Flag of `linux/sched.h`. The type of libc's constant is too narrow for the value.
const CLONE_INTO_CGROUP: u64 = 0x2_0000_0000;

/// The cgroups of one instance.
#[derive(Debug)]
pub(super) struct Cgroups {
    instance: String,
    hierarchies: Vec<Hierarchy>,
    swap: SwapControl,
}

#[derive(Debug)]
struct Hierarchy {
    /// Path through an open descriptor, which remains valid when the mount is hidden.
    root: PathBuf,
    _directory: OwnedFd,
    /// Controllers of the hierarchy; empty on v2.
    controllers: Vec<&'static str>,
    is_v2: bool,
}

impl Cgroups {
    /// Opens the mounted hierarchies and hides them from libcontainer. The process must have its own mount namespace.
    pub(super) fn open_and_hide(instance: &str) -> io::Result<Self> {
        let root = Path::new(CGROUP_ROOT);
        let hierarchies = if root.join("cgroup.controllers").exists() {
            vec![Hierarchy::open(root, Vec::new(), true)?]
        } else {
            let mut found: Vec<(PathBuf, Vec<&str>)> = Vec::new();
            for controller in V1_CONTROLLERS {
                // Controllers that are mounted together have links to the same directory.
                let path = fs::canonicalize(root.join(controller)).map_err(|error| {
                    let text =
                        format!("no cgroup hierarchy has the {controller} controller: {error}");
                    io::Error::new(error.kind(), text)
                })?;
                match found.iter_mut().find(|(known, _)| *known == path) {
                    Some((_, controllers)) => controllers.push(controller),
                    None => found.push((path, vec![controller])),
                }
            }
            let open = |(path, controllers)| Hierarchy::open(path, controllers, false);
            let found = found
                .iter()
                .map(|(path, names)| (path.as_path(), names.clone()));
            found.map(open).collect::<io::Result<_>>()?
        };
        let swap = SwapControl::detect(root, Path::new("/proc"));
        hide(root)?;
        Ok(Self {
            instance: instance.to_owned(),
            hierarchies,
            swap,
        })
    }

    fn path_of(&self, hierarchy: &Hierarchy, sandbox: &str) -> PathBuf {
        let path = cgroup::path_of(&self.instance, sandbox);
        hierarchy.root.join(path.trim_start_matches('/'))
    }

    /// Makes the cgroups of a sandbox and sets its limits.
    pub(super) fn create(&self, sandbox: &str, limits: &SandboxLimits) -> io::Result<()> {
        for hierarchy in &self.hierarchies {
            let path = self.path_of(hierarchy, sandbox);
            fs::create_dir_all(&path)?;
            if hierarchy.is_v2 {
                let parents: Vec<_> = path.ancestors().skip(1).take(3).collect();
                for directory in parents.into_iter().rev() {
                    fs::write(directory.join("cgroup.subtree_control"), V2_CONTROLLERS)?;
                }
            }
        }
        self.set_limits(sandbox, limits)
    }

    /// Sets the limits of a sandbox.
    pub(super) fn set_limits(&self, sandbox: &str, limits: &SandboxLimits) -> io::Result<()> {
        for hierarchy in &self.hierarchies {
            let path = self.path_of(hierarchy, sandbox);
            if hierarchy.is_v2 {
                set_v2_limits(&path, limits, self.swap)?;
            }
            for controller in &hierarchy.controllers {
                set_v1_limits(&path, controller, limits, self.swap)?;
            }
        }
        Ok(())
    }

    /// Forks this process, which has a single thread, into a sandbox's cgroups. The second value is an error in a
    /// child that could not join all of the cgroups.
    pub(super) fn fork_into(&self, sandbox: &str) -> io::Result<(ForkResult, io::Result<()>)> {
        if let [hierarchy] = &self.hierarchies[..]
            && hierarchy.is_v2
        {
            return Ok((fork_in_cgroup(&self.path_of(hierarchy, sandbox))?, Ok(())));
        }
        // SAFETY: this process has a single thread, so no lock can be held by another thread in the child.
        let forked = unsafe { fork() }?;
        let mut joined = Ok(());
        if forked.is_child() {
            let mut paths = self
                .hierarchies
                .iter()
                .map(|hierarchy| self.path_of(hierarchy, sandbox));
            // 0 stands for the thread that writes.
            joined = paths.try_for_each(|path| fs::write(path.join("tasks"), "0"));
        }
        Ok((forked, joined))
    }

    /// Kills all processes in a sandbox's cgroups and removes the cgroups. Missing cgroups are no error.
    pub(super) fn remove(&self, sandbox: &str) -> io::Result<()> {
        let mut paths = self
            .hierarchies
            .iter()
            .map(|hierarchy| self.path_of(hierarchy, sandbox));
        paths.try_for_each(|path| cgroup::remove_tree(&path))
    }

    /// Kills all processes in the cgroups of the instance and removes the cgroups, and the common parent if
    /// it is empty then.
    pub(super) fn remove_all(&self) -> io::Result<()> {
        self.remove_instance(&self.instance)
    }

    /// Does the same as [`Self::remove_all`] for another instance, whose processes are dead.
    pub(super) fn remove_instance(&self, instance: &str) -> io::Result<()> {
        let roots: Vec<_> = self
            .hierarchies
            .iter()
            .map(|hierarchy| hierarchy.root.clone())
            .collect();
        cgroup::remove_instance_from(&roots, instance)
    }
}

impl Hierarchy {
    fn open(root: &Path, controllers: Vec<&'static str>, is_v2: bool) -> io::Result<Self> {
        let directory = dup_above(File::open(root)?.as_fd())?;
        Ok(Self {
            root: format!("/proc/self/fd/{}", directory.as_raw_fd()).into(),
            _directory: directory,
            controllers,
            is_v2,
        })
    }
}

/// Replaces the mounted cgroups with an empty directory, in the mount namespace of this process.
fn hide(root: &Path) -> io::Result<()> {
    umount2(root, MntFlags::MNT_DETACH)?;
    // libcontainer takes a tmpfs for the root of v1 hierarchies; this one has no controllers.
    let options = Some("mode=755,size=4k");
    mount(
        Some("none"),
        root,
        Some("tmpfs"),
        MsFlags::MS_RDONLY,
        options,
    )?;
    Ok(())
}

/// Forks this process, which has a single thread. The kernel creates the child in a cgroup of v2.
fn fork_in_cgroup(cgroup: &Path) -> io::Result<ForkResult> {
    let directory = File::open(cgroup)?;
    // SAFETY: clone_args consists of integers, for which zero is valid and means "unused".
    let mut arguments: libc::clone_args = unsafe { std::mem::zeroed() };
    arguments.flags = CLONE_INTO_CGROUP;
    arguments.exit_signal = libc::SIGCHLD as u64;
    arguments.cgroup = directory.as_raw_fd() as u64;
    // SAFETY: the pointer is valid during the call, and the size is the structure's. Without a stack or shared memory
    // the call is a fork, and this process has a single thread, so no lock can be held by another thread in the
    // child. Neither nix nor rustix has this call.
    let pid = unsafe {
        libc::syscall(
            libc::SYS_clone3,
            &raw mut arguments,
            size_of::<libc::clone_args>(),
        )
    };
    match Errno::result(pid)? {
        0 => Ok(ForkResult::Child),
        pid => Ok(ForkResult::Parent {
            child: Pid::from_raw(pid as i32),
        }),
    }
}

fn set_v2_limits(path: &Path, limits: &SandboxLimits, swap: SwapControl) -> io::Result<()> {
    let cpu = format!("{} {}", limits.cpu_quota_us, SandboxLimits::CPU_PERIOD_US);
    fs::write(path.join("memory.max"), limits.memory_bytes.to_string())?;
    if swap == SwapControl::SwapOnly {
        fs::write(path.join("memory.swap.max"), "0")?;
    }
    fs::write(path.join("cpu.max"), cpu)?;
    fs::write(path.join("pids.max"), limits.pids.to_string())
}

fn set_v1_limits(
    path: &Path,
    controller: &str,
    limits: &SandboxLimits,
    swap: SwapControl,
) -> io::Result<()> {
    let put = |name: &str, value: u64| fs::write(path.join(name), value.to_string());
    match controller {
        "memory" => {
            isol8_backend::cgroup::bound_sockets(path, limits.memory_bytes)?;
            let memory = || put("memory.limit_in_bytes", limits.memory_bytes);
            if swap != SwapControl::MemoryAndSwap {
                return memory();
            }
            // The limit on memory and swap together equals the limit on memory, so no swap is granted. The kernel
            // refuses a sum below the limit on memory at any time, so the order of the writes matters.
            let both = || put("memory.memsw.limit_in_bytes", limits.memory_bytes);
            match memory() {
                Err(error) if error.kind() == io::ErrorKind::InvalidInput => {
                    both().and_then(|()| memory())
                }
                done => done.and_then(|()| both()),
            }
        }
        "cpu" => {
            put("cpu.cfs_period_us", SandboxLimits::CPU_PERIOD_US)?;
            put("cpu.cfs_quota_us", limits.cpu_quota_us)
        }
        "pids" => put("pids.max", limits.pids.into()),
        _ => Ok(()),
    }
}

/// The kernel's means to refuse swap to a sandbox. With swap, the memory limit would
/// bound only a part of the sandbox's memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum SwapControl {
    /// No means: the kernel has no swap, or does not account for it.
    Unavailable,
    /// Cgroup v1: a limit on memory and swap together.
    MemoryAndSwap,
    /// Cgroup v2: a limit on swap only.
    SwapOnly,
}

impl SwapControl {
    /// Determines the means from the mounted cgroups and `/proc`.
    fn detect(cgroups: &Path, proc: &Path) -> Self {
        if cgroups.join("cgroup.controllers").exists() {
            // A kernel without swap has neither this file nor the cgroup's file.
            return match proc.join("swaps").exists() {
                true => Self::SwapOnly,
                false => Self::Unavailable,
            };
        }
        match cgroups.join("memory/memory.memsw.limit_in_bytes").exists() {
            true => Self::MemoryAndSwap,
            false => Self::Unavailable,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMITS: SandboxLimits = SandboxLimits {
        memory_bytes: 1 << 29,
        cpu_quota_us: 50_000,
        pids: 64,
    };

    fn written(write: impl FnOnce(&Path) -> io::Result<()>) -> Vec<(String, String)> {
        let directory = tempfile::tempdir().unwrap();
        write(directory.path()).unwrap();
        let files = fs::read_dir(directory.path()).unwrap().map(Result::unwrap);
        let read = |file: fs::DirEntry| {
            let name = file.file_name().into_string().unwrap();
            (name, fs::read_to_string(file.path()).unwrap())
        };
        let mut files: Vec<_> = files.map(read).collect();
        files.sort();
        files
    }

    fn pairs(expected: &[(&str, &str)]) -> Vec<(String, String)> {
        let owned = |(name, value): &(&str, &str)| ((*name).to_owned(), (*value).to_owned());
        expected.iter().map(owned).collect()
    }

    #[test]
    fn v1_bounds_memory_and_swap_together_and_v2_each() {
        let memory = ("memory.limit_in_bytes", "536870912");
        assert_eq!(
            written(|path| set_v1_limits(path, "memory", &LIMITS, SwapControl::Unavailable)),
            pairs(&[memory])
        );
        assert_eq!(
            written(|path| set_v1_limits(path, "memory", &LIMITS, SwapControl::MemoryAndSwap)),
            pairs(&[memory, ("memory.memsw.limit_in_bytes", "536870912")])
        );
        assert_eq!(
            written(|path| set_v2_limits(path, &LIMITS, SwapControl::SwapOnly)),
            pairs(&[
                ("cpu.max", "50000 100000"),
                ("memory.max", "536870912"),
                ("memory.swap.max", "0"),
                ("pids.max", "64"),
            ])
        );
    }

    #[test]
    fn v1_bounds_processors_and_processes() {
        assert_eq!(
            written(|path| set_v1_limits(path, "cpu", &LIMITS, SwapControl::Unavailable)),
            pairs(&[
                ("cpu.cfs_period_us", "100000"),
                ("cpu.cfs_quota_us", "50000")
            ])
        );
        assert_eq!(
            written(|path| set_v1_limits(path, "pids", &LIMITS, SwapControl::Unavailable)),
            pairs(&[("pids.max", "64")])
        );
        assert_eq!(
            written(|path| set_v1_limits(path, "cpuacct", &LIMITS, SwapControl::Unavailable)),
            []
        );
    }

    #[test]
    fn swap_control_follows_the_mounted_cgroups() {
        let (cgroups, proc) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let detect = || SwapControl::detect(cgroups.path(), proc.path());
        assert_eq!(detect(), SwapControl::Unavailable);
        fs::create_dir(cgroups.path().join("memory")).unwrap();
        let accounting = cgroups.path().join("memory/memory.memsw.limit_in_bytes");
        fs::write(accounting, "").unwrap();
        assert_eq!(detect(), SwapControl::MemoryAndSwap);
        fs::write(cgroups.path().join("cgroup.controllers"), "").unwrap();
        assert_eq!(detect(), SwapControl::Unavailable);
        fs::write(proc.path().join("swaps"), "").unwrap();
        assert_eq!(detect(), SwapControl::SwapOnly);
    }
}
