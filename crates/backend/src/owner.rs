//! The user that the HTTP server runs as, where that is not the user that makes sandboxes.
//!
//! Files that both work with are made by root and given to this user one by one. Everything else in an
//! instance's directory stays root's, so that root never works in a directory that the user can change.

use std::fs::{self, File};
use std::io;
use std::os::fd::AsRawFd as _;
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _, fchown, lchown};
use std::path::Path;

use nix::libc;
use serde::{Deserialize, Serialize};

/// User and group of a server without privileges.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Owner {
    /// User id.
    pub uid: u32,
    /// Primary group id.
    pub gid: u32,
}

impl Owner {
    /// Gives one file, directory, socket or link to this user. A link is not followed.
    ///
    /// # Errors
    /// The system's.
    pub fn take(self, path: &Path) -> io::Result<()> {
        lchown(path, Some(self.uid), Some(self.gid))
    }

    /// Gives a directory with everything in it to this user, as far as it is root's; files that the user has already
    /// are left alone. Links are neither followed nor walked through, whatever changes meanwhile.
    ///
    /// # Errors
    /// The system's, for the first entry that cannot be given.
    pub fn take_tree(self, directory: &Path) -> io::Result<()> {
        let opened = File::options()
            .read(true)
            .custom_flags(libc::O_DIRECTORY | libc::O_NOFOLLOW)
            .open(directory)?;
        if opened.metadata()?.uid() != 0 {
            return Ok(());
        }
        let entries = Path::new("/proc/self/fd").join(opened.as_raw_fd().to_string());
        for entry in fs::read_dir(entries)? {
            let entry = entry?;
            if entry.file_type()?.is_dir() {
                self.take_tree(&entry.path())?;
            } else {
                self.take(&entry.path())?;
            }
        }
        // Last: until then the user can put nothing in the way.
        fchown(&opened, Some(self.uid), Some(self.gid))
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    const OWNER: Owner = Owner {
        uid: 54321,
        gid: 54322,
    };

    fn assert_root() {
        let is_root = nix::unistd::geteuid().is_root();
        assert!(
            is_root,
            "only root gives files away: run scripts/test as root"
        );
    }

    fn ids(path: &Path) -> (u32, u32) {
        let found = fs::symlink_metadata(path).unwrap();
        (found.uid(), found.gid())
    }

    #[test]
    fn a_tree_is_given_away_without_following_links() {
        assert_root();
        let (tree, outside) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        fs::write(outside.path().join("file"), "").unwrap();
        let tree = tree.path().join("tree");
        fs::create_dir_all(tree.join("a/b")).unwrap();
        fs::write(tree.join("a/b/file"), "").unwrap();
        symlink(outside.path(), tree.join("a/link")).unwrap();
        symlink(outside.path().join("file"), tree.join("a/file")).unwrap();
        OWNER.take_tree(&tree).unwrap();
        for given in ["", "a", "a/b", "a/b/file", "a/link", "a/file"] {
            assert_eq!(ids(&tree.join(given)), (54321, 54322), "{given}");
        }
        assert_eq!(ids(outside.path()), (0, 0));
        assert_eq!(ids(&outside.path().join("file")), (0, 0));
        OWNER.take_tree(&tree.join("a/link")).unwrap_err();
    }

    #[test]
    fn what_the_user_has_already_is_not_walked_through() {
        assert_root();
        let tree = tempfile::tempdir().unwrap();
        fs::write(tree.path().join("roots"), "").unwrap();
        OWNER.take(tree.path()).unwrap();
        OWNER.take_tree(tree.path()).unwrap();
        assert_eq!(ids(&tree.path().join("roots")), (0, 0));
    }
}
