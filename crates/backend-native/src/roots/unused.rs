//! Removal of replaced roots that no sandbox uses any more.

use std::collections::HashSet;
use std::ffi::{OsStr, OsString};
use std::fs::{self, File};
use std::io;
use std::path::{Component, Path};

use isol8_api::Runtime;
use isol8_backend::lock_file;
use nix::fcntl::{Flock, FlockArg};
use procfs::process::{self, MountInfo};

use super::install::Installer;
use super::{ROOT_LOCK, lock};

/// The mount option of an overlay that names its layers.
const LOWERDIR: &str = "lowerdir";

impl Installer {
    /// Removes roots that no link leads to and no sandbox uses. Returns the number of removed roots.
    ///
    /// While a sandbox is being made, a lock protects its root. Afterwards its mounts do, which are also
    /// visible if its server and its spawner are dead.
    ///
    /// # Errors
    /// The I/O error of the first root that cannot be removed.
    pub fn remove_unused(&self) -> io::Result<usize> {
        let entries = fs::read_dir(self.roots().roots_directory())?;
        let linked: HashSet<OsString> = Runtime::ALL
            .into_iter()
            .filter_map(|runtime| fs::read_link(self.roots().link(runtime)).ok())
            .filter_map(|target| target.file_name().map(OsStr::to_owned))
            .collect();
        let mut removed = 0;
        for entry in entries {
            let entry = entry?;
            if linked.contains(&entry.file_name()) {
                continue;
            }
            // The lock comes before the look at mounts: no sandbox can start to use the root from then on.
            let path = entry.path();
            let Ok(removing) = lock_for_removal(&path) else {
                continue;
            };
            if is_mounted(&entry.file_name()) {
                continue;
            }
            fs::remove_dir_all(&path)?;
            drop(removing);
            removed += 1;
        }
        Ok(removed)
    }
}

/// Locks a root against new sandboxes. Returns `None` for an incomplete root, which no sandbox can use.
fn lock_for_removal(root: &Path) -> io::Result<Option<Flock<File>>> {
    match lock_file::open(&root.join(ROOT_LOCK)) {
        Ok(file) => lock(file, FlockArg::LockExclusiveNonblock).map(Some),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

/// Returns whether a directory with this unique name is mounted for any process, or is a layer of a mounted overlay.
fn is_mounted(name: &OsStr) -> bool {
    let processes = process::all_processes().into_iter().flatten().flatten();
    // A process whose mounts cannot be read has ended, or belongs to a user whose sandboxes have other roots.
    processes
        .filter_map(|process| process.mountinfo().ok())
        .flatten()
        .any(|mounted| refers_to(&mounted, name))
}

fn refers_to(mounted: &MountInfo, name: &OsStr) -> bool {
    let layers = mounted.super_options.get(LOWERDIR).cloned().flatten();
    let mut layers = layers.iter().flat_map(|layers| layers.split(':'));
    has_component(Path::new(&mounted.root), name)
        || layers.any(|layer| has_component(Path::new(layer), name))
}

fn has_component(path: &Path, name: &OsStr) -> bool {
    path.components()
        .any(|part| part == Component::Normal(name))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{PermissionsExt as _, symlink};

    use super::*;

    #[test]
    fn only_roots_that_are_neither_linked_nor_locked_are_removed() {
        let directory = tempfile::tempdir().unwrap();
        let open = fs::Permissions::from_mode(0o755);
        fs::set_permissions(directory.path(), open).unwrap();
        let installer = Installer::open(directory.path()).unwrap();
        let roots = installer.roots();
        assert!(Installer::try_open(roots).is_none());
        assert_eq!(installer.remove_unused().unwrap(), 0);
        for name in [
            "linked-5a1d",
            "held-5a1d",
            "old-5a1d",
            "unfinished-5a1d.new",
        ] {
            fs::create_dir_all(roots.roots_directory().join(name).join(".isol8")).unwrap();
        }
        fs::create_dir_all(roots.roots_directory().join("torn-5a1d.new/usr")).unwrap();
        symlink("roots/linked-5a1d", roots.link(Runtime::Node)).unwrap();
        let held =
            lock_file::open(&roots.roots_directory().join("held-5a1d").join(ROOT_LOCK)).unwrap();
        let held = lock(held, FlockArg::LockShared).unwrap();

        assert_eq!(installer.remove_unused().unwrap(), 3);
        let mut left: Vec<_> = fs::read_dir(roots.roots_directory())
            .unwrap()
            .map(|entry| entry.unwrap().file_name())
            .collect();
        left.sort();
        assert_eq!(left, ["held-5a1d", "linked-5a1d"]);
        drop(held);
        assert_eq!(installer.remove_unused().unwrap(), 1);
    }

    #[test]
    fn a_mount_is_recognized_by_a_component_of_its_path_or_of_a_layer() {
        let line = |root: &str, options: &str| {
            let line = format!("40 1 0:31 {root} /view ro - overlay overlay {options}");
            MountInfo::from_line(&line).unwrap()
        };
        let is_shown = |mounted| refers_to(&mounted, OsStr::new("0011"));
        assert!(is_shown(line("/srv/roots/0011", "rw")));
        assert!(is_shown(line("/srv/roots/0011/usr", "rw")));
        assert!(!is_shown(line("/srv/roots/00112", "rw")));
        assert!(is_shown(line("/", "ro,lowerdir=agent:/srv/roots/0011")));
        assert!(!is_shown(line(
            "/",
            "ro,lowerdir=agent:/srv/roots/00112,xino=off"
        )));
    }
}
