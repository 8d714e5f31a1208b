//! Roots that were replaced, and when they can go.

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
use super::{LOCK, lock};

/// The option of an overlay that names its directories.
const LAYERS: &str = "lowerdir";

impl Installer {
    /// Removes what no link leads to and no sandbox stands on. Returns how many roots that were.
    ///
    /// A sandbox that was just asked for keeps its root by a lock, and from when it is there by its
    /// mounts: these show also where its server and its spawner are dead.
    ///
    /// # Errors
    /// The first that cannot be removed.
    pub fn remove_unused(&self) -> io::Result<usize> {
        let entries = fs::read_dir(self.roots().all())?;
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
            // Other users may not read which processes have the root mounted; so no process starts to use it from here
            // on.
            let path = entry.path();
            let Ok(removing) = keep_away(&path) else {
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

/// Keeps sandboxes off a root that is to be removed. No sandbox was ever made on one that is not whole.
fn keep_away(root: &Path) -> io::Result<Option<Flock<File>>> {
    match lock_file::open(&root.join(LOCK)) {
        Ok(file) => lock(file, FlockArg::LockExclusiveNonblock).map(Some),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

/// Whether a directory of this name, which no other has, is mounted for any process, or is a layer of what is.
fn is_mounted(name: &OsStr) -> bool {
    let processes = process::all_processes().into_iter().flatten().flatten();
    // A process that cannot be read has ended, or belongs to a user whose sandboxes have other roots.
    processes
        .filter_map(|process| process.mountinfo().ok())
        .flatten()
        .any(|mounted| shows(&mounted, name))
}

fn shows(mounted: &MountInfo, name: &OsStr) -> bool {
    let layers = mounted.super_options.get(LAYERS).cloned().flatten();
    let mut layers = layers.iter().flat_map(|layers| layers.split(':'));
    leads_through(Path::new(&mounted.root), name)
        || layers.any(|layer| leads_through(Path::new(layer), name))
}

fn leads_through(path: &Path, name: &OsStr) -> bool {
    path.components()
        .any(|part| part == Component::Normal(name))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{PermissionsExt as _, symlink};

    use super::*;

    #[test]
    fn only_what_is_neither_linked_nor_held_goes() {
        let directory = tempfile::tempdir().unwrap();
        let open = fs::Permissions::from_mode(0o755);
        fs::set_permissions(directory.path(), open).unwrap();
        let installer = Installer::open(directory.path()).unwrap();
        let roots = installer.roots();
        assert!(Installer::if_idle(roots).is_none());
        assert_eq!(installer.remove_unused().unwrap(), 0);
        for name in [
            "linked-5a1d",
            "held-5a1d",
            "old-5a1d",
            "unfinished-5a1d.new",
        ] {
            fs::create_dir_all(roots.all().join(name).join(".isol8")).unwrap();
        }
        fs::create_dir_all(roots.all().join("torn-5a1d.new/usr")).unwrap();
        symlink("roots/linked-5a1d", roots.link(Runtime::Node)).unwrap();
        let held = lock_file::open(&roots.all().join("held-5a1d").join(LOCK)).unwrap();
        let held = lock(held, FlockArg::LockShared).unwrap();

        assert_eq!(installer.remove_unused().unwrap(), 3);
        let mut left: Vec<_> = fs::read_dir(roots.all())
            .unwrap()
            .map(|entry| entry.unwrap().file_name())
            .collect();
        left.sort();
        assert_eq!(left, ["held-5a1d", "linked-5a1d"]);
        drop(held);
        assert_eq!(installer.remove_unused().unwrap(), 1);
    }

    #[test]
    fn a_mount_is_known_by_a_part_of_its_path_or_of_a_layer_s() {
        let line = |root: &str, options: &str| {
            let line = format!("40 1 0:31 {root} /view ro - overlay overlay {options}");
            MountInfo::from_line(&line).unwrap()
        };
        let is_shown = |mounted| shows(&mounted, OsStr::new("0011"));
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
