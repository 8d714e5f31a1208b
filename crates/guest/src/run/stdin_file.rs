//! The standard input of a cell: a file or a pipe with a name, which a kernel can open.
//!
//! The file lies where user code writes too, because there is no other directory that both can reach. So its name
//! cannot be guessed, and so taken, beforehand; and if one directory is full, another serves. A pipe needs no space,
//! only a name: it is used if all directories are full.

use std::fs::File;
use std::io::{self, Write as _};
use std::os::fd::OwnedFd;

use nix::fcntl::{OFlag, open};
use nix::sys::stat::{Mode, SFlag, fstat};
use nix::unistd::{mkfifo, unlink};

use crate::files::{in_any_place, unguessable_name};
use crate::lockdown::Privileges;

/// Directories for the file, the one with the least meaning for users first.
const PLACES: [&str; 3] = ["/tmp", "/dev/shm", "/sandbox"];

/// The name. User code that puts something else in its place gets what it could write itself.
#[derive(Debug)]
pub(crate) struct StdinFile {
    path: String,
    privileges: Privileges,
    /// Keeps the bytes that were written to a pipe until a program reads.
    hold: Option<OwnedFd>,
}

impl StdinFile {
    /// A file with all that there is to read. Programs that open `/dev/stdin` find it there, where
    /// a pipe whose writer is done would let them wait for ever.
    pub(crate) fn file(privileges: Privileges, bytes: &[u8]) -> io::Result<Self> {
        in_any_place(PLACES, |place| {
            let named = Self::new(privileges, place);
            privileges.as_sandbox_user(|| File::create_new(&named.path)?.write_all(bytes))??;
            Ok(named)
        })
    }

    /// A pipe for what is still to come, and the end to write to.
    pub(crate) fn pipe(privileges: Privileges) -> io::Result<(Self, OwnedFd)> {
        in_any_place(PLACES, |place| {
            let mut named = Self::new(privileges, place);
            let (hold, writer) = privileges.as_sandbox_user(|| make_pipe(&named.path))??;
            named.hold = Some(hold);
            Ok((named, writer))
        })
    }

    /// Nothing yet; what will have the name goes with it.
    fn new(privileges: Privileges, place: &str) -> Self {
        Self {
            path: format!("{place}/{}", unguessable_name()),
            privileges,
            hold: None,
        }
    }

    pub(crate) fn path(&self) -> &str {
        &self.path
    }
}

impl Drop for StdinFile {
    fn drop(&mut self) {
        // A program that has opened the file keeps it; if user code has removed the name, nothing is left.
        let _ = self
            .privileges
            .as_sandbox_user(|| unlink(self.path.as_str()));
    }
}

/// A pipe of this name: an end that keeps it open, and the one to write to. Neither open waits for
/// anything, whatever user code has put there in between.
fn make_pipe(path: &str) -> io::Result<(OwnedFd, OwnedFd)> {
    mkfifo(path, Mode::from_bits_truncate(0o600))?;
    let flags = OFlag::O_NONBLOCK | OFlag::O_CLOEXEC | OFlag::O_NOFOLLOW;
    let hold = open(path, flags | OFlag::O_RDWR, Mode::empty())?;
    let writer = open(path, flags | OFlag::O_WRONLY, Mode::empty())?;
    let mode = SFlag::from_bits_truncate(fstat(&writer)?.st_mode);
    if mode & SFlag::S_IFMT != SFlag::S_IFIFO {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    Ok((hold, writer))
}
