//! The spawner's mount namespace, and mount operations.
//!
//! Every container begins with a copy of its maker's mounts, which are then unmounted, and libcontainer
//! reads the list of mounts. On a host with many mounts (a container engine has at least one for each container) this
//! would cost more than all other steps. So the spawner keeps only the mounts that sandboxes need.

use std::ffi::CString;
use std::fs;
use std::io;
use std::os::unix::ffi::OsStrExt as _;
use std::path::Path;

use nix::errno::Errno;
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sched::{CloneFlags, unshare};
use procfs::process::Process;

/// Paths that sandboxes need in addition to the shared directories: file systems of the kernel, and files of
/// `/etc`.
const NEEDED_PATHS: [&str; 4] = ["/dev", "/etc", "/proc", "/sys"];

/// Target of links in `/etc`. Mounts within this directory belong to others (engines, users, services), and are not
/// needed.
const RUN_DIRECTORY: &str = "/run";

/// Moves this process and its future children to a new mount namespace. The namespace keeps only those mounts of the
/// host that contain one of the `needed` paths or are within one. Later mounts of the host do not appear in it.
pub(super) fn isolate_mounts<'a>(needed: impl Iterator<Item = &'a Path> + Clone) -> io::Result<()> {
    unshare(CloneFlags::CLONE_NEWNS)?;
    let none = None::<&Path>;
    mount(none, "/", none, MsFlags::MS_PRIVATE | MsFlags::MS_REC, none)?;
    let mounts = Process::myself().and_then(|own| own.mountinfo());
    for mounted in mounts.map_err(io::Error::other)? {
        let point = &mounted.mount_point;
        if !is_needed(point, needed.clone()) {
            // Fails if the mount was within another one that is already unmounted.
            let _ = umount2(point, MntFlags::MNT_DETACH);
        }
    }
    Ok(())
}

/// Mounts an empty tmpfs on a directory, and creates a missing directory. The tmpfs disappears when the last process
/// in this mount namespace has ended; containers that have it mounted keep it. The tmpfs has
/// no size limit: only the spawner writes to it, a few kilobytes for each container.
pub(super) fn mount_tmpfs(directory: &Path) -> io::Result<()> {
    match fs::create_dir(directory) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error),
        _ => {}
    }
    let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV;
    let tmpfs = Some("tmpfs");
    mount(tmpfs, directory, tmpfs, flags, Some("mode=755"))?;
    Ok(())
}

/// Unmounts a directory, and everything that is mounted within it.
pub(super) fn detach(directory: &Path) -> io::Result<()> {
    Ok(umount2(directory, MntFlags::MNT_DETACH)?)
}

/// Bind-mounts a directory or file read-only, including all mounts within it.
pub(super) fn bind_read_only(source: &Path, target: &Path) -> io::Result<()> {
    let none = None::<&Path>;
    let flags = MsFlags::MS_BIND | MsFlags::MS_REC;
    mount(Some(source), target, none, flags, none)?;
    restrict(target)
}

/// Makes a mount, and all mounts within it, read-only, without devices and set-user-ID programs.
fn restrict(point: &Path) -> io::Result<()> {
    let point = CString::new(point.as_os_str().as_bytes())?;
    // SAFETY: mount_attr consists of integers, for which zero is valid and means "unchanged".
    let mut wanted: libc::mount_attr = unsafe { std::mem::zeroed() };
    wanted.attr_set = libc::MOUNT_ATTR_RDONLY | libc::MOUNT_ATTR_NOSUID | libc::MOUNT_ATTR_NODEV;
    // SAFETY: the path is a C string, the pointer to the structure is valid during the call, and the size is the
    // structure's. Neither nix nor rustix has this call.
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
    let mut needed = NEEDED_PATHS.iter().map(Path::new).chain(needed);
    point == Path::new(RUN_DIRECTORY)
        || needed.any(|path| path.starts_with(point) || point.starts_with(path))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mounts_that_contain_a_needed_path_or_are_within_one_stay() {
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
