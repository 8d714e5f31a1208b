//! Files of a driver, there until its kernel has loaded them.
//!
//! The files lie where user code writes too: interpreters look for the files of a driver beside it, by its path, and
//! the guest can have no directory of its own. So their names cannot be guessed, and so taken, beforehand; and if one
//! directory is full, another serves.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::{DirBuilderExt as _, FileExt as _, MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use nix::unistd::unlink;

use super::interpreters::{DriverFiles, Files, Prelude};
use crate::files::{in_any_place, unguessable_name};
use crate::lockdown::Privileges;

/// Directories for the files. In both a user cannot remove or rename files of another user.
const PLACES: [&str; 2] = ["/dev/shm", "/tmp"];

/// The files, and what else must be there meanwhile.
#[derive(Debug)]
pub(crate) struct DriverDirectory {
    directory: Directory,
    _placeholder: Option<Placeholder>,
}

impl DriverDirectory {
    pub(super) fn make(driver: &'static DriverFiles, privileges: Privileges) -> io::Result<Self> {
        let directory = in_any_place(PLACES, |place| Directory::make(place, driver.files))?;
        let placeholder = driver.placeholder;
        let placeholder = placeholder.map(|path| Placeholder::make(path, privileges));
        Ok(Self {
            directory,
            _placeholder: placeholder.transpose()?.flatten(),
        })
    }

    /// Makes the file that an interpreter loads before it runs the script that it is started on.
    pub(crate) fn prelude(prelude: Prelude) -> io::Result<Self> {
        let directory = in_any_place(PLACES, |place| Directory::make(place, prelude.files))?;
        Ok(Self {
            directory,
            _placeholder: None,
        })
    }

    pub(super) fn open(&self, name: &str) -> io::Result<File> {
        let mut options = fs::OpenOptions::new();
        // If there is only one user id, user code may have put a pipe there meanwhile.
        let flags = libc::O_NONBLOCK | libc::O_NOFOLLOW;
        options.read(true).custom_flags(flags);
        options.open(self.directory.path.join(name))
    }

    /// Puts the directory's path for `{}`.
    pub(crate) fn fill_in(&self, text: &str) -> String {
        text.replace("{}", &self.directory.path.display().to_string())
    }
}

/// A directory of the files alone. If user code has a user id of its own, only the guest can change the directory.
#[derive(Debug)]
struct Directory {
    path: PathBuf,
    files: Files,
}

impl Directory {
    fn make(place: &str, files: Files) -> io::Result<Self> {
        let path = Path::new(place).join(unguessable_name());
        fs::DirBuilder::new().mode(0o755).create(&path)?;
        let made = Self { path, files };
        for (name, content) in files {
            let mut options = fs::OpenOptions::new();
            options.write(true).create_new(true).mode(0o644);
            let file = options.open(made.path.join(name))?;
            file.write_all_at(content.as_bytes(), 0)?;
        }
        Ok(made)
    }
}

impl Drop for Directory {
    fn drop(&mut self) {
        // Removes only the files that were put there: to remove what user code may add might take long. The rest goes
        // with the sandbox.
        for (name, _) in self.files {
            let _ = fs::remove_file(self.path.join(name));
        }
        let _ = fs::remove_dir(&self.path);
    }
}

/// An empty file in a place that had none.
#[derive(Debug)]
struct Placeholder {
    path: &'static str,
    privileges: Privileges,
    /// Identity of the file: a script may have put another in its place.
    id: (u64, u64),
}

impl Placeholder {
    fn make(path: &'static str, privileges: Privileges) -> io::Result<Option<Self>> {
        let file = privileges.as_sandbox_user(|| File::create_new(path))?;
        let file = match file {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
                check_readable(path, privileges)?;
                return Ok(None);
            }
            other => other?,
        };
        let metadata = file.metadata()?;
        Ok(Some(Self {
            path,
            privileges,
            id: (metadata.dev(), metadata.ino()),
        }))
    }
}

/// An interpreter would wait forever for a pipe that no process writes to, and end if it finds a directory.
fn check_readable(path: &str, privileges: Privileges) -> io::Result<()> {
    let mut options = fs::OpenOptions::new();
    options.read(true).custom_flags(libc::O_NONBLOCK);
    let found = privileges.as_sandbox_user(|| options.open(path)?.metadata())?;
    if found.is_ok_and(|metadata| metadata.is_file()) {
        return Ok(());
    }
    let text = format!("{path} is there, and no file that can be read");
    Err(io::Error::other(text))
}

impl Drop for Placeholder {
    fn drop(&mut self) {
        // Removes it with the rights of user code: if user code has put something else there, nothing else is removed.
        let _ = self.privileges.as_sandbox_user(|| {
            let found = fs::symlink_metadata(self.path)?;
            if (found.dev(), found.ino()) == self.id {
                unlink(self.path)?;
            }
            io::Result::Ok(())
        });
    }
}
