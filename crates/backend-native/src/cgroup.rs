//! Paths of sandboxes' cgroups, and their removal.
//!
//! The cgroup of a sandbox is `/isol8/<instance>/<sandbox>`: on v1 in the hierarchy of each controller,
//! on v2 in the single hierarchy. The spawner makes the cgroups. This module removes them, including those of a killed
//! spawner, whose process ids can no longer be trusted.

use std::fs;
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

/// Mount point of the cgroup file systems on every distribution.
pub const CGROUP_ROOT: &str = "/sys/fs/cgroup";

/// The cgroup that contains the cgroups of all instances.
const PARENT: &str = "isol8";

/// Longest wait for killed processes to leave a cgroup.
const EMPTYING_TIMEOUT: Duration = Duration::from_secs(5);

/// Returns the path of a sandbox's cgroup from the root of a hierarchy, with a leading slash.
#[must_use]
pub fn path_of(instance: &str, sandbox: &str) -> String {
    format!("/{PARENT}/{instance}/{sandbox}")
}

/// Returns the host's process id of the first process of a sandbox: the smallest id in its cgroup.
#[must_use]
pub fn first_process(instance: &str, sandbox: &str) -> Option<i32> {
    let path = path_of(instance, sandbox);
    let path = path.trim_start_matches('/');
    let hierarchies = hierarchies(Path::new(CGROUP_ROOT));
    let members = hierarchies
        .iter()
        .find_map(|root| fs::read_to_string(root.join(path).join("cgroup.procs")).ok())?;
    members.lines().filter_map(|line| line.parse().ok()).min()
}

/// Kills all processes in the cgroups of an instance and removes the cgroups, and the common parent if
/// it is empty then.
///
/// # Errors
/// The I/O error of the first directory that cannot be removed.
pub fn remove_instance(instance: &str) -> io::Result<()> {
    remove_instance_from(&hierarchies(Path::new(CGROUP_ROOT)), instance)
}

/// Does the same as [`remove_instance`] in hierarchies that are given by their roots.
///
/// # Errors
/// The I/O error of the first directory that cannot be removed.
pub fn remove_instance_from(hierarchies: &[PathBuf], instance: &str) -> io::Result<()> {
    for hierarchy in hierarchies {
        remove_tree(&hierarchy.join(PARENT).join(instance))?;
        // Fails if cgroups of another instance exist.
        let _ = fs::remove_dir(hierarchy.join(PARENT));
    }
    Ok(())
}

/// Returns the root of the single hierarchy (v2), or of each hierarchy (v1 and hybrid).
fn hierarchies(root: &Path) -> Vec<PathBuf> {
    if root.join("cgroup.controllers").exists() {
        return vec![root.to_owned()];
    }
    let Ok(entries) = fs::read_dir(root) else {
        return Vec::new();
    };
    entries
        .flatten()
        .map(|entry| entry.path())
        .filter(|path| path.is_dir() && !path.is_symlink())
        .collect()
}

/// Kills all processes in a cgroup and its descendants, and removes these cgroups. A missing cgroup is no error.
///
/// # Errors
/// The I/O error of the first directory that cannot be removed.
pub fn remove_tree(directory: &Path) -> io::Result<()> {
    let entries = match fs::read_dir(directory) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        entries => entries?,
    };
    // Children are removed first: a cgroup with children cannot be removed.
    for entry in entries.flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            remove_tree(&entry.path())?;
        }
    }
    let deadline = Instant::now() + EMPTYING_TIMEOUT;
    loop {
        kill_all(directory);
        match fs::remove_dir(directory) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            Err(error) if error.kind() == io::ErrorKind::ResourceBusy => {
                if Instant::now() >= deadline {
                    return Err(error);
                }
                // Killed processes leave the cgroup when they are scheduled next. This function runs in the spawner
                // or in a blocking task, so it may sleep.
                std::thread::sleep(Duration::from_millis(2));
            }
            done => return done,
        }
    }
}

fn kill_all(directory: &Path) {
    let kill_file = fs::OpenOptions::new()
        .write(true)
        .open(directory.join("cgroup.kill"));
    if kill_file.and_then(|mut file| file.write_all(b"1")).is_ok() {
        return;
    }
    let members = fs::read_to_string(directory.join("cgroup.procs")).unwrap_or_default();
    for pid in members.lines().filter_map(|line| line.parse().ok()) {
        // The process may have died since the file was read. The kernel assigns ids in turn, so it does not reuse the
        // id that soon.
        let _ = kill(Pid::from_raw(pid), Signal::SIGKILL);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn v1_has_a_hierarchy_for_each_controller_and_v2_one_for_all() {
        let root = tempfile::tempdir().unwrap();
        for controller in ["memory", "pids"] {
            fs::create_dir(root.path().join(controller)).unwrap();
        }
        std::os::unix::fs::symlink("memory", root.path().join("alias")).unwrap();
        let mut found = hierarchies(root.path());
        found.sort();
        assert_eq!(
            found,
            [root.path().join("memory"), root.path().join("pids")]
        );

        fs::write(root.path().join("cgroup.controllers"), "memory pids").unwrap();
        assert_eq!(hierarchies(root.path()), [root.path()]);
    }

    #[test]
    fn a_tree_is_removed_children_first_and_a_missing_tree_is_no_error() {
        let root = tempfile::tempdir().unwrap();
        let sandbox = root.path().join("memory/isol8/instance/sandbox");
        fs::create_dir_all(&sandbox).unwrap();
        let hierarchies = [root.path().join("memory")];
        remove_instance_from(&hierarchies, "instance").unwrap();
        assert!(!root.path().join("memory/isol8").exists());
        remove_instance_from(&hierarchies, "instance").unwrap();
    }
}
