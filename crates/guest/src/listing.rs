//! Lists a directory in pieces: a directory of a hundred thousand files holds nothing up.

use std::os::fd::OwnedFd;

use isol8_protocol::{EntryKind, Failure, MAX_ENTRY, RawDirectoryEntry, encode};
use nix::dir::{Dir, OwningIter};
use nix::errno::Errno;
use nix::fcntl::{AtFlags, OFlag};
use nix::sys::stat::{FileStat, SFlag, fstatat};

use crate::failure::{failure, file_failure, internal};
use crate::files::{Place, beneath, open_place};
use crate::lockdown::Privileges;

/// A directory that is being listed.
#[derive(Debug)]
pub(crate) struct Lister {
    privileges: Privileges,
    path: String,
    directory: OwnedFd,
    names: OwningIter,
    /// Entries still to come, at most.
    left: u32,
    /// Entries that were read, and not taken yet.
    encoded: Vec<u8>,
}

impl Lister {
    pub(crate) fn open(privileges: Privileges, path: &str, limit: u32) -> Result<Self, Failure> {
        let within = Place::parse(path)?;
        let open = || -> nix::Result<OwnedFd> {
            let root = open_place(within.place)?;
            // Only directories are opened.
            let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_NONBLOCK;
            beneath(&root, &within.relative(), flags)
        };
        let directory = privileges
            .as_sandbox_user(open)
            .map_err(|error| internal("acting as the sandbox user failed", error))?
            .map_err(|error| match error {
                Errno::ENOTDIR => failure(
                    isol8_protocol::FailureKind::Refused,
                    format!("{path} is not a directory"),
                ),
                error => file_failure(path, error),
            })?;
        let listed = directory
            .try_clone()
            .map_err(|error| file_failure(path, error))?;
        let names = Dir::from_fd(listed).map_err(|error| file_failure(path, error))?;
        Ok(Self {
            privileges,
            path: path.to_owned(),
            directory,
            names: names.into_iter(),
            left: limit,
            encoded: Vec::new(),
        })
    }

    /// At most `limit` bytes of encoded entries; none at the end.
    pub(crate) fn read(&mut self, limit: usize) -> Result<Vec<u8>, Failure> {
        let privileges = self.privileges;
        privileges
            .as_sandbox_user(|| self.fill(limit))
            .map_err(|error| internal("acting as the sandbox user failed", error))?
            .map_err(|error| file_failure(&self.path, error))?;
        let size = limit.min(self.encoded.len());
        let rest = self.encoded.split_off(size);
        Ok(std::mem::replace(&mut self.encoded, rest))
    }

    pub(crate) fn is_at_end(&self) -> bool {
        self.left == 0 && self.encoded.is_empty()
    }

    fn fill(&mut self, limit: usize) -> nix::Result<()> {
        while self.encoded.len() < limit && self.left > 0 {
            let Some(next) = self.names.next() else {
                self.left = 0;
                break;
            };
            let next = next?;
            let name = next.file_name();
            if matches!(name.to_bytes(), b"." | b"..") {
                continue;
            }
            let found = match fstatat(&self.directory, name, AtFlags::AT_SYMLINK_NOFOLLOW) {
                Ok(found) => found,
                // The entry went while the list was made.
                Err(Errno::ENOENT) => continue,
                Err(error) => return Err(error),
            };
            let entry = entry(name.to_bytes(), &found);
            // A name is at most 255 bytes, so that it fits.
            if encode(&entry, MAX_ENTRY, &mut self.encoded).is_ok() {
                self.left -= 1;
            }
        }
        Ok(())
    }
}

fn entry(name: &[u8], found: &FileStat) -> RawDirectoryEntry {
    let kind = match SFlag::from_bits_truncate(found.st_mode & SFlag::S_IFMT.bits()) {
        SFlag::S_IFREG => EntryKind::File,
        SFlag::S_IFDIR => EntryKind::Directory,
        SFlag::S_IFLNK => EntryKind::Link,
        _ => EntryKind::Other,
    };
    // User code sets times as it likes.
    let modified_ms = found
        .st_mtime
        .saturating_mul(1000)
        .saturating_add(found.st_mtime_nsec / 1_000_000);
    RawDirectoryEntry {
        name: name.to_owned(),
        kind,
        size: u64::try_from(found.st_size).unwrap_or(0),
        mode: found.st_mode & 0o7777,
        modified_ms,
    }
}
