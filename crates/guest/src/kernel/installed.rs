//! Files of a driver, there until its kernel has loaded them.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::{DirBuilderExt as _, FileExt as _, MetadataExt as _, OpenOptionsExt as _};
use std::path::PathBuf;

use nix::unistd::unlink;

use super::recipe::DriverFiles;
use crate::lockdown::Privileges;

/// Where they lie. User code writes there too.
const PLACE: &str = "/dev/shm";

/// How often a free name is looked for there.
const TRIES: u64 = 100;

/// The files, in a directory of their own. Nobody but the guest can change them.
#[derive(Debug)]
pub(super) struct Installed {
    directory: PathBuf,
    _placeholder: Option<Placeholder>,
}

impl Installed {
    pub(super) fn make(
        driver: &DriverFiles,
        privileges: Privileges,
        serial: u64,
    ) -> io::Result<Self> {
        let placeholder = driver.placeholder;
        let placeholder = placeholder
            .map(|path| Placeholder::make(path, privileges))
            .transpose()?
            .flatten();
        let made = Self {
            directory: make_directory(serial)?,
            _placeholder: placeholder,
        };
        for (name, content) in driver.files {
            let mut options = fs::OpenOptions::new();
            options.write(true).create_new(true).mode(0o644);
            let file = options.open(made.directory.join(name))?;
            file.write_all_at(content.as_bytes(), 0)?;
        }
        Ok(made)
    }

    pub(super) fn open(&self, name: &str) -> io::Result<File> {
        File::open(self.directory.join(name))
    }

    /// Puts the directory's path for `{}`.
    pub(super) fn fill_in(&self, text: &str) -> String {
        text.replace("{}", &self.directory.display().to_string())
    }
}

fn make_directory(serial: u64) -> io::Result<PathBuf> {
    for number in serial..serial + TRIES {
        let directory = PathBuf::from(format!("{PLACE}/.isol8-{number:08x}"));
        match fs::DirBuilder::new().mode(0o755).create(&directory) {
            // User code may have taken the name.
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
            other => return other.map(|()| directory),
        }
    }
    Err(io::ErrorKind::AlreadyExists.into())
}

impl Drop for Installed {
    fn drop(&mut self) {
        // What cannot be removed goes with the sandbox.
        let _ = fs::remove_dir_all(&self.directory);
    }
}

/// An empty file where there was none.
#[derive(Debug)]
struct Placeholder {
    path: &'static str,
    privileges: Privileges,
    /// Which file it is: a script may have taken its place meanwhile.
    id: (u64, u64),
}

impl Placeholder {
    fn make(path: &'static str, privileges: Privileges) -> io::Result<Option<Self>> {
        let file = privileges.as_sandbox_user(|| File::create_new(path))?;
        let file = match file {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => return Ok(None),
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

impl Drop for Placeholder {
    fn drop(&mut self) {
        // As user code could itself: where it has put something else there, nothing else goes.
        let _ = self.privileges.as_sandbox_user(|| {
            let found = fs::symlink_metadata(self.path)?;
            if (found.dev(), found.ino()) == self.id {
                unlink(self.path)?;
            }
            io::Result::Ok(())
        });
    }
}
