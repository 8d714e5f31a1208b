//! The lock on a session's directory, held by the command that uses the session.
//!
//! The lock is on a file in the directory, and the directory is removed with its session. So an acquired lock
//! counts only if the path still names the locked file; otherwise another command has removed the file in the
//! meantime.

use std::fs::{self, DirBuilder, File};
use std::io;
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};
use std::time::Duration;

use isol8_api::SessionId;
use isol8_backend::lock_file;
use isol8_config::Config;
use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg};
use tokio::time::sleep;

use super::directory::{directory, is_empty};
use super::error::LocalError;

const NAME: &str = "lock";

/// Interval between attempts to get the lock. A blocking wait in the kernel could not be cancelled.
const POLL_INTERVAL: Duration = Duration::from_millis(20);

/// The right to use a session.
#[derive(Debug)]
pub(super) struct SessionLock {
    directory: PathBuf,
    _file: Flock<File>,
}

impl SessionLock {
    /// Waits for the lock.
    pub(super) async fn wait(config: &Config, id: &SessionId) -> Result<Self, LocalError> {
        let mut is_told = false;
        loop {
            if let Some(lock) = Self::try_now(config, id)? {
                return Ok(lock);
            }
            if !is_told {
                log::warn!("session {id} is in use by another command, waiting for it to end");
                is_told = true;
            }
            sleep(POLL_INTERVAL).await;
        }
    }

    /// Takes the lock unless another command holds it.
    pub(super) fn try_now(config: &Config, id: &SessionId) -> Result<Option<Self>, LocalError> {
        let directory = directory(config, id);
        let taken = take(&directory).map_err(|source| LocalError::Io {
            path: directory.clone(),
            source,
        })?;
        Ok(taken.map(|file| Self {
            directory,
            _file: file,
        }))
    }

    /// Returns whether a command holds the lock.
    pub(super) fn is_held(directory: &Path) -> bool {
        let Ok(file) = lock_file::open_existing(&directory.join(NAME)) else {
            return false;
        };
        Flock::lock(file, FlockArg::LockSharedNonblock).is_err()
    }

    /// Releases the lock, and removes the directory if it holds nothing for a later command.
    pub(super) fn release(self) {
        if is_empty(&self.directory)
            && let Err(error) = fs::remove_dir_all(&self.directory)
        {
            log::warn!(path:% = self.directory.display(), error:%; "cannot remove the session's directory");
        }
    }
}

fn take(directory: &Path) -> io::Result<Option<Flock<File>>> {
    // Other users may pass through, as in every directory above a sandbox's own.
    DirBuilder::new()
        .recursive(true)
        .mode(0o711)
        .create(directory)?;
    let path = directory.join(NAME);
    let file = match lock_file::open(&path) {
        // The directory was removed after it was created above.
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        file => file?,
    };
    match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
        Err((_, Errno::EWOULDBLOCK)) => Ok(None),
        Err((_, error)) => Err(error.into()),
        Ok(file) => Ok(has_its_name(&file, &path).then_some(file)),
    }
}

fn has_its_name(file: &File, path: &Path) -> bool {
    match (file.metadata(), fs::metadata(path)) {
        (Ok(own), Ok(named)) => (own.dev(), own.ino()) == (named.dev(), named.ino()),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lock_is_one_commands_and_one_of_a_removed_directory_is_nobodys() {
        let root = tempfile::tempdir().unwrap();
        let directory = root.path().join("x@");
        let file = take(&directory).unwrap().unwrap();
        assert!(SessionLock::is_held(&directory));
        assert!(take(&directory).unwrap().is_none());
        fs::remove_dir_all(&directory).unwrap();
        assert!(!has_its_name(&file, &directory.join(NAME)));
        let other = take(&directory).unwrap();
        assert!(other.is_some(), "the old file's lock is of no account");
        drop(other);
        assert!(!SessionLock::is_held(&directory));
    }
}
