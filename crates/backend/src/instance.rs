//! Instances: the directory under which one process of isol8 keeps its sandboxes.
//!
//! `<state>/<instance>/` belongs to one process and its helpers, as long as one of them holds a
//! lock on the file `lock` in it. The kernel releases the lock when the last holder dies, in whatever way. So a
//! directory whose lock can be taken has no living process, and the resources that it names can be removed. This
//! distinguishes a crashed process from another one that still runs, without process ids, which the kernel reuses.

use std::fs::{self, File};
use std::io::{self, Write as _};
use std::os::fd::{AsFd as _, AsRawFd as _, BorrowedFd, OwnedFd};
use std::os::unix::fs::{
    DirBuilderExt as _, MetadataExt as _, OpenOptionsExt as _, PermissionsExt as _,
};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, SystemTime};

use nix::fcntl::{FcntlArg, Flock, FlockArg, fcntl};
use nix::libc;

use crate::claim::{self, Claim, Claims};
use crate::error::BackendError;
use crate::lock_file;
use crate::owner::Owner;
use crate::spec::SandboxId;

const LOCK_FILE: &str = "lock";
const GUEST_FILE: &str = "guest";

/// The directory of this process, locked as long as this value exists. Dropping the value removes the
/// directory.
#[derive(Debug)]
pub struct Instance {
    directory: PathBuf,
    id: SandboxId,
    lock: Flock<File>,
    /// The directory is left to a later process, and not removed on drop.
    is_left: AtomicBool,
}

impl Instance {
    /// Makes a new instance under `state`, and writes the executable of the guest agent into it.
    ///
    /// # Errors
    /// [`BackendError::Io`] naming the path.
    pub fn create(state: &Path, guest: &[u8]) -> Result<Self, BackendError> {
        let id = SandboxId::random();
        let directory = state.join(id.as_str());
        let make = || -> io::Result<Flock<File>> {
            // Other users may traverse the directory, so that a sandbox's mapped root can reach files that are
            // shared with it; they cannot list it.
            fs::DirBuilder::new()
                .recursive(true)
                .mode(0o711)
                .create(state)?;
            fs::DirBuilder::new().mode(0o711).create(&directory)?;
            // The lock is taken before the file gets its final name, so that no sweep can see it unlocked.
            let unnamed = directory.join(".lock");
            let lock = lock_whole(lock_file::open(&unnamed)?)?;
            fs::rename(&unnamed, directory.join(LOCK_FILE))?;
            write_executable(&directory.join(GUEST_FILE), guest)?;
            Ok(lock)
        };
        let lock = make().map_err(BackendError::io(format!(
            "state directory {} cannot be used",
            directory.display()
        )))?;
        Ok(Self::from_parts(directory, id, lock))
    }

    fn from_parts(directory: PathBuf, id: SandboxId, lock: Flock<File>) -> Self {
        Self {
            directory,
            id,
            lock,
            is_left: AtomicBool::new(false),
        }
    }

    /// Takes over an instance whose process is dead and which has claimed sandboxes, if one exists.
    /// Sandboxes that are made from then on get this guest executable.
    ///
    /// # Errors
    /// [`BackendError::Io`] naming the path.
    pub fn adopt(state: &Path, guest: &[u8]) -> Result<Option<Self>, BackendError> {
        for directory in Self::all(state) {
            let name = directory.file_name().and_then(|name| name.to_str());
            let Some(id) = name.and_then(SandboxId::parse) else {
                continue;
            };
            // Another user could redirect file operations of this process in a directory that the user owns.
            if !is_own(&directory) {
                continue;
            }
            // The helper of the dead process may still live, with a record lock, and is adopted too. So only this
            // lock of the whole file decides.
            let Some(lock) = open_lock(&directory).and_then(|file| lock_whole(file).ok()) else {
                continue;
            };
            if !directory.join(LOCK_FILE).exists() || Claims::of(&directory).is_empty() {
                continue;
            }
            let replace = || {
                let unfinished = directory.join(".guest");
                match fs::remove_file(&unfinished) {
                    Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                    _ => {}
                }
                write_executable(&unfinished, guest)?;
                fs::rename(&unfinished, directory.join(GUEST_FILE))
            };
            replace().map_err(BackendError::io(format!(
                "state directory {} cannot be adopted",
                directory.display()
            )))?;
            return Ok(Some(Self::from_parts(directory, id, lock)));
        }
        Ok(None)
    }

    /// Gives a server that runs as another user access to this instance: the server may touch and lock the lock
    /// file, write claims and list the directory. Everything else still belongs to this process, so that the server
    /// cannot redirect file operations of this process.
    ///
    /// # Errors
    /// [`BackendError::Io`] naming the path.
    pub fn share_with(&self, owner: Owner) -> Result<(), BackendError> {
        let share = || -> io::Result<()> {
            let claims = self.directory.join(claim::CLAIMS_DIRECTORY);
            fs::DirBuilder::new()
                .recursive(true)
                .mode(0o700)
                .create(&claims)?;
            owner.chown_tree(&claims)?;
            owner.chown(&self.directory.join(LOCK_FILE))?;
            std::os::unix::fs::lchown(&self.directory, None, Some(owner.gid))?;
            fs::set_permissions(&self.directory, fs::Permissions::from_mode(0o751))
        };
        share().map_err(BackendError::io(format!(
            "state directory {} cannot be shared with uid {}",
            self.directory.display(),
            owner.uid
        )))
    }

    /// Returns the descriptor of the lock, to be passed to the server that will own the instance.
    #[must_use]
    pub fn lock(&self) -> BorrowedFd<'_> {
        self.lock.as_fd()
    }

    /// Opens the instance `id` under `state`, which another process made and locked for this one. `lock` is a
    /// duplicate of that process's descriptor, and shares its lock.
    ///
    /// # Errors
    /// [`BackendError::Io`] if the descriptor does not hold the lock.
    pub fn with_lock(state: &Path, id: SandboxId, lock: OwnedFd) -> Result<Self, BackendError> {
        let directory = state.join(id.as_str());
        let lock = lock_whole(File::from(lock)).map_err(BackendError::io(format!(
            "state directory {} cannot be used",
            directory.display()
        )))?;
        Ok(Self::from_parts(directory, id, lock))
    }

    /// Returns the directories of all instances under `state`, of whatever owner.
    #[must_use]
    pub fn all(state: &Path) -> Vec<PathBuf> {
        let entries = fs::read_dir(state).into_iter().flatten().flatten();
        let paths = entries.map(|entry| entry.path());
        let is_instance = |path: &PathBuf| {
            let name = path.file_name().and_then(|name| name.to_str());
            name.and_then(SandboxId::parse).is_some()
        };
        paths.filter(is_instance).collect()
    }

    /// Returns whether a living process has an instance under `state`.
    #[must_use]
    pub fn is_any_in_use(state: &Path) -> bool {
        let directories = Self::all(state).into_iter();
        let mut locks = directories.filter_map(|directory| open_lock(&directory));
        locks.any(|lock| lock_whole(lock).is_err())
    }

    /// Returns the claims of this instance.
    #[must_use]
    pub fn claims(&self) -> Claims {
        Claims::of(&self.directory)
    }

    /// Writes the claim of a session to a sandbox, without blocking the async runtime.
    ///
    /// # Errors
    /// [`BackendError::Io`].
    pub async fn claim(&self, sandbox: &SandboxId, claim: &Claim) -> Result<(), BackendError> {
        let (claims, sandbox, claim) = (self.claims(), sandbox.clone(), claim.clone());
        // Writing to a disk may block.
        let writing = tokio::task::spawn_blocking(move || claims.add(&sandbox, &claim));
        let written = writing.await.unwrap_or_else(|panic| Err(panic.into()));
        written.map_err(BackendError::io("claim of the session cannot be written"))
    }

    /// Sets the time of the last use of a claimed sandbox to now.
    pub async fn touch_claim(&self, sandbox: &SandboxId) {
        let (claims, sandbox) = (self.claims(), sandbox.clone());
        let touching = tokio::task::spawn_blocking(move || claims.touch(&sandbox));
        if let Ok(Err(error)) = touching.await {
            log::warn!(error:%; "time of a session's last use cannot be written");
        }
    }

    /// Leaves the directory to a later process: dropping this value no longer removes it.
    pub fn leave(&self) {
        self.is_left.store(true, Ordering::Release);
    }

    /// Returns whether [`Self::leave`] was called.
    #[must_use]
    pub fn is_left(&self) -> bool {
        self.is_left.load(Ordering::Acquire)
    }

    /// Records that the process is alive now; [`DeadInstance::all`] measures the time from the last record.
    pub fn touch(&self) {
        if let Err(error) = self.lock.set_modified(SystemTime::now()) {
            log::debug!(error:%; "instance could not be touched");
        }
    }

    /// Returns the directory.
    #[must_use]
    pub fn directory(&self) -> &Path {
        &self.directory
    }

    /// Returns the id, which is the name of the directory and unique among all instances.
    #[must_use]
    pub fn id(&self) -> &SandboxId {
        &self.id
    }

    /// Returns the path of the guest agent's executable.
    #[must_use]
    pub fn guest(&self) -> PathBuf {
        Self::guest_in(&self.directory)
    }

    /// Returns the path of the guest agent's executable in an instance's directory.
    #[must_use]
    pub fn guest_in(directory: &Path) -> PathBuf {
        directory.join(GUEST_FILE)
    }

    /// Removes an instance's directory; to be called once all resources of the instance are gone. The lock
    /// file is removed last: as long as it exists, a later sweep tries a failed removal again.
    pub fn remove_directory(directory: &Path) {
        remove_directory(directory);
    }

    /// Keeps the instance alive on behalf of the calling process, a helper of the instance, until the
    /// returned file is closed. The record lock that is taken is not inherited by forked processes: otherwise a
    /// container that never executed its program would keep the instance alive.
    ///
    /// # Errors
    /// Any I/O error: the directory is gone, or the lock is refused.
    pub fn lock_as_helper(directory: &Path) -> io::Result<File> {
        let file = lock_file::open_existing(&directory.join(LOCK_FILE))?;
        lock_records(&file, libc::F_RDLCK)?;
        Ok(file)
    }

    /// Returns whether a helper, of this process or of an earlier one, [keeps](Self::lock_as_helper) the instance
    /// alive.
    ///
    /// # Errors
    /// The error of fcntl(2).
    pub fn has_helper(&self) -> io::Result<bool> {
        let mut found = whole_file(libc::F_WRLCK);
        fcntl(&*self.lock, FcntlArg::F_GETLK(&mut found))?;
        Ok(i32::from(found.l_type) != libc::F_UNLCK)
    }
}

impl Drop for Instance {
    fn drop(&mut self) {
        if !self.is_left() {
            remove_directory(&self.directory);
        }
    }
}

/// An instance whose process is gone. This value holds the lock, so that only one process cleans up.
#[derive(Debug)]
pub struct DeadInstance {
    directory: PathBuf,
    id: String,
    _lock: Flock<File>,
}

impl DeadInstance {
    /// Returns every instance under `state` whose process is gone, except for instances that have claims
    /// and were alive less than `adoptable_for` ago: a new process may adopt those.
    #[must_use]
    pub fn all(state: &Path, adoptable_for: Duration) -> Vec<Self> {
        let Ok(entries) = fs::read_dir(state) else {
            return Vec::new();
        };
        entries
            .filter_map(|entry| Self::try_lock(&entry.ok()?.path(), adoptable_for))
            .collect()
    }

    /// Returns the same as [`Self::all`] without `own`, for a helper that [locks](Instance::lock_as_helper) `own`.
    /// The helper must not open the lock file of `own` again: closing any descriptor of a file releases all record
    /// locks that the process has on it.
    #[must_use]
    pub fn others(state: &Path, adoptable_for: Duration, own: &Path) -> Vec<Self> {
        let others = Instance::all(state).into_iter().filter(|path| path != own);
        others
            .filter_map(|path| Self::try_lock(&path, adoptable_for))
            .collect()
    }

    fn try_lock(directory: &Path, adoptable_for: Duration) -> Option<Self> {
        let id = directory.file_name()?.to_str()?.to_owned();
        let lock = lock_whole(open_lock(directory)?).ok()?;
        lock_records(&lock, libc::F_WRLCK).ok()?;
        // The previous holder of the lock may have removed the directory in the meantime.
        if !directory.join(LOCK_FILE).exists() {
            return None;
        }
        let lived = lock.metadata().and_then(|metadata| metadata.modified());
        let gone_for = lived.ok().and_then(|lived| lived.elapsed().ok());
        if gone_for.unwrap_or_default() < adoptable_for && !Claims::of(directory).is_empty() {
            return None;
        }
        Some(Self {
            directory: directory.to_owned(),
            id,
            _lock: lock,
        })
    }

    /// Returns the id, which is the name of the directory.
    #[must_use]
    pub fn id(&self) -> &str {
        &self.id
    }

    /// Returns the directory.
    #[must_use]
    pub fn directory(&self) -> &Path {
        &self.directory
    }

    /// Removes the directory; to be called once all resources of the instance are gone.
    pub fn remove(self) {
        remove_directory(&self.directory);
    }
}

fn is_own(directory: &Path) -> bool {
    let owner = fs::symlink_metadata(directory).map(|found| found.uid());
    owner.is_ok_and(|owner| owner == nix::unistd::geteuid().as_raw())
}

fn open_lock(directory: &Path) -> Option<File> {
    lock_file::open_existing(&directory.join(LOCK_FILE)).ok()
}

/// Locks a file with flock(2), or fails at once.
fn lock_whole(file: File) -> io::Result<Flock<File>> {
    Flock::lock(file, FlockArg::LockExclusiveNonblock).map_err(|(_, errno)| errno.into())
}

/// Returns a path to a socket that goes through the descriptor of its directory: the real path may be longer than
/// the 107 bytes of a socket address.
#[must_use]
pub fn socket_in(directory: &File, name: &str) -> PathBuf {
    let descriptor = directory.as_raw_fd();
    format!("/proc/self/fd/{descriptor}/{name}").into()
}

/// Locks a whole file with fcntl(2), for this process only, or fails at once.
fn lock_records(file: &File, kind: i32) -> io::Result<()> {
    fcntl(file, FcntlArg::F_SETLK(&whole_file(kind)))?;
    Ok(())
}

fn whole_file(kind: i32) -> libc::flock {
    libc::flock {
        l_type: i16::try_from(kind).unwrap_or(i16::MAX),
        l_whence: 0,
        l_start: 0,
        l_len: 0,
        l_pid: 0,
    }
}

fn remove_directory(directory: &Path) {
    let Ok(entries) = fs::read_dir(directory) else {
        return;
    };
    for entry in entries.flatten() {
        let path = entry.path();
        if path.ends_with(LOCK_FILE) {
            continue;
        }
        let removed = match entry.file_type() {
            Ok(kind) if kind.is_dir() => fs::remove_dir_all(&path),
            _ => fs::remove_file(&path),
        };
        if let Err(error) = removed {
            log::warn!(path:% = path.display(), error:%; "state could not be removed");
            return;
        }
    }
    let removed =
        fs::remove_file(directory.join(LOCK_FILE)).and_then(|()| fs::remove_dir(directory));
    if let Err(error) = removed {
        log::warn!(path:% = directory.display(), error:%; "state could not be removed");
    }
}

fn write_executable(path: &Path, content: &[u8]) -> io::Result<()> {
    let mut file = fs::OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o755)
        .open(path)?;
    file.write_all(content)?;
    // The umask may have removed permissions that the sandbox's mapped root needs.
    file.set_permissions(fs::Permissions::from_mode(0o755))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_living_instance_is_not_swept_and_a_dropped_one_leaves_nothing() {
        let state = tempfile::tempdir().unwrap();
        let instance = Instance::create(state.path(), b"guest").unwrap();
        assert_eq!(fs::read(instance.guest()).unwrap(), b"guest");
        assert!(DeadInstance::all(state.path(), Duration::ZERO).is_empty());
        assert!(Instance::is_any_in_use(state.path()));
        drop(instance);
        assert!(!Instance::is_any_in_use(state.path()));
        assert_eq!(fs::read_dir(state.path()).unwrap().count(), 0);
    }

    #[test]
    fn an_instance_whose_lock_is_free_is_swept_once() {
        let state = tempfile::tempdir().unwrap();
        let left = state.path().join("0123456789abcdef");
        fs::create_dir_all(left.join("sandbox")).unwrap();
        fs::write(left.join(LOCK_FILE), "").unwrap();

        let dead = DeadInstance::all(state.path(), Duration::ZERO);
        assert_eq!(dead.len(), 1);
        assert_eq!(dead[0].id(), "0123456789abcdef");
        assert!(
            DeadInstance::all(state.path(), Duration::ZERO).is_empty(),
            "claimed already"
        );
        dead.into_iter().for_each(DeadInstance::remove);
        assert!(!left.exists());
    }

    #[test]
    fn an_instance_with_a_claim_is_adopted_and_not_swept_before_its_time() {
        let state = tempfile::tempdir().unwrap();
        let adoptable = Duration::from_secs(600);
        let left = state.path().join("0123456789abcdef");
        fs::create_dir_all(left.join("claims")).unwrap();
        fs::write(left.join(LOCK_FILE), "").unwrap();
        fs::write(left.join(GUEST_FILE), "an older guest").unwrap();
        assert!(Instance::adopt(state.path(), b"guest").unwrap().is_none());
        fs::write(left.join("claims/fedcba9876543210"), "{}").unwrap();

        assert!(DeadInstance::all(state.path(), adoptable).is_empty());
        let adopted = Instance::adopt(state.path(), b"guest").unwrap().unwrap();
        assert_eq!(adopted.id().as_str(), "0123456789abcdef");
        assert_eq!(fs::read(adopted.guest()).unwrap(), b"guest");
        assert!(
            Instance::adopt(state.path(), b"guest").unwrap().is_none(),
            "taken"
        );
        adopted.leave();
        drop(adopted);
        assert!(left.exists());
        assert_eq!(DeadInstance::all(state.path(), Duration::ZERO).len(), 1);
        let old = SystemTime::now() - adoptable;
        File::options()
            .write(true)
            .open(left.join(LOCK_FILE))
            .and_then(|file| file.set_modified(old))
            .unwrap();
        assert_eq!(DeadInstance::all(state.path(), adoptable).len(), 1);
    }
}
