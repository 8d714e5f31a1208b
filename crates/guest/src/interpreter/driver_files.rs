//! The files of a driver, which exist until the interpreter has loaded them.
//!
//! The files lie in directories that user code writes to as well, because interpreters find the files of a driver by
//! path, beside it, and the guest has no directory of its own. So the directory's name is random, which user code
//! cannot guess and occupy beforehand; and if one directory is full, the next is tried.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io;
use std::os::unix::fs::{DirBuilderExt as _, FileExt as _, MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use nix::unistd::unlink;

use super::interpreters::{DriverFiles, Files, Prelude};
use crate::files::{in_first_usable, unguessable_name};
use crate::lockdown::Privileges;

/// Directories for the files. In both, a user cannot remove or rename files of another user.
const PARENT_DIRECTORIES: [&str; 2] = ["/dev/shm", "/tmp"];

/// The files of a driver, and the placeholder that must exist while the interpreter boots.
#[derive(Debug)]
pub(crate) struct DriverDirectory {
    directory: Directory,
    _placeholder: Option<Placeholder>,
}

impl DriverDirectory {
    pub(super) fn make(
        driver: &'static DriverFiles,
        placeholder: Option<&'static str>,
        privileges: Privileges,
    ) -> io::Result<Self> {
        let directory = in_first_usable(PARENT_DIRECTORIES, |parent| {
            Directory::make(parent, driver.files)
        })?;
        let placeholder = placeholder.map(|path| Placeholder::make(path, privileges));
        Ok(Self {
            directory,
            _placeholder: placeholder.transpose()?.flatten(),
        })
    }

    /// Makes the file that an interpreter loads before it runs the script that it is started on.
    pub(crate) fn prelude(prelude: Prelude) -> io::Result<Self> {
        let directory = in_first_usable(PARENT_DIRECTORIES, |parent| {
            Directory::make(parent, prelude.files)
        })?;
        Ok(Self {
            directory,
            _placeholder: None,
        })
    }

    pub(super) fn open(&self, name: &str) -> io::Result<File> {
        let mut options = fs::OpenOptions::new();
        // In a sandbox with a single user id, user code may have replaced the file by a pipe.
        let flags = libc::O_NONBLOCK | libc::O_NOFOLLOW;
        options.read(true).custom_flags(flags);
        options.open(self.directory.path.join(name))
    }

    /// Replaces `{}` in the text by the directory's path.
    pub(crate) fn fill_in(&self, text: &str) -> String {
        text.replace("{}", &self.directory.path.display().to_string())
    }
}

/// A directory that holds only the files, some of them in subdirectories. If user code has its own user id, only the
/// guest can change the directory.
#[derive(Debug)]
struct Directory {
    path: PathBuf,
    files: Files,
}

impl Directory {
    fn make(parent: &str, files: Files) -> io::Result<Self> {
        let path = Path::new(parent).join(unguessable_name());
        let mut builder = fs::DirBuilder::new();
        builder.mode(0o755).create(&path)?;
        let made = Self { path, files };
        for subdirectory in made.subdirectories() {
            builder.create(subdirectory)?;
        }
        for (name, content) in files {
            let mut options = fs::OpenOptions::new();
            options.write(true).create_new(true).mode(0o644);
            let file = options.open(made.path.join(name))?;
            file.write_all_at(content.as_bytes(), 0)?;
        }
        Ok(made)
    }

    /// Returns the directories below this one that hold files.
    fn subdirectories(&self) -> BTreeSet<PathBuf> {
        let names = self.files.iter().map(|(name, _)| Path::new(name));
        let directories = names
            .filter_map(Path::parent)
            .filter(|name| !name.as_os_str().is_empty());
        directories.map(|name| self.path.join(name)).collect()
    }
}

impl Drop for Directory {
    fn drop(&mut self) {
        // Removes only the guest's files, because removing files that user code added might take long. Those are
        // removed with the sandbox.
        for (name, _) in self.files {
            let _ = fs::remove_file(self.path.join(name));
        }
        for subdirectory in self.subdirectories() {
            let _ = fs::remove_dir(subdirectory);
        }
        let _ = fs::remove_dir(&self.path);
    }
}

/// An empty file that was created because none existed at the path.
#[derive(Debug)]
struct Placeholder {
    path: &'static str,
    privileges: Privileges,
    /// Device and inode number of the file: user code may put another file at the path.
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

/// Checks that the existing file is a regular file. With a pipe that no process writes to, the interpreter would wait
/// forever; with a directory, it would end.
fn check_readable(path: &str, privileges: Privileges) -> io::Result<()> {
    let mut options = fs::OpenOptions::new();
    options.read(true).custom_flags(libc::O_NONBLOCK);
    let found = privileges.as_sandbox_user(|| options.open(path)?.metadata())?;
    if found.is_ok_and(|metadata| metadata.is_file()) {
        return Ok(());
    }
    let text = format!("{path} exists, but is no regular file that can be read");
    Err(io::Error::other(text))
}

impl Drop for Placeholder {
    fn drop(&mut self) {
        // The file is removed with the rights of user code, and only if user code has not replaced it.
        let _ = self.privileges.as_sandbox_user(|| {
            let found = fs::symlink_metadata(self.path)?;
            if (found.dev(), found.ino()) == self.id {
                unlink(self.path)?;
            }
            io::Result::Ok(())
        });
    }
}
