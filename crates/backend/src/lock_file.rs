//! Files that processes of one user lock between them.
//!
//! Locking a file takes no more than the right to open it, even for reading. So a lock file is its owner's alone: a
//! file that other users of the host may open, they may also hold locked for ever.

use std::fs::{File, OpenOptions, Permissions};
use std::io;
use std::os::unix::fs::{OpenOptionsExt as _, PermissionsExt as _};
use std::path::Path;

const OWNER_ONLY: u32 = 0o600;

/// Opens a file to lock it, and creates it if it is missing.
///
/// # Errors
/// The system's; `NotFound` where the directory is gone.
pub fn open(path: &Path) -> io::Result<File> {
    close_to_others(open_with(path, File::options().create(true))?)
}

/// Opens a file to lock it, if it exists.
///
/// # Errors
/// The system's.
pub fn open_existing(path: &Path) -> io::Result<File> {
    close_to_others(open_with(path, &mut File::options())?)
}

fn open_with(path: &Path, options: &mut OpenOptions) -> io::Result<File> {
    let options = options.read(true).append(true).mode(OWNER_ONLY);
    options.open(path)
}

/// Versions before this one made such files for all to read.
fn close_to_others(file: File) -> io::Result<File> {
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
