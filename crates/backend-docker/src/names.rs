//! The files by which programs find addresses for names, in a container without a network.
//!
//! In a network of the engine's it writes them itself, and tells the host's name servers in them.

use std::fs;
use std::io;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use isol8_backend::spec::HOSTS;

/// Names in `/etc`, and what the files say.
pub(crate) const FILES: [(&str, &str); 2] = [("hosts", HOSTS), ("resolv.conf", "")];

/// Where they are in an instance's directory.
pub(crate) fn directory(instance: &Path) -> PathBuf {
    instance.join("etc")
}

/// Writes them. Containers of an earlier process keep theirs.
///
/// # Errors
/// The first that could not be written.
pub(crate) fn write(instance: &Path) -> io::Result<()> {
    let directory = directory(instance);
    fs::create_dir_all(&directory)?;
    for (name, content) in FILES {
        let unfinished = directory.join(format!(".{name}"));
        fs::write(&unfinished, content)?;
        // Whatever the umask was: user code reads them.
        fs::set_permissions(&unfinished, fs::Permissions::from_mode(0o644))?;
        fs::rename(unfinished, directory.join(name))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn they_can_be_written_again_beside_containers_that_have_them_mounted() {
        let instance = tempfile::tempdir().unwrap();
        write(instance.path()).unwrap();
        let hosts = directory(instance.path()).join("hosts");
        let mounted = fs::File::open(&hosts).unwrap();
        write(instance.path()).unwrap();
        assert_eq!(mounted.metadata().unwrap().len(), HOSTS.len() as u64);
        assert_eq!(fs::read_to_string(&hosts).unwrap(), HOSTS);
        let mode = fs::metadata(&hosts).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o644);
    }
}
