//! Mapping of the user and group ids inside a sandbox to ids of the host.

use std::fs;
use std::io;
use std::path::Path;

use isol8_protocol::SANDBOX_UID;
use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};
use nix::sys::wait::{WaitStatus, waitpid};
use nix::unistd::{ForkResult, Gid, Uid, fork};
use serde::{Deserialize, Serialize};

/// First id of a range that Linux distributions leave unused:
/// <https://systemd.io/UIDS-GIDS/#summary> lists 1879048192 to 2147352575.
const FIRST_UNUSED_ID: u32 = 0x7000_0000;

/// Number of ids of one sandbox: as many as programs expect a system to have.
const IDS_PER_SANDBOX: u32 = 0x1_0000;

/// Privileges of the spawner, determined once at its start.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Identity {
    /// The spawner runs as root: every sandbox gets its own ids, and limits are enforced.
    Root,
    /// The spawner runs as an ordinary user, as root of a user namespace with a single id.
    User,
}

impl Identity {
    /// Determines the privileges, and enters a user namespace as its root if the user is not root. Only sound in a
    /// process with one thread.
    ///
    /// # Errors
    /// A text with the kernel's error and the fix.
    pub fn assume() -> Result<Self, String> {
        let (uid, gid) = (Uid::effective(), Gid::effective());
        if uid.is_root() {
            return Ok(Self::Root);
        }
        enter_user_namespace(uid, gid).map_err(|error| {
            format!(
                "an ordinary user needs user namespaces, which this kernel refuses ({error}); \
                 run as root, or allow user namespaces with sysctl kernel.unprivileged_userns_clone=1 or \
                 kernel.apparmor_restrict_unprivileged_userns=0"
            )
        })?;
        Ok(Self::User)
    }

    /// Returns the first host id of a sandbox and the number of its ids. The range is derived from the sandbox's name,
    /// so two sandboxes rarely share ids; if they do, namespaces still separate them.
    #[must_use]
    pub fn id_range(self, sandbox: &str) -> (u32, u32) {
        match self {
            Self::Root => {
                // The first 12 bits of the name select one of 4096 ranges, which fill the unused ids exactly.
                let slot = sandbox
                    .get(..3)
                    .and_then(|digits| u32::from_str_radix(digits, 16).ok())
                    .unwrap_or(0);
                (FIRST_UNUSED_ID + slot * IDS_PER_SANDBOX, IDS_PER_SANDBOX)
            }
            Self::User => (0, 1),
        }
    }

    /// Returns the host ids of a sandbox's root and of its user code. User id and group id are the same.
    #[must_use]
    pub fn owners(self, sandbox: &str) -> (u32, u32) {
        let (first, _) = self.id_range(sandbox);
        match self {
            Self::Root => (first, first + SANDBOX_UID),
            Self::User => (first, first),
        }
    }

    /// Returns texts for the operator about the limits and isolation that cannot be enforced. Empty for root.
    #[must_use]
    pub fn shortcomings(self) -> Vec<String> {
        match self {
            Self::Root => Vec::new(),
            Self::User => vec![
                "memory, CPU and process limits are not enforced: cgroups need root".to_owned(),
                "user code runs as uid 0 of its user namespace, without capabilities: \
                 a separate uid needs root"
                    .to_owned(),
                "device files such as /dev/null are shared with the host: user code can lock them, and can see when \
                 they are opened, but not by which program; separate device files need root"
                    .to_owned(),
            ],
        }
    }
}

/// Becomes root of new user, mount, cgroup and PID namespaces, as the first process of the PID namespace:
/// when this process ends in whatever way, the kernel ends every sandbox with it.
fn enter_user_namespace(uid: Uid, gid: Gid) -> io::Result<()> {
    unshare(
        CloneFlags::CLONE_NEWUSER
            | CloneFlags::CLONE_NEWNS
            | CloneFlags::CLONE_NEWCGROUP
            | CloneFlags::CLONE_NEWPID,
    )?;
    // An unprivileged process must disable setgroups before it may map its group: user_namespaces(7).
    fs::write("/proc/self/setgroups", "deny")?;
    fs::write("/proc/self/uid_map", format!("0 {uid} 1"))?;
    fs::write("/proc/self/gid_map", format!("0 {gid} 1"))?;
    become_first_process()?;
    mount_fresh("proc", "/proc")?;
    // libcontainer fails on cgroup v1 hierarchies that it cannot write to, but works without cgroups on v2. So this
    // process mounts a v2 hierarchy. If one is mounted already, the kernel refuses another.
    if Path::new("/sys/fs/cgroup/cgroup.controllers").exists() {
        return Ok(());
    }
    mount_fresh("cgroup2", "/sys/fs/cgroup")
}

/// Forks. The child continues; the parent waits for it and exits with its exit code.
fn become_first_process() -> io::Result<()> {
    // SAFETY: this process has one thread, so no lock can be held by another thread in the child.
    match unsafe { fork() }? {
        ForkResult::Child => {
            rustix::process::set_parent_process_death_signal(Some(rustix::process::Signal::KILL))?;
            Ok(())
        }
        ForkResult::Parent { child } => {
            let code = match waitpid(child, None) {
                Ok(WaitStatus::Exited(_, code)) => code,
                _ => 1,
            };
            // SAFETY: _exit has no preconditions. No destructor runs: all resources now belong to the child.
            unsafe { nix::libc::_exit(code) }
        }
    }
}

fn mount_fresh(file_system: &str, target: &str) -> io::Result<()> {
    let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC;
    let none = None::<&str>;
    mount(Some(file_system), target, Some(file_system), flags, none)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_ranges_of_root_stay_within_the_unused_ids() {
        assert_eq!(Identity::Root.id_range("000a"), (0x7000_0000, 0x1_0000));
        let (first, count) = Identity::Root.id_range("fff0");
        assert_eq!(first + (count - 1), 0x7fff_ffff);
        let user = 0x7001_0000 + SANDBOX_UID;
        assert_eq!(Identity::Root.owners("001a"), (0x7001_0000, user));
        assert_eq!(Identity::User.owners("001a"), (0, 0));
    }
}
