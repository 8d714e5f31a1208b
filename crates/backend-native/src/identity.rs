//! The user and group ids of the host behind those inside a sandbox.

use std::fs;
use std::io;
use std::path::Path;

use isol8_protocol::SANDBOX_UID;
use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};
use nix::sys::wait::{WaitStatus, waitpid};
use nix::unistd::{ForkResult, Gid, Uid, fork};
use serde::{Deserialize, Serialize};

/// First id of a range that Linux distributions leave unused: <https://systemd.io/UIDS-GIDS/#summary> lists 1879048192
/// to 2147352575.
const FIRST_UNUSED_ID: u32 = 0x7000_0000;

/// Ids of one sandbox: as many as programs expect a system to have.
const IDS_PER_SANDBOX: u32 = 0x1_0000;

/// The privileges of the spawner, found out once at its start.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Identity {
    /// The spawner runs as root: every sandbox gets ids of its own, and limits are enforced.
    Root,
    /// The spawner runs as an ordinary user, as root of a user namespace with one single id.
    User,
}

impl Identity {
    /// Finds out, and makes an ordinary user root of a namespace. Only sound with one thread.
    ///
    /// # Errors
    /// A text that names the kernel's refusal and the fix.
    pub fn assume() -> Result<Self, String> {
        let (uid, gid) = (Uid::effective(), Gid::effective());
        if uid.is_root() {
            return Ok(Self::Root);
        }
        enter_user_namespace(uid, gid).map_err(|error| {
            format!(
                "an ordinary user needs user namespaces, which this kernel refuses ({error}): \
                 run as root, or allow them with sysctl kernel.unprivileged_userns_clone=1 or \
                 kernel.apparmor_restrict_unprivileged_userns=0"
            )
        })?;
        Ok(Self::User)
    }

    /// First host id of a sandbox and how many there are. A sandbox's name decides, so that two of
    /// them rarely share ids; where they do, namespaces still keep them apart.
    #[must_use]
    pub fn id_range(self, sandbox: &str) -> (u32, u32) {
        match self {
            Self::Root => {
                // 12 bits of the name: the ranges fill the unused ids exactly.
                let slot = sandbox
                    .get(..3)
                    .and_then(|digits| u32::from_str_radix(digits, 16).ok())
                    .unwrap_or(0);
                (FIRST_UNUSED_ID + slot * IDS_PER_SANDBOX, IDS_PER_SANDBOX)
            }
            Self::User => (0, 1),
        }
    }

    /// User and group ids, on the host, of a sandbox's root and of its user code.
    #[must_use]
    pub fn owners(self, sandbox: &str) -> (u32, u32) {
        let (first, _) = self.id_range(sandbox);
        match self {
            Self::Root => (first, first + SANDBOX_UID),
            Self::User => (first, first),
        }
    }

    /// Returns the limits that cannot be enforced, for the operator; empty if all can.
    #[must_use]
    pub fn shortcomings(self) -> Vec<String> {
        match self {
            Self::Root => Vec::new(),
            Self::User => vec![
                "memory, CPU and process limits are not enforced: cgroups need root".to_owned(),
                "user code runs as uid 0 of its user namespace, without capabilities: \
                 a uid of its own needs root"
                    .to_owned(),
                "device files such as /dev/null are the host's: user code can lock them, and see when they are \
                 opened, not by which program; others need root"
                    .to_owned(),
            ],
        }
    }
}

/// Becomes root of new user, mount, cgroup and PID namespaces, as the first process of the latter:
/// when it ends, however it ends, the kernel ends every sandbox with it.
fn enter_user_namespace(uid: Uid, gid: Gid) -> io::Result<()> {
    unshare(
        CloneFlags::CLONE_NEWUSER
            | CloneFlags::CLONE_NEWNS
            | CloneFlags::CLONE_NEWCGROUP
            | CloneFlags::CLONE_NEWPID,
    )?;
    // An unprivileged process must give up setgroups before it may map its group:
    // user_namespaces(7).
    fs::write("/proc/self/setgroups", "deny")?;
    fs::write("/proc/self/uid_map", format!("0 {uid} 1"))?;
    fs::write("/proc/self/gid_map", format!("0 {gid} 1"))?;
    become_first_process()?;
    mount_anew("proc", "/proc")?;
    // libcontainer fails on v1 hierarchies that it cannot write to, and goes without on v2. So this
    // process gets a v2 one; where that is mounted already, the kernel refuses another.
    if Path::new("/sys/fs/cgroup/cgroup.controllers").exists() {
        return Ok(());
    }
    mount_anew("cgroup2", "/sys/fs/cgroup")
}

/// Forks; the child goes on, and the parent ends when the child does.
fn become_first_process() -> io::Result<()> {
    // SAFETY: this process has one thread, so the child may do anything.
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
            // SAFETY: ends the process at once; what it would clean up is the child's.
            unsafe { nix::libc::_exit(code) }
        }
    }
}

fn mount_anew(file_system: &str, place: &str) -> io::Result<()> {
    let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC;
    let none = None::<&str>;
    mount(Some(file_system), place, Some(file_system), flags, none)?;
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
