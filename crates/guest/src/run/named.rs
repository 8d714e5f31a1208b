//! The standard input of a cell: a file with a name, which a kernel can open.

use std::fs::File;
use std::io::{self, Write as _};
use std::os::fd::OwnedFd;

use nix::fcntl::{OFlag, open};
use nix::sys::stat::{Mode, SFlag, fstat};
use nix::unistd::{mkfifo, unlink};

use crate::lockdown::Privileges;

/// The name. User code that puts something else in its place gets what it could write itself.
#[derive(Debug)]
pub(crate) struct NamedInput {
    path: String,
    privileges: Privileges,
    /// Keeps what was written to a pipe until somebody reads.
    _hold: Option<OwnedFd>,
}

impl NamedInput {
    /// A file with all that there is to read. Programs that open `/dev/stdin` find it there, where
    /// a pipe whose writer is done would let them wait for ever.
    pub(crate) fn file(privileges: Privileges, serial: u64, bytes: &[u8]) -> io::Result<Self> {
        let path = format!("/tmp/.isol8-{serial:016x}");
        let file = Self {
            path,
            privileges,
            _hold: None,
        };
        privileges.as_sandbox_user(|| File::create_new(&file.path)?.write_all(bytes))??;
        Ok(file)
    }

    /// A pipe for what is still to come, and the end to write to.
    pub(crate) fn pipe(privileges: Privileges, serial: u64) -> io::Result<(Self, OwnedFd)> {
        let path = format!("/tmp/.isol8-{serial:016x}");
        let (hold, writer) = privileges.as_sandbox_user(|| -> io::Result<_> {
            mkfifo(path.as_str(), Mode::from_bits_truncate(0o600))?;
            let flags = OFlag::O_NONBLOCK | OFlag::O_CLOEXEC | OFlag::O_NOFOLLOW;
            let hold = open(path.as_str(), flags | OFlag::O_RDWR, Mode::empty())?;
            let writer = open(path.as_str(), flags | OFlag::O_WRONLY, Mode::empty())?;
            let mode = SFlag::from_bits_truncate(fstat(&writer)?.st_mode);
            if mode & SFlag::S_IFMT != SFlag::S_IFIFO {
                return Err(io::ErrorKind::InvalidInput.into());
            }
            Ok((hold, writer))
        })??;
        let named = Self {
            path,
            privileges,
            _hold: Some(hold),
        };
        Ok((named, writer))
    }

    pub(crate) fn path(&self) -> &str {
        &self.path
    }
}

impl Drop for NamedInput {
    fn drop(&mut self) {
        // Whoever has opened it keeps it; where user code has removed the name, nothing is left.
        let _ = self
            .privileges
            .as_sandbox_user(|| unlink(self.path.as_str()));
    }
}
