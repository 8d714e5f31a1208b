//! The directory under which one process of isol8 keeps its sandboxes.
//!
//! `<state>/<instance>/` belongs to one process, and its helpers, for as long as one of them holds a
//! lock on the file `lock` in it. The kernel drops the lock when the last holder dies, however it dies; so a directory
//! whose lock can be taken belongs to nobody, and what it names can be removed. This is how a
//! crash is told from a neighbour that still runs, without process ids, which are used again.

use std::fs::{self, File};
use std::io::{self, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};

use nix::fcntl::{FcntlArg, Flock, FlockArg, fcntl};
use nix::libc;

use crate::error::BackendError;
use crate::spec::SandboxId;

const LOCK_FILE: &str = "lock";
const GUEST_FILE: &str = "guest";

/// A process's own directory, locked for as long as this value lives. Dropping it removes the
/// directory.
#[derive(Debug)]
pub struct Instance {
    directory: PathBuf,
    id: SandboxId,
    _lock: Flock<File>,
}

impl Instance {
    /// Makes a new instance under `state`, and puts the guest agent into it.
    ///
    /// # Errors
    /// [`BackendError::Io`] naming the path.
    pub fn create(state: &Path, guest: &[u8]) -> Result<Self, BackendError> {
        let id = SandboxId::random();
        let directory = state.join(id.as_str());
        let make = || -> io::Result<Flock<File>> {
            // Others may pass through, so that a sandbox's mapped root can reach what is shared
            // with it; they cannot list.
            fs::DirBuilder::new()
                .recursive(true)
                .mode(0o711)
                .create(state)?;
            fs::DirBuilder::new().mode(0o711).create(&directory)?;
            // The lock is taken before the file has its name, so that no sweep can see it free.
            let unnamed = directory.join(".lock");
            let file = File::create(&unnamed)?;
            let lock = Flock::lock(file, FlockArg::LockExclusiveNonblock)
                .map_err(|(_, errno)| io::Error::from(errno))?;
            fs::rename(&unnamed, directory.join(LOCK_FILE))?;
            write_executable(&directory.join(GUEST_FILE), guest)?;
            Ok(lock)
        };
        let lock = make().map_err(BackendError::io(format!(
            "state directory {} cannot be used",
            directory.display()
        )))?;
        Ok(Self {
            directory,
            id,
            _lock: lock,
        })
    }

    /// The directory.
    #[must_use]
    pub fn directory(&self) -> &Path {
        &self.directory
    }

    /// Its name, unique among all instances.
    #[must_use]
    pub fn id(&self) -> &SandboxId {
        &self.id
    }

    /// The guest agent's executable file.
    #[must_use]
    pub fn guest(&self) -> PathBuf {
        Self::guest_in(&self.directory)
    }

    /// The guest agent's executable file in an instance's directory.
    #[must_use]
    pub fn guest_in(directory: &Path) -> PathBuf {
        directory.join(GUEST_FILE)
    }

    /// Removes an instance's directory, where nothing of the instance is left. The lock
    /// file goes last: while it is there, a failed removal is tried again by a later sweep.
    pub fn remove_directory(directory: &Path) {
        remove_directory(directory);
    }

    /// Lets the calling process, a helper of the instance's, count as the instance too, until the
    /// returned file is closed. Its lock is of the kind that forked processes do not inherit: a
    /// container that never got to execute its program would otherwise keep the instance alive.
    ///
    /// # Errors
    /// Where the directory is gone, or the lock is refused.
    pub fn hold(directory: &Path) -> io::Result<File> {
        let file = File::open(directory.join(LOCK_FILE))?;
        lock_records(&file, libc::F_RDLCK)?;
        Ok(file)
    }
}

impl Drop for Instance {
    fn drop(&mut self) {
        remove_directory(&self.directory);
    }
}

/// An instance whose process is gone. Held locked, so that only one process cleans it up.
#[derive(Debug)]
pub struct DeadInstance {
    directory: PathBuf,
    id: String,
    _lock: Flock<File>,
}

impl DeadInstance {
    /// Every instance under `state` whose process is gone.
    #[must_use]
    pub fn all(state: &Path) -> Vec<Self> {
        let Ok(entries) = fs::read_dir(state) else {
            return Vec::new();
        };
        entries
            .filter_map(|entry| Self::claim(&entry.ok()?.path()))
            .collect()
    }

    fn claim(directory: &Path) -> Option<Self> {
        let id = directory.file_name()?.to_str()?.to_owned();
        let lock_file = directory.join(LOCK_FILE);
        let file = File::options()
            .read(true)
            .write(true)
            .open(lock_file)
            .ok()?;
        let lock = Flock::lock(file, FlockArg::LockExclusiveNonblock).ok()?;
        lock_records(&lock, libc::F_WRLCK).ok()?;
        // Whoever held it before may have removed the directory in the meantime.
        directory.join(LOCK_FILE).exists().then(|| Self {
            directory: directory.to_owned(),
            id,
            _lock: lock,
        })
    }

    /// Its name.
    #[must_use]
    pub fn id(&self) -> &str {
        &self.id
    }

    /// The directory.
    #[must_use]
    pub fn directory(&self) -> &Path {
        &self.directory
    }

    /// Removes the directory; call it once everything that it names is gone.
    pub fn remove(self) {
        remove_directory(&self.directory);
    }
}

/// Locks a whole file as fcntl(2) does, for this process only, or fails at once.
fn lock_records(file: &File, kind: i32) -> io::Result<()> {
    let whole_file = libc::flock {
        l_type: i16::try_from(kind).unwrap_or(i16::MAX),
        l_whence: 0,
        l_start: 0,
        l_len: 0,
        l_pid: 0,
    };
    fcntl(file, FcntlArg::F_SETLK(&whole_file))?;
    Ok(())
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
    // The umask may have taken away what the sandbox's mapped root needs.
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
        assert!(DeadInstance::all(state.path()).is_empty());
        drop(instance);
        assert_eq!(fs::read_dir(state.path()).unwrap().count(), 0);
    }

    #[test]
    fn an_instance_whose_lock_is_free_is_swept_once() {
        let state = tempfile::tempdir().unwrap();
        let left = state.path().join("0123456789abcdef");
        fs::create_dir_all(left.join("sandbox")).unwrap();
        fs::write(left.join(LOCK_FILE), "").unwrap();

        let dead = DeadInstance::all(state.path());
        assert_eq!(dead.len(), 1);
        assert_eq!(dead[0].id(), "0123456789abcdef");
        assert!(
            DeadInstance::all(state.path()).is_empty(),
            "claimed already"
        );
        dead.into_iter().for_each(DeadInstance::remove);
        assert!(!left.exists());
    }
}
