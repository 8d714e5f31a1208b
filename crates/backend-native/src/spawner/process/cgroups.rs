//! Cgroups of an instance's sandboxes, as the spawner makes and fills them.
//!
//! libcontainer could do this, but it moves each container's first process into its cgroup, and the kernel lets a
//! process that moves another wait for a grace period: 5 to 20 ms. A thread that moves itself on v1 does not wait
//! (`cgroup_procs_write_start` in `kernel/cgroup/cgroup.c`), nor does a process that is born in its cgroup on v2
//! (`CLONE_INTO_CGROUP`). So the cgroup file systems are hidden from libcontainer, and containers are made by processes
//! that are in the right cgroup.

use std::fs::{self, File};
use std::io;
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::unistd::{ForkResult, Pid, fork};

use super::above_the_inherited;
use crate::cgroup::{self, CGROUP_ROOT};
use crate::spawner::message::SandboxLimits;

/// Controllers that a sandbox's limits and figures come from.
const CONTROLLERS: [&str; 4] = ["memory", "cpu", "cpuacct", "pids"];

/// The same on v2, where `cpu` counts too.
const UNIFIED_CONTROLLERS: &str = "+memory +cpu +pids";

/// From `linux/sched.h`; libc's own type is too narrow for the value.
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
    /// A way to it that stays when it is hidden.
    root: PathBuf,
    _held: OwnedFd,
    /// On v1, what it controls.
    controllers: Vec<&'static str>,
    unified: bool,
}

impl Cgroups {
    /// Finds the mounted hierarchies, takes hold of them and hides them from the rest of this
    /// process, which must have a mount namespace of its own.
    pub(super) fn take(instance: &str) -> io::Result<Self> {
        let root = Path::new(CGROUP_ROOT);
        let hierarchies = if root.join("cgroup.controllers").exists() {
            vec![Hierarchy::hold(root, Vec::new(), true)?]
        } else {
            let mut found: Vec<(PathBuf, Vec<&str>)> = Vec::new();
            for controller in CONTROLLERS {
                // Controllers that are mounted together have links to one directory.
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
            let hold = |(path, controllers)| Hierarchy::hold(path, controllers, false);
            let found = found
                .iter()
                .map(|(path, names)| (path.as_path(), names.clone()));
            found.map(hold).collect::<io::Result<_>>()?
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

    /// Makes a sandbox's cgroups, with its limits.
    pub(super) fn create(&self, sandbox: &str, limits: &SandboxLimits) -> io::Result<()> {
        for hierarchy in &self.hierarchies {
            let path = self.path_of(hierarchy, sandbox);
            fs::create_dir_all(&path)?;
            if hierarchy.unified {
                let above: Vec<_> = path.ancestors().skip(1).take(3).collect();
                for directory in above.into_iter().rev() {
                    fs::write(
                        directory.join("cgroup.subtree_control"),
                        UNIFIED_CONTROLLERS,
                    )?;
                }
            }
        }
        self.set_limits(sandbox, limits)
    }

    /// Makes limits hold.
    pub(super) fn set_limits(&self, sandbox: &str, limits: &SandboxLimits) -> io::Result<()> {
        for hierarchy in &self.hierarchies {
            let path = self.path_of(hierarchy, sandbox);
            if hierarchy.unified {
                set_unified(&path, limits, self.swap)?;
            }
            for controller in &hierarchy.controllers {
                set(&path, controller, limits, self.swap)?;
            }
        }
        Ok(())
    }

    /// Forks this process, which has a single thread, into a sandbox's cgroups. In the child, an
    /// error says that it is not in all of them.
    pub(super) fn fork_into(&self, sandbox: &str) -> io::Result<(ForkResult, io::Result<()>)> {
        if let [hierarchy] = &self.hierarchies[..]
            && hierarchy.unified
        {
            return Ok((fork_born_in(&self.path_of(hierarchy, sandbox))?, Ok(())));
        }
        // SAFETY: a single thread, so the child is a whole copy.
        let forked = unsafe { fork() }?;
        let mut joined = Ok(());
        if forked.is_child() {
            let mut paths = self
                .hierarchies
                .iter()
                .map(|one| self.path_of(one, sandbox));
            // 0 stands for the writer.
            joined = paths.try_for_each(|path| fs::write(path.join("tasks"), "0"));
        }
        Ok((forked, joined))
    }

    /// Kills everything in a sandbox's cgroups and removes them. Nothing there is fine.
    pub(super) fn remove(&self, sandbox: &str) -> io::Result<()> {
        let mut paths = self
            .hierarchies
            .iter()
            .map(|one| self.path_of(one, sandbox));
        paths.try_for_each(|path| cgroup::remove_tree(&path))
    }

    /// Kills everything in all cgroups of the instance and removes them, and the common parent where
    /// nothing else is in it.
    pub(super) fn remove_all(&self) -> io::Result<()> {
        self.remove_instance(&self.instance)
    }

    /// The same for another instance, whose processes are dead.
    pub(super) fn remove_instance(&self, instance: &str) -> io::Result<()> {
        let roots: Vec<_> = self
            .hierarchies
            .iter()
            .map(|one| one.root.clone())
            .collect();
        cgroup::remove_instance_from(&roots, instance)
    }
}

impl Hierarchy {
    fn hold(root: &Path, controllers: Vec<&'static str>, unified: bool) -> io::Result<Self> {
        let held = above_the_inherited(std::os::fd::AsFd::as_fd(&File::open(root)?))?;
        Ok(Self {
            root: format!("/proc/self/fd/{}", held.as_raw_fd()).into(),
            _held: held,
            controllers,
            unified,
        })
    }
}

/// Replaces the mounted cgroups by an empty directory, in the mount namespace of this process.
fn hide(root: &Path) -> io::Result<()> {
    umount2(root, MntFlags::MNT_DETACH)?;
    // libcontainer takes a tmpfs for v1, here one without any controller.
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

fn fork_born_in(cgroup: &Path) -> io::Result<ForkResult> {
    let directory = File::open(cgroup)?;
    // SAFETY: a structure of integers, for which zero means "not wanted".
    let mut arguments: libc::clone_args = unsafe { std::mem::zeroed() };
    arguments.flags = CLONE_INTO_CGROUP;
    arguments.exit_signal = libc::SIGCHLD as u64;
    arguments.cgroup = directory.as_raw_fd() as u64;
    // SAFETY: the structure is as long as it says. Without a stack or shared memory the call is a
    // fork, and this process has a single thread.
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

fn set_unified(path: &Path, limits: &SandboxLimits, swap: SwapControl) -> io::Result<()> {
    let cpu = format!("{} {}", limits.cpu_quota_us, SandboxLimits::CPU_PERIOD_US);
    fs::write(path.join("memory.max"), limits.memory_bytes.to_string())?;
    if swap == SwapControl::Alone {
        fs::write(path.join("memory.swap.max"), "0")?;
    }
    fs::write(path.join("cpu.max"), cpu)?;
    fs::write(path.join("pids.max"), limits.pids.to_string())
}

fn set(path: &Path, controller: &str, limits: &SandboxLimits, swap: SwapControl) -> io::Result<()> {
    let put = |name: &str, value: u64| fs::write(path.join(name), value.to_string());
    match controller {
        "memory" => {
            isol8_backend::cgroup::bound_sockets(path, limits.memory_bytes)?;
            let memory = || put("memory.limit_in_bytes", limits.memory_bytes);
            if swap != SwapControl::Together {
                return memory();
            }
            // As much as memory alone, so none is swap. The sum may never be the smaller one.
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

/// How the kernel can be kept from granting swap to a sandbox, whose memory limit would otherwise
/// bound only a part of what it holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum SwapControl {
    /// Not at all: it has no swap, or does not account for it.
    None,
    /// Cgroup v1: a bound on memory and swap together.
    Together,
    /// Cgroup v2: a bound on swap alone.
    Alone,
}

impl SwapControl {
    /// Finds out from the mounted cgroups and `/proc`.
    fn detect(cgroups: &Path, proc: &Path) -> Self {
        if cgroups.join("cgroup.controllers").exists() {
            // A kernel without swap has neither this file nor the cgroup's.
            let has_swap = proc.join("swaps").exists();
            return if has_swap { Self::Alone } else { Self::None };
        }
        let accounted = cgroups.join("memory/memory.memsw.limit_in_bytes").exists();
        if accounted {
            Self::Together
        } else {
            Self::None
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
            written(|path| set(path, "memory", &LIMITS, SwapControl::None)),
            pairs(&[memory])
        );
        assert_eq!(
            written(|path| set(path, "memory", &LIMITS, SwapControl::Together)),
            pairs(&[memory, ("memory.memsw.limit_in_bytes", "536870912")])
        );
        assert_eq!(
            written(|path| set_unified(path, &LIMITS, SwapControl::Alone)),
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
            written(|path| set(path, "cpu", &LIMITS, SwapControl::None)),
            pairs(&[
                ("cpu.cfs_period_us", "100000"),
                ("cpu.cfs_quota_us", "50000")
            ])
        );
        assert_eq!(
            written(|path| set(path, "pids", &LIMITS, SwapControl::None)),
            pairs(&[("pids.max", "64")])
        );
        assert_eq!(
            written(|path| set(path, "cpuacct", &LIMITS, SwapControl::None)),
            []
        );
    }

    #[test]
    fn swap_control_follows_the_mounted_cgroups() {
        let (cgroups, proc) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let detect = || SwapControl::detect(cgroups.path(), proc.path());
        assert_eq!(detect(), SwapControl::None);
        fs::create_dir(cgroups.path().join("memory")).unwrap();
        let accounting = cgroups.path().join("memory/memory.memsw.limit_in_bytes");
        fs::write(accounting, "").unwrap();
        assert_eq!(detect(), SwapControl::Together);
        fs::write(cgroups.path().join("cgroup.controllers"), "").unwrap();
        assert_eq!(detect(), SwapControl::None);
        fs::write(proc.path().join("swaps"), "").unwrap();
        assert_eq!(detect(), SwapControl::Alone);
    }
}
