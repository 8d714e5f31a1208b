//! Unpacked roots: root file systems that sandboxes use instead of the host's programs.
//!
//! The directory `images.root` contains a link for each runtime, `python` and so on, to the root that new
//! sandboxes get, a directory under `roots`. A root is never changed: [`install`] makes a new one and
//! replaces the links. A sandbox keeps the root that it was made from. The first setup that finds no sandbox using a
//! replaced root removes the root ([`unused`]).

pub mod install;
mod unpack;
pub mod unused;

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};

use isol8_api::Runtime;
use isol8_backend::lock_file;
use nix::fcntl::{Flock, FlockArg};

use crate::rootfs;

/// Name of the subdirectory of `images.root` that contains the roots.
const ROOTS: &str = "roots";

/// File in a root: hash of the sources that the root was made from.
const HASH: &str = ".isol8/hash";

/// File in a root: the version line of a runtime's interpreter. The file's extension is the runtime's name.
const VERSION: &str = ".isol8/version";

/// File in a root: its lock prevents the removal of the root.
const ROOT_LOCK: &str = ".isol8/lock";

/// Returns the environment variables of programs in these roots as `NAME=value`, the same as in the images.
pub fn environment() -> impl Iterator<Item = String> {
    let variables = Runtime::ALL.map(|runtime| runtime.facts().variables.image);
    let variables = variables.into_iter().flatten();
    variables.map(|(name, value)| format!("{name}={value}"))
}

/// Most attempts to lock a root that is replaced meanwhile.
const MAX_ATTEMPTS: usize = 3;

/// The directory `images.root`.
#[derive(Clone, Debug)]
pub struct Roots {
    directory: PathBuf,
}

/// A root that sandboxes can be made from.
#[derive(Debug)]
pub struct Root {
    /// Path of the root, without links.
    pub path: PathBuf,
    /// Version line of the runtime's interpreter.
    pub version: String,
}

/// A root that cannot be removed as long as this value exists.
#[derive(Debug)]
pub struct LockedRoot {
    /// Path of the root, without links.
    pub path: PathBuf,
    _lock: Option<Flock<File>>,
}

impl Roots {
    /// Returns the roots in a directory, which need not exist.
    #[must_use]
    pub fn new(directory: &Path) -> Self {
        // The spawner compares the path with mount points, which have no links.
        let directory = fs::canonicalize(directory)
            .or_else(|_| std::path::absolute(directory))
            .unwrap_or_else(|_| directory.to_owned());
        Self { directory }
    }

    /// Returns the directory.
    #[must_use]
    pub fn directory(&self) -> &Path {
        &self.directory
    }

    /// Returns the path of a runtime's link.
    #[must_use]
    pub fn link(&self, runtime: Runtime) -> PathBuf {
        self.directory.join(runtime.name())
    }

    fn roots_directory(&self) -> PathBuf {
        self.directory.join(ROOTS)
    }

    /// Returns whether a path is the path of a root, without links.
    #[must_use]
    pub fn contains(&self, root: &Path) -> bool {
        let is_inside = root.parent() == Some(&self.roots_directory());
        is_inside
            && root.file_name().is_some()
            && fs::canonicalize(root).is_ok_and(|found| found == root)
    }

    /// Returns the root that a new sandbox of this runtime gets.
    ///
    /// # Errors
    /// A text with the problem and the fix.
    pub fn find(&self, runtime: Runtime) -> Result<Root, String> {
        let fix = |problem: &str, force: &str| {
            let link = self.link(runtime);
            format!(
                "{problem} at {} (`images.root`); run `isol8 setup --backend native{force}`",
                link.display()
            )
        };
        let path = fs::canonicalize(self.link(runtime))
            .map_err(|_| fix(&format!("there is no root for {runtime}"), ""))?;
        let damaged = || fix(&format!("the root for {runtime} is incomplete"), " --force");
        rootfs::find_interpreter(&path, runtime).ok_or_else(damaged)?;
        let version = fs::read_to_string(version_file(&path, runtime)).map_err(|_| damaged())?;
        let version = version.lines().next().unwrap_or_default().trim().to_owned();
        Ok(Root { path, version })
    }

    /// Returns the root that a new sandbox of this runtime gets, locked against removal.
    ///
    /// # Errors
    /// The errors of [`Self::find`]; or the root is being replaced.
    pub fn lock_root(&self, runtime: Runtime) -> Result<LockedRoot, String> {
        for _ in 0..MAX_ATTEMPTS {
            let path = self.find(runtime)?.path;
            // A root that is being removed is locked or gone. The link leads to another root by then.
            if let Ok(lock) = lock_against_removal(&path)
                && self.find(runtime)?.path == path
            {
                return Ok(LockedRoot { path, _lock: lock });
            }
        }
        let link = self.link(runtime);
        Err(format!("{} is being replaced; try again", link.display()))
    }

    /// Returns whether a runtime's root exists and was made from sources with this hash.
    #[must_use]
    pub fn is_current(&self, runtime: Runtime, hash: &str) -> bool {
        self.find(runtime)
            .ok()
            .and_then(|root| fs::read_to_string(root.path.join(HASH)).ok())
            .is_some_and(|found| found == hash)
    }
}

/// Locks a root against removal. Returns `None` for the root of another user, whose files this user cannot lock.
fn lock_against_removal(root: &Path) -> io::Result<Option<Flock<File>>> {
    match lock_file::open(&root.join(ROOT_LOCK)) {
        Ok(file) => lock(file, FlockArg::LockSharedNonblock).map(Some),
        Err(error) if is_access_denied(&error) => Ok(None),
        Err(error) => Err(error),
    }
}

fn is_access_denied(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::PermissionDenied | io::ErrorKind::ReadOnlyFilesystem
    )
}

fn version_file(root: &Path, runtime: Runtime) -> PathBuf {
    root.join(format!("{VERSION}.{runtime}"))
}

fn lock(file: File, how: FlockArg) -> io::Result<Flock<File>> {
    Flock::lock(file, how).map_err(|(_, errno)| errno.into())
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{PermissionsExt as _, symlink};

    use super::*;

    /// Returns a directory with a root for bash.
    fn with_bash() -> (tempfile::TempDir, PathBuf) {
        let directory = tempfile::tempdir().unwrap();
        let root = fs::canonicalize(directory.path())
            .unwrap()
            .join("roots/0011");
        fs::create_dir_all(root.join("usr/bin")).unwrap();
        fs::create_dir_all(root.join(".isol8")).unwrap();
        fs::write(root.join("usr/bin/bash"), "").unwrap();
        let executable = fs::Permissions::from_mode(0o755);
        fs::set_permissions(root.join("usr/bin/bash"), executable).unwrap();
        fs::write(root.join(".isol8/version.bash"), "bash 5.2\nmore\n").unwrap();
        fs::write(root.join(HASH), "abc").unwrap();
        symlink("roots/0011", directory.path().join("bash")).unwrap();
        (directory, root)
    }

    #[test]
    fn a_root_is_found_with_its_version() {
        let (directory, root) = with_bash();
        let roots = Roots::new(directory.path());
        let found = roots.find(Runtime::Bash).unwrap();
        assert_eq!((found.path, found.version.as_str()), (root, "bash 5.2"));
        assert!(roots.is_current(Runtime::Bash, "abc"));
        assert!(!roots.is_current(Runtime::Bash, "abd"));
        assert!(!roots.is_current(Runtime::Node, "abc"));
    }

    #[test]
    fn a_path_is_a_root_only_where_roots_are() {
        let (directory, root) = with_bash();
        let roots = Roots::new(directory.path());
        assert!(roots.contains(&root));
        let link = root.with_file_name("link");
        symlink("/etc", &link).unwrap();
        let dots = root.join("../0011");
        for other in [
            Path::new("/"),
            Path::new("/etc"),
            &root.join("usr"),
            &link,
            &dots,
        ] {
            assert!(!roots.contains(other), "{}", other.display());
        }
    }

    #[test]
    fn a_missing_or_damaged_root_is_reported_with_the_fix() {
        let (directory, root) = with_bash();
        let roots = Roots::new(directory.path());
        let error = roots.find(Runtime::Node).unwrap_err();
        let fix = "(`images.root`); run `isol8 setup --backend native`";
        assert!(
            error.contains("no root for node") && error.ends_with(fix),
            "{error}"
        );
        fs::remove_file(root.join("usr/bin/bash")).unwrap();
        let error = roots.lock_root(Runtime::Bash).unwrap_err();
        assert!(
            error.contains("is incomplete") && error.ends_with("--force`"),
            "{error}"
        );
    }

    #[test]
    fn a_root_in_use_cannot_be_locked_for_removal() {
        let (directory, root) = with_bash();
        let held = Roots::new(directory.path())
            .lock_root(Runtime::Bash)
            .unwrap();
        let remove = || {
            let file = lock_file::open(&root.join(ROOT_LOCK)).unwrap();
            lock(file, FlockArg::LockExclusiveNonblock)
        };
        assert!(remove().is_err());
        drop(held);
        let removing = remove().unwrap();
        let error = Roots::new(directory.path())
            .lock_root(Runtime::Bash)
            .unwrap_err();
        assert!(error.ends_with("try again"), "{error}");
        drop(removing);
    }

    #[test]
    fn programs_get_the_same_variables_as_in_the_images() {
        let dockerfile = include_str!("../../../images/Dockerfile");
        let stages = dockerfile.split("\nFROM ").filter(|stage| {
            let name = stage.lines().next().unwrap_or_default();
            Runtime::ALL
                .iter()
                .any(|runtime| name.ends_with(&format!(" AS {runtime}")))
        });
        let told: Vec<_> = stages
            .flat_map(str::lines)
            .filter_map(|line| line.strip_prefix("ENV "))
            .collect();
        assert_eq!(told, environment().collect::<Vec<_>>());
    }
}
