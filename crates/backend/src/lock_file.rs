//! Lock files that only processes of one user can open.
//!
//! Locking a file takes no more than the right to open it, even for reading. Any user of the host who may open a
//! lock file could hold it locked for ever, so the permissions of lock files exclude all users but the owner.

use std::fs::{File, OpenOptions, Permissions};
use std::io;
use std::os::unix::fs::{OpenOptionsExt as _, PermissionsExt as _};
use std::path::Path;

const OWNER_ONLY: u32 = 0o600;

/// Opens a lock file, and creates a missing one.
///
/// # Errors
/// Any I/O error; `NotFound` if the directory is gone.
pub fn open(path: &Path) -> io::Result<File> {
    deny_other_users(open_with(path, File::options().create(true))?)
}

/// Opens a lock file that must exist.
///
/// # Errors
/// Any I/O error.
pub fn open_existing(path: &Path) -> io::Result<File> {
    deny_other_users(open_with(path, &mut File::options())?)
}

fn open_with(path: &Path, options: &mut OpenOptions) -> io::Result<File> {
    let options = options.read(true).append(true).mode(OWNER_ONLY);
    options.open(path)
}

/// Removes the permissions of other users: earlier versions created lock files that all users can read.
fn deny_other_users(file: File) -> io::Result<File> {
    if file.metadata()?.permissions().mode() & 0o077 != 0 {
        file.set_permissions(Permissions::from_mode(OWNER_ONLY))?;
    }
    Ok(file)
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn a_lock_file_is_closed_to_others_even_where_it_was_open() {
        let directory = tempfile::tempdir().unwrap();
        let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
        let (new, old) = (directory.path().join("new"), directory.path().join("old"));
        open_existing(&new).unwrap_err();
        open(&new).unwrap();
        assert_eq!(mode(&new), OWNER_ONLY);
        for open in [open, open_existing] {
            fs::write(&old, "").unwrap();
            fs::set_permissions(&old, Permissions::from_mode(0o644)).unwrap();
            open(&old).unwrap();
            assert_eq!(mode(&old), OWNER_ONLY);
        }
    }
}
