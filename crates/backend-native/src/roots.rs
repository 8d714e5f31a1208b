//! Unpacked roots: what sandboxes stand on where the host's own programs are not to be used.
//!
//! The directory of `images.root` holds a link for each runtime, `python` and so on, to the root that new
//! sandboxes get, a directory under `roots`. A root is never changed: [`install`] makes another one and
//! sets the links anew. Sandboxes keep the one that they were made on, and it is removed by the first
//! setup that finds nothing on it ([`unused`]).

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

/// Directory of the roots, under the directory of the configuration.
const ROOTS: &str = "roots";

/// In a root: what it was made from.
const HASH: &str = ".isol8/hash";

/// In a root: the line that a runtime's interpreter says of its version, followed by the runtime's name.
const VERSION: &str = ".isol8/version";

/// In a root: the file whose lock keeps it from being removed.
const LOCK: &str = ".isol8/lock";

/// Variables of programs in these roots, as in the images: node and deno trust certificates of their own only, unless
/// variables have them take the system's too.
pub const ENVIRONMENT: [&str; 2] = ["NODE_USE_SYSTEM_CA=1", "DENO_TLS_CA_STORE=mozilla,system"];

/// How often a root is looked for anew that was removed in between.
const ATTEMPTS: usize = 3;

/// The directory of `images.root`.
#[derive(Clone, Debug)]
pub struct Roots {
    directory: PathBuf,
}

/// A root that sandboxes can be made on.
#[derive(Debug)]
pub struct Root {
    /// Its directory, by a path without links.
    pub path: PathBuf,
    /// The version that the runtime's interpreter reports.
    pub version: String,
}

/// A root that cannot be removed as long as this lives.
#[derive(Debug)]
pub struct Held {
    /// Its directory.
    pub path: PathBuf,
    _lock: Option<Flock<File>>,
}

impl Roots {
    /// Those in a directory, which need not be there.
    #[must_use]
    pub fn at(directory: &Path) -> Self {
        // The spawner compares it with mount points, which are without links.
        let directory = fs::canonicalize(directory)
            .or_else(|_| std::path::absolute(directory))
            .unwrap_or_else(|_| directory.to_owned());
        Self { directory }
    }

    /// The directory.
    #[must_use]
    pub fn directory(&self) -> &Path {
        &self.directory
    }

    /// Returns the path of a runtime's link.
    #[must_use]
    pub fn link(&self, runtime: Runtime) -> PathBuf {
        self.directory.join(runtime.name())
    }

    fn all(&self) -> PathBuf {
        self.directory.join(ROOTS)
    }

    /// Whether a path without links is that of a root.
    #[must_use]
    pub fn has(&self, root: &Path) -> bool {
        let is_one = root.parent() == Some(&self.all()) && root.file_name().is_some();
        is_one && fs::canonicalize(root).is_ok_and(|found| found == root)
    }

    /// The root that a new sandbox of this runtime gets.
    ///
    /// # Errors
    /// The fault of the root, and the fix.
    pub fn find(&self, runtime: Runtime) -> Result<Root, String> {
        let fix = |what: &str, force: &str| {
            let link = self.link(runtime);
            format!(
                "{what} at {}, where `images.root` wants it: run `isol8 setup --backend native{force}`",
                link.display()
            )
        };
        let path = fs::canonicalize(self.link(runtime))
            .map_err(|_| fix(&format!("there is no root for {runtime}"), ""))?;
        let damaged = || fix(&format!("the root for {runtime} is not whole"), " --force");
        rootfs::find_interpreter(&path, runtime).ok_or_else(damaged)?;
        let version = fs::read_to_string(version_file(&path, runtime)).map_err(|_| damaged())?;
        let version = version.lines().next().unwrap_or_default().trim().to_owned();
        Ok(Root { path, version })
    }

    /// The same, kept from being removed.
    ///
    /// # Errors
    /// As [`Self::find`].
    pub fn hold(&self, runtime: Runtime) -> Result<Held, String> {
        for _ in 0..ATTEMPTS {
            let path = self.find(runtime)?.path;
            // A root that is being removed is locked, or gone; the link leads to another one by then.
            if let Ok(lock) = keep(&path)
                && self.find(runtime)?.path == path
            {
                return Ok(Held { path, _lock: lock });
            }
        }
        let link = self.link(runtime);
        Err(format!("{} is being replaced: try again", link.display()))
    }

    /// Whether a runtime's root is there and was made from what this hash stands for.
    #[must_use]
    pub fn is_current(&self, runtime: Runtime, hash: &str) -> bool {
        self.find(runtime)
            .ok()
            .and_then(|root| fs::read_to_string(root.path.join(HASH)).ok())
            .is_some_and(|found| found == hash)
    }
}

/// Keeps a root from being removed. One of another user's cannot be kept: its files are not this user's to lock.
fn keep(root: &Path) -> io::Result<Option<Flock<File>>> {
    match lock_file::open(&root.join(LOCK)) {
        Ok(file) => lock(file, FlockArg::LockSharedNonblock).map(Some),
        Err(error) if is_not_ours(&error) => Ok(None),
        Err(error) => Err(error),
    }
}

fn is_not_ours(error: &io::Error) -> bool {
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

    /// A directory with a root for bash.
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
        let roots = Roots::at(directory.path());
        let found = roots.find(Runtime::Bash).unwrap();
        assert_eq!((found.path, found.version.as_str()), (root, "bash 5.2"));
        assert!(roots.is_current(Runtime::Bash, "abc"));
        assert!(!roots.is_current(Runtime::Bash, "abd"));
        assert!(!roots.is_current(Runtime::Node, "abc"));
    }

    #[test]
    fn a_path_is_a_root_only_where_roots_are() {
        let (directory, root) = with_bash();
        let roots = Roots::at(directory.path());
        assert!(roots.has(&root));
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
            assert!(!roots.has(other), "{}", other.display());
        }
    }

    #[test]
    fn what_is_missing_or_damaged_is_named_with_the_fix() {
        let (directory, root) = with_bash();
        let roots = Roots::at(directory.path());
        let error = roots.find(Runtime::Node).unwrap_err();
        let fix = "where `images.root` wants it: run `isol8 setup --backend native`";
        assert!(
            error.contains("no root for node") && error.ends_with(fix),
            "{error}"
        );
        fs::remove_file(root.join("usr/bin/bash")).unwrap();
        let error = roots.hold(Runtime::Bash).unwrap_err();
        assert!(
            error.contains("is not whole") && error.ends_with("--force`"),
            "{error}"
        );
    }

    #[test]
    fn what_is_held_cannot_be_locked_for_removal() {
        let (directory, root) = with_bash();
        let held = Roots::at(directory.path()).hold(Runtime::Bash).unwrap();
        let remove = || {
            let file = lock_file::open(&root.join(LOCK)).unwrap();
            lock(file, FlockArg::LockExclusiveNonblock)
        };
        assert!(remove().is_err());
        drop(held);
        let removing = remove().unwrap();
        let error = Roots::at(directory.path()).hold(Runtime::Bash).unwrap_err();
        assert!(error.ends_with("try again"), "{error}");
        drop(removing);
    }

    #[test]
    fn programs_are_told_what_the_images_tell_them() {
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
        assert_eq!(told, ENVIRONMENT);
    }
}
