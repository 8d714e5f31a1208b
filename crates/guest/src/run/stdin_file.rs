//! The standard input of a cell: a file or a named pipe, which the interpreter opens by its path.
//!
//! The file lies in a directory that user code writes to as well, because the guest and the interpreter can both access
//! no other. So its name is random, which user code cannot guess and occupy beforehand; and if one directory is full,
//! the next is tried. A named pipe needs no space for its content, and is used if all directories are full.

use std::fs::File;
use std::io::{self, Write as _};
use std::os::fd::OwnedFd;

use nix::fcntl::{OFlag, open};
use nix::sys::stat::{Mode, SFlag, fstat};
use nix::unistd::{mkfifo, unlink};

use crate::files::{in_first_usable, unguessable_name};
use crate::lockdown::Privileges;

/// Directories for the file, in the order in which they are tried: the one that matters least to users comes first.
const PARENT_DIRECTORIES: [&str; 3] = ["/tmp", "/dev/shm", "/sandbox"];

/// The path of the file, which is removed when this is dropped. User code that replaces the file only changes its own
/// input.
#[derive(Debug)]
pub(crate) struct StdinFile {
    path: String,
    privileges: Privileges,
    /// An open end of the pipe, which keeps the bytes in it until a program reads them.
    hold: Option<OwnedFd>,
}

impl StdinFile {
    /// Makes a file with the whole input. A program that opens `/dev/stdin` can read it again; with a pipe that has no
    /// writer any more, it would wait forever.
    pub(crate) fn file(privileges: Privileges, bytes: &[u8]) -> io::Result<Self> {
        in_first_usable(PARENT_DIRECTORIES, |parent| {
            let named = Self::new(privileges, parent);
            privileges.as_sandbox_user(|| File::create_new(&named.path)?.write_all(bytes))??;
            Ok(named)
        })
    }

    /// Makes a named pipe for input that is still to come, and returns the end to write to as well.
    pub(crate) fn pipe(privileges: Privileges) -> io::Result<(Self, OwnedFd)> {
        in_first_usable(PARENT_DIRECTORIES, |parent| {
            let mut named = Self::new(privileges, parent);
            let (hold, writer) = privileges.as_sandbox_user(|| make_pipe(&named.path))??;
            named.hold = Some(hold);
            Ok((named, writer))
        })
    }

    /// Returns a random path, at which nothing exists yet.
    fn new(privileges: Privileges, parent: &str) -> Self {
        Self {
            path: format!("{parent}/{}", unguessable_name()),
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
        // A program that has opened the file keeps it. The call fails if user code has removed the file.
        let _ = self
            .privileges
            .as_sandbox_user(|| unlink(self.path.as_str()));
    }
}

/// Makes a named pipe. Returns an end that keeps it open, and the end to write to. Opening does not block, even if user
/// code replaces the pipe in between.
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
