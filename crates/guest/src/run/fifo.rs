//! The standard input of a cell: a pipe with a name, which a kernel can open.

use std::io;
use std::os::fd::OwnedFd;

use nix::fcntl::{OFlag, open};
use nix::sys::stat::{Mode, SFlag, fstat};
use nix::unistd::{mkfifo, unlink};

use crate::lockdown::Privileges;

/// The name, and a hold on the pipe: it keeps what was written until somebody reads.
#[derive(Debug)]
pub(crate) struct Fifo {
    path: String,
    privileges: Privileges,
    _hold: OwnedFd,
}

impl Fifo {
    /// Makes one with the rights of user code, and returns the end to write to. User code that
    /// puts something else in its place gets what it could write itself.
    pub(crate) fn make(privileges: Privileges, serial: u64) -> io::Result<(Self, OwnedFd)> {
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
        let fifo = Self {
            path,
            privileges,
            _hold: hold,
        };
        Ok((fifo, writer))
    }

    pub(crate) fn path(&self) -> &str {
        &self.path
    }
}

impl Drop for Fifo {
    fn drop(&mut self) {
        // Whoever has opened it keeps it; where user code has removed the name, nothing is left.
        let _ = self
            .privileges
            .as_sandbox_user(|| unlink(self.path.as_str()));
    }
}
