//! The user that the HTTP server runs as, if a different user makes the sandboxes.
//!
//! Root creates the files that both processes use and changes their owner to this user one by one. Everything
//! else in an instance's directory still belongs to root, so that root never works in a directory that the user
//! can change.

use std::fs::{self, File};
use std::io;
use std::os::fd::AsRawFd as _;
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _, fchown, lchown};
use std::path::Path;

use nix::libc;
use serde::{Deserialize, Serialize};

/// User and group id of a server without privileges.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Owner {
    /// User id.
    pub uid: u32,
    /// Primary group id.
    pub gid: u32,
}

impl Owner {
    /// Changes the owner of one file, directory, socket or symbolic link to this user. Does not follow links.
    ///
    /// # Errors
    /// Any I/O error.
    pub fn chown(self, path: &Path) -> io::Result<()> {
        lchown(path, Some(self.uid), Some(self.gid))
    }

    /// Changes the owner of a directory and everything in it to this user, if the directory belongs to root.
    /// Does not enter a directory that this user already owns. Never follows symbolic links, even if directories
    /// are replaced by links during the call.
    ///
    /// # Errors
    /// The I/O error of the first entry whose owner cannot be changed.
    pub fn chown_tree(self, directory: &Path) -> io::Result<()> {
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
                self.chown_tree(&entry.path())?;
            } else {
                self.chown(&entry.path())?;
            }
        }
        // The directory itself comes last: before that the user cannot change its entries.
        fchown(&opened, Some(self.uid), Some(self.gid))
    }
}

#[cfg(test)]
mod needs_root {
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
            "only root can change the owner of a file; run scripts/test as root"
        );
    }

    fn ids(path: &Path) -> (u32, u32) {
        let found = fs::symlink_metadata(path).unwrap();
        (found.uid(), found.gid())
    }

    #[test]
    fn the_owner_of_a_tree_is_changed_without_following_links() {
        assert_root();
        let (tree, outside) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        fs::write(outside.path().join("file"), "").unwrap();
        let tree = tree.path().join("tree");
        fs::create_dir_all(tree.join("a/b")).unwrap();
        fs::write(tree.join("a/b/file"), "").unwrap();
        symlink(outside.path(), tree.join("a/link")).unwrap();
        symlink(outside.path().join("file"), tree.join("a/file")).unwrap();
        OWNER.chown_tree(&tree).unwrap();
        for given in ["", "a", "a/b", "a/b/file", "a/link", "a/file"] {
            assert_eq!(ids(&tree.join(given)), (54321, 54322), "{given}");
        }
        assert_eq!(ids(outside.path()), (0, 0));
        assert_eq!(ids(&outside.path().join("file")), (0, 0));
        OWNER.chown_tree(&tree.join("a/link")).unwrap_err();
    }

    #[test]
    fn a_directory_that_the_user_already_owns_is_not_entered() {
        assert_root();
        let tree = tempfile::tempdir().unwrap();
        fs::write(tree.path().join("roots"), "").unwrap();
        OWNER.chown(tree.path()).unwrap();
        OWNER.chown_tree(tree.path()).unwrap();
        assert_eq!(ids(&tree.path().join("roots")), (0, 0));
    }
}
