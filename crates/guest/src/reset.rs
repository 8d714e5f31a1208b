//! Making the sandbox as new: nothing that a run left may be there for the next.
//!
//! The directory at the top of each writable place stays, and with it whatever its owner can set: mode,
//! extended attributes, inode flags and times. So these are set back too.
//!
//! All of this happens while no process but the guest lives, so nothing changes underneath. Trees
//! are emptied without recursion: a directory that still holds something is moved up to the top
//! and its turn comes later. So two descriptors do for any depth, and no path grows long.

use std::ffi::{CStr, CString};
use std::fs;
use std::os::fd::AsRawFd as _;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;

use isol8_protocol::Failure;
use nix::dir::Dir;
use nix::errno::Errno;
use nix::fcntl::{OFlag, RenameFlags, renameat2};
use nix::sys::stat::{FchmodatFlags, Mode, UtimensatFlags, fchmodat, utimensat};
use nix::sys::time::TimeSpec;
use nix::unistd::{UnlinkatFlags, unlinkat};

use crate::failure::internal;
use crate::lockdown::Privileges;

/// Directories that user code may write to, if they exist.
const WRITABLE: [&str; 4] = ["/sandbox", "/tmp", "/dev/shm", QUEUES];

/// Paths that user code owns, and whose attributes it may change, if it has the guest's user id. The first one is a
/// directory whose content is the kernel's.
const OWNED: [&str; 2] = ["/dev/pts", "/dev/pts/ptmx"];

/// The directory that shows POSIX message queues, once mounted.
const QUEUES: &str = "/dev/mqueue";

/// `XATTR_LIST_MAX` of `linux/limits.h`.
const MAX_ATTRIBUTE_NAMES: usize = 65_536;

/// `MQUEUE_MAGIC` of `linux/magic.h`.
const QUEUES_MAGIC: i64 = 0x1980_0202;

/// How a directory of a writable place is opened.
const DIRECTORY: OFlag = OFlag::O_RDONLY
    .union(OFlag::O_DIRECTORY)
    .union(OFlag::O_NOFOLLOW)
    .union(OFlag::O_CLOEXEC);

/// A writable place, and what its directory began with.
#[derive(Debug)]
struct Place {
    path: &'static str,
    mode: u32,
    /// Inode flags (`FS_IOC_GETFLAGS`), where its file system has them.
    flags: Option<libc::c_int>,
}

/// The writable places as they were before any user code ran.
#[derive(Debug)]
pub(crate) struct Places {
    writable: Vec<Place>,
    /// Places that user code cannot write to although it has their owner's id.
    owned: Vec<Place>,
}

impl Places {
    pub(crate) fn record(privileges: Privileges) -> Self {
        let owned: &[&str] = if privileges.shared_uid() { &OWNED } else { &[] };
        Self {
            writable: WRITABLE.into_iter().filter_map(Place::directory).collect(),
            owned: owned.iter().copied().filter_map(Place::of).collect(),
        }
    }

    /// Whether message queues can be listed, and so removed.
    pub(crate) fn lists_queues() -> bool {
        let Ok(path) = CString::new(QUEUES) else {
            return false;
        };
        // SAFETY: `statfs` is plain data, for which zero is a value.
        let mut found: libc::statfs = unsafe { std::mem::zeroed() };
        // SAFETY: the path ends in a zero byte, and the result is valid through the call.
        let result = unsafe { libc::statfs(path.as_ptr(), &raw mut found) };
        result == 0 && found.f_type == QUEUES_MAGIC
    }

    /// Empties all of them, and removes System V IPC objects. No other process may live.
    pub(crate) fn clear(&self, privileges: Privileges) -> Result<(), Failure> {
        let acting = |error| internal("acting as the sandbox user failed", error);
        for place in &self.writable {
            privileges
                .as_owner(|| place.clear())
                .map_err(acting)?
                .map_err(|error| internal(&format!("{} cannot be emptied", place.path), error))?;
        }
        for place in &self.owned {
            let restored = place.restore_mode().and_then(|()| place.restore_times());
            restored
                .map_err(|error| internal(&format!("{} cannot be set back", place.path), error))?;
        }
        privileges
            .as_effective_user(remove_ipc)
            .map_err(acting)?
            .map_err(|error| internal("shared memory cannot be removed", error))
    }
}

impl Place {
    fn of(path: &'static str) -> Option<Self> {
        let metadata = fs::symlink_metadata(path).ok()?;
        Some(Self {
            path,
            mode: metadata.mode() & 0o7777,
            flags: None,
        })
    }

    fn directory(path: &'static str) -> Option<Self> {
        let directory = Dir::open(path, DIRECTORY, Mode::empty()).ok()?;
        let flags = flags_of(&directory);
        Self::of(path).map(|place| Self { flags, ..place })
    }

    fn clear(&self) -> nix::Result<()> {
        // Before the mode: an access list is a part of it.
        if self.path != QUEUES {
            remove_attributes(Path::new(self.path))?;
        }
        self.restore_mode()?;
        let mut directory = Dir::open(self.path, DIRECTORY, Mode::empty())?;
        self.restore_flags(&directory)?;
        empty(&mut directory)?;
        // At last, because emptying it changes its times as well.
        self.restore_times()
    }

    fn restore_mode(&self) -> nix::Result<()> {
        if fs::symlink_metadata(self.path).is_ok_and(|now| now.mode() & 0o7777 == self.mode) {
            return Ok(());
        }
        let mode = Mode::from_bits_truncate(self.mode);
        fchmodat(
            nix::fcntl::AT_FDCWD,
            self.path,
            mode,
            FchmodatFlags::NoFollowSymlink,
        )
    }

    fn restore_times(&self) -> nix::Result<()> {
        let now = &TimeSpec::UTIME_NOW;
        let link = UtimensatFlags::NoFollowSymlink;
        utimensat(nix::fcntl::AT_FDCWD, self.path, now, now, link)
    }

    fn restore_flags(&self, directory: &Dir) -> nix::Result<()> {
        match self.flags {
            Some(flags) if flags_of(directory) != Some(flags) => {
                // SAFETY: the call reads one `int`, whatever type its number names.
                let set = unsafe {
                    libc::ioctl(
                        directory.as_raw_fd(),
                        libc::FS_IOC_SETFLAGS,
                        &raw const flags,
                    )
                };
                Errno::result(set).map(drop)
            }
            _ => Ok(()),
        }
    }
}

/// Inode flags of a directory. Not every file system has them, nor `tmpfs` before Linux 6.0.
fn flags_of(directory: &Dir) -> Option<libc::c_int> {
    let mut flags = 0;
    // SAFETY: the call writes one `int`, whatever type its number names.
    let got = unsafe { libc::ioctl(directory.as_raw_fd(), libc::FS_IOC_GETFLAGS, &raw mut flags) };
    (got == 0).then_some(flags)
}

/// Removes a place's extended attributes and access lists, which its owner can have set.
fn remove_attributes(path: &Path) -> nix::Result<()> {
    let path = CString::new(path.as_os_str().as_bytes()).map_err(|_| Errno::EINVAL)?;
    let mut names = vec![0_u8; MAX_ATTRIBUTE_NAMES];
    // SAFETY: the path ends in a zero byte, and the buffer is as long as is said.
    let length = unsafe { libc::llistxattr(path.as_ptr(), names.as_mut_ptr().cast(), names.len()) };
    let length = usize::try_from(Errno::result(length)?).unwrap_or(0);
    for name in names[..length].split_inclusive(|byte| *byte == 0) {
        let name = CStr::from_bytes_with_nul(name).map_err(|_| Errno::EINVAL)?;
        // SAFETY: both end in a zero byte.
        Errno::result(unsafe { libc::lremovexattr(path.as_ptr(), name.as_ptr()) })?;
    }
    Ok(())
}

/// Removes all that a directory holds.
fn empty(top: &mut Dir) -> nix::Result<()> {
    let mut serial = 0;
    loop {
        let names = names(top)?;
        if names.is_empty() {
            return Ok(());
        }
        for name in &names {
            match unlinkat(&*top, name.as_c_str(), UnlinkatFlags::NoRemoveDir) {
                Ok(()) | Err(Errno::ENOENT) => continue,
                Err(Errno::EISDIR) => {}
                Err(error) => return Err(error),
            }
            if unlinkat(&*top, name.as_c_str(), UnlinkatFlags::RemoveDir).is_ok() {
                continue;
            }
            hollow(top, name, &mut serial)?;
            unlinkat(&*top, name.as_c_str(), UnlinkatFlags::RemoveDir)?;
        }
    }
}

/// Leaves the directory `name` of `top` without content: what is not a directory is removed, what
/// cannot be removed at once is moved up to `top`.
fn hollow(top: &Dir, name: &CStr, serial: &mut u64) -> nix::Result<()> {
    let mut inner = Dir::openat(top, name, DIRECTORY, Mode::empty())?;
    loop {
        let names = names(&mut inner)?;
        if names.is_empty() {
            return Ok(());
        }
        for name in &names {
            match unlinkat(&inner, name.as_c_str(), UnlinkatFlags::NoRemoveDir) {
                Err(Errno::EISDIR) => {}
                other => {
                    other?;
                    continue;
                }
            }
            if unlinkat(&inner, name.as_c_str(), UnlinkatFlags::RemoveDir).is_err() {
                move_up(&inner, name, top, serial)?;
            }
        }
    }
}

fn move_up(from: &Dir, name: &CStr, top: &Dir, serial: &mut u64) -> nix::Result<()> {
    loop {
        *serial += 1;
        let free = format!(".isol8-{serial}");
        match renameat2(
            from,
            name,
            top,
            free.as_str(),
            RenameFlags::RENAME_NOREPLACE,
        ) {
            Err(Errno::EEXIST) => {}
            other => return other,
        }
    }
}

/// How many names are held at once: enough to make reading cheap, few enough to bound memory.
const BATCH: usize = 4096;

fn names(directory: &mut Dir) -> nix::Result<Vec<CString>> {
    let mut names = Vec::new();
    for entry in directory.iter() {
        let name = entry?.file_name().to_owned();
        if name.as_c_str() != c"." && name.as_c_str() != c".." {
            names.push(name);
        }
        if names.len() == BATCH {
            break;
        }
    }
    // Dropping the iterator rewound the directory: the next call reads what is there then.
    Ok(names)
}

/// Removes shared memory segments, message queues and semaphore sets.
fn remove_ipc() -> nix::Result<()> {
    for id in ipc_objects("shm") {
        // SAFETY: removal reads no third argument.
        ignore_gone(unsafe { libc::shmctl(id, libc::IPC_RMID, std::ptr::null_mut()) })?;
    }
    for id in ipc_objects("msg") {
        // SAFETY: as above.
        ignore_gone(unsafe { libc::msgctl(id, libc::IPC_RMID, std::ptr::null_mut()) })?;
    }
    for id in ipc_objects("sem") {
        // SAFETY: as above; the semaphore's number is not looked at.
        ignore_gone(unsafe { libc::semctl(id, 0, libc::IPC_RMID) })?;
    }
    Ok(())
}

fn ignore_gone(result: i32) -> nix::Result<()> {
    match Errno::result(result) {
        Ok(_) | Err(Errno::EINVAL | Errno::EIDRM) => Ok(()),
        Err(error) => Err(error),
    }
}

/// Ids of this namespace's objects of one kind. A kernel without them has no such file.
fn ipc_objects(kind: &str) -> Vec<i32> {
    let table = fs::read_to_string(format!("/proc/sysvipc/{kind}")).unwrap_or_default();
    parse_ipc(&table)
}

/// The second column, below a line of titles.
fn parse_ipc(table: &str) -> Vec<i32> {
    let lines = table.lines().skip(1);
    lines
        .filter_map(|line| line.split_whitespace().nth(1)?.parse().ok())
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_are_read_from_the_second_column() {
        let table =
            "       key      shmid perms\n         0          3  1600\n -12345      32771   600\n";
        assert_eq!(parse_ipc(table), [3, 32771]);
        assert!(parse_ipc("").is_empty());
    }

    #[test]
    fn a_deep_tree_with_names_like_ours_is_emptied() {
        let root = tempfile::tempdir().unwrap();
        let mut path = root.path().to_owned();
        for depth in 0..100 {
            path.push(format!(".isol8-{depth}"));
            fs::create_dir(&path).unwrap();
            fs::write(path.join("file"), "x").unwrap();
        }
        let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY;
        let mut top = Dir::open(root.path(), flags, Mode::empty()).unwrap();
        empty(&mut top).unwrap();
        assert_eq!(fs::read_dir(root.path()).unwrap().count(), 0);
    }
}
