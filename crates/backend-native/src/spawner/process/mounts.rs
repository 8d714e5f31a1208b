//! The spawner's own view of the file systems.
//!
//! Every container begins with a copy of its maker's mounts, which it then takes apart, and libcontainer
//! reads the list of them. On a host with many (an engine has one or more for each of its containers) that
//! would cost more than all the rest. So the spawner keeps those only that sandboxes are made of.

use std::ffi::CString;
use std::fs;
use std::io;
use std::os::unix::ffi::OsStrExt as _;
use std::path::Path;

use nix::errno::Errno;
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sched::{CloneFlags, unshare};
use procfs::process::Process;

/// The parts of sandboxes beside the shared directories: file systems of the kernel, and files of `/etc`.
const NEEDED: [&str; 4] = ["/dev", "/etc", "/proc", "/sys"];

/// The directory that some of these files lead to. Mounts within it belong to others: engines, users, services.
const BEHIND_ETC: &str = "/run";

/// Gives this process and its children a mount namespace of their own. From the host's mounts it has those that lead to
/// one of `needed`, or are within it; mounts that the host makes later do not show there.
pub(super) fn go_apart<'a>(needed: impl Iterator<Item = &'a Path> + Clone) -> io::Result<()> {
    unshare(CloneFlags::CLONE_NEWNS)?;
    let none = None::<&Path>;
    mount(none, "/", none, MsFlags::MS_PRIVATE | MsFlags::MS_REC, none)?;
    let mounts = Process::myself().and_then(|own| own.mountinfo());
    for mounted in mounts.map_err(io::Error::other)? {
        let point = &mounted.mount_point;
        if !is_needed(point, needed.clone()) {
            // Already unmounted if it was within another.
            let _ = umount2(point, MntFlags::MNT_DETACH);
        }
    }
    Ok(())
}

/// Puts an empty file system in memory on a directory, which is created if it does not exist. Nothing of it is left
/// when the last process with these mounts has ended; containers that have it mounted keep it. It has no bound of its
/// own: only the spawner writes to it, a few kilobytes for each container.
pub(super) fn in_memory(directory: &Path) -> io::Result<()> {
    match fs::create_dir(directory) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error),
        _ => {}
    }
    let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV;
    let tmpfs = Some("tmpfs");
    mount(tmpfs, directory, tmpfs, flags, Some("mode=755"))?;
    Ok(())
}

/// Takes away what [`in_memory`] put there, and all that is mounted within it.
pub(super) fn detach(directory: &Path) -> io::Result<()> {
    Ok(umount2(directory, MntFlags::MNT_DETACH)?)
}

/// Mounts a directory or file, with all that is mounted within, as it is, but read-only.
pub(super) fn bind(source: &Path, target: &Path) -> io::Result<()> {
    let none = None::<&Path>;
    let flags = MsFlags::MS_BIND | MsFlags::MS_REC;
    mount(Some(source), target, none, flags, none)?;
    restrict(target)
}

/// Makes a mount, and what is mounted within, read-only, without devices and set-user-ID programs.
fn restrict(point: &Path) -> io::Result<()> {
    let point = CString::new(point.as_os_str().as_bytes())?;
    // SAFETY: a structure of integers, for which zero means "leave it".
    let mut wanted: libc::mount_attr = unsafe { std::mem::zeroed() };
    wanted.attr_set = libc::MOUNT_ATTR_RDONLY | libc::MOUNT_ATTR_NOSUID | libc::MOUNT_ATTR_NODEV;
    // SAFETY: the path ends with a zero byte, and the structure is as long as it says.
    let done = unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            libc::AT_FDCWD,
            point.as_ptr(),
            libc::AT_RECURSIVE,
            &raw const wanted,
            size_of::<libc::mount_attr>(),
        )
    };
    Errno::result(done)?;
    Ok(())
}

fn is_needed<'a>(point: &Path, needed: impl Iterator<Item = &'a Path>) -> bool {
    let mut needed = NEEDED.iter().map(Path::new).chain(needed);
    point == Path::new(BEHIND_ETC)
        || needed.any(|path| path.starts_with(point) || point.starts_with(path))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_leads_to_something_needed_or_is_within_it_stays() {
        let needed = [Path::new("/usr"), Path::new("/var/lib/isol8/native/1")];
        let stays = |point: &str| is_needed(Path::new(point), needed.into_iter());
        for point in [
            "/",
            "/usr",
            "/usr/local",
            "/var",
            "/var/lib/isol8",
            "/proc",
            "/dev/pts",
            "/run",
        ] {
            assert!(stays(point), "{point}");
        }
        for point in [
            "/home",
            "/usrlocal",
            "/var/lib/docker/overlay2/x/merged",
            "/var/lib/isol8/native/2",
            "/run/docker/netns/default",
            "/run/containerd/io.containerd.runtime.v2.task/x/rootfs",
            "/run/user/1000",
        ] {
            assert!(!stays(point), "{point}");
        }
    }
}
