//! Installation of a root from an archive.
//!
//! A root is unpacked beside the others under a temporary name, and linked once it is complete. So
//! neither a crash nor a full disk makes an incomplete root visible to sandboxes.

use std::fs::{self, DirBuilder, File, Permissions};
use std::io::{self, Read};
use std::os::unix::fs::{DirBuilderExt as _, PermissionsExt as _, symlink};
use std::path::{Path, PathBuf};

use isol8_api::Runtime;
use isol8_backend::{SandboxId, lock_file};
use nix::fcntl::{Flock, FlockArg};
use nix::unistd::syncfs;

use super::unpack::unpack;
use super::{HASH, Roots, VERSION, lock, version_file};
use crate::rootfs;

/// File in `images.root` that one setup at a time holds locked.
const SETUP_LOCK: &str = "lock";

/// The exclusive right to change a directory of roots.
#[derive(Debug)]
pub struct Installer {
    roots: Roots,
    _lock: Flock<File>,
}

impl Installer {
    /// Waits until no other setup changes the directory. Creates a missing directory.
    ///
    /// # Errors
    /// Any I/O error; or sandboxes cannot traverse one of the parent directories.
    pub fn open(directory: &Path) -> io::Result<Self> {
        DirBuilder::new()
            .recursive(true)
            .mode(0o755)
            .create(directory)?;
        let roots = Roots::new(directory);
        check_traversable(roots.directory())?;
        let file = lock_file::open(&directory.join(SETUP_LOCK))?;
        let lock = lock(file, FlockArg::LockExclusive)?;
        fs::create_dir_all(roots.roots_directory())?;
        fs::set_permissions(roots.roots_directory(), Permissions::from_mode(0o755))?;
        Ok(Self { roots, _lock: lock })
    }

    /// Does the same as [`Self::open`] without waiting. Returns `None` if there are no roots, or if a setup is
    /// running, which removes unused roots itself.
    #[must_use]
    pub fn try_open(roots: &Roots) -> Option<Self> {
        let file = lock_file::open_existing(&roots.directory().join(SETUP_LOCK)).ok()?;
        let lock = lock(file, FlockArg::LockExclusiveNonblock).ok()?;
        let roots = roots.clone();
        Some(Self { roots, _lock: lock })
    }

    /// Returns the roots that this value may change.
    #[must_use]
    pub fn roots(&self) -> &Roots {
        &self.roots
    }

    /// Unpacks a root from a tar archive, and links it for these runtimes. `hash` identifies the sources of the root.
    ///
    /// # Errors
    /// The archive is invalid, or any I/O error; the installed roots are unchanged then. Only a crash leaves an
    /// incomplete root, whose disk space [`Self::remove_unused`] frees.
    pub fn install(
        &self,
        archive: impl Read,
        runtimes: &[Runtime],
        hash: &str,
    ) -> io::Result<PathBuf> {
        let name = SandboxId::random();
        let path = self.roots.roots_directory().join(name.as_str());
        let unfinished = path.with_extension("new");
        let made = build_root(&unfinished, archive, runtimes, hash)
            .and_then(|()| fs::rename(&unfinished, &path))
            .and_then(|()| self.link(runtimes, name.as_str()));
        if let Err(error) = made {
            // The first error is reported.
            let _ = fs::remove_dir_all(&unfinished);
            return Err(error);
        }
        Ok(path)
    }

    fn link(&self, runtimes: &[Runtime], name: &str) -> io::Result<()> {
        for &runtime in runtimes {
            let link = self.roots.link(runtime);
            let fresh = link.with_extension("new");
            match fs::remove_file(&fresh) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                _ => {}
            }
            symlink(Path::new(super::ROOTS).join(name), &fresh)?;
            fs::rename(fresh, link)?;
        }
        Ok(())
    }
}

/// Checks that a sandbox can traverse a directory. Its ids belong to no user of the host, so it has the permissions
/// of other users.
fn check_traversable(directory: &Path) -> io::Result<()> {
    for above in directory.ancestors() {
        if fs::metadata(above)?.permissions().mode() & 0o001 == 0 {
            return Err(io::Error::other(format!(
                "sandboxes cannot traverse {}; run `chmod o+x` on it, or choose another directory",
                above.display()
            )));
        }
    }
    Ok(())
}

fn build_root(root: &Path, archive: impl Read, runtimes: &[Runtime], hash: &str) -> io::Result<()> {
    DirBuilder::new().mode(0o755).create(root)?;
    unpack(archive, root)?;
    fs::create_dir_all(root.join(".isol8"))?;
    name_version_files(root, runtimes)?;
    rootfs::add_sandbox_files(root)?;
    fs::write(root.join(HASH), hash)?;
    // The umask of this process applied to these files.
    for own in [root.join(HASH), root.join(".isol8"), root.to_owned()] {
        let is_directory = own.is_dir();
        let mode = if is_directory { 0o755 } else { 0o644 };
        fs::set_permissions(own, Permissions::from_mode(mode))?;
    }
    for &runtime in runtimes {
        if rootfs::find_interpreter(root, runtime).is_none() {
            return Err(io::Error::other(format!("the archive has no {runtime}")));
        }
    }
    // Without a sync, a power failure could leave a link to a root with empty files, which no check would notice.
    syncfs(File::open(root)?)?;
    Ok(())
}

/// Gives version files the extension of their runtime. The version file of an image for a single runtime has no
/// extension.
fn name_version_files(root: &Path, runtimes: &[Runtime]) -> io::Result<()> {
    let unnamed = root.join(VERSION);
    if let ([runtime], true) = (runtimes, unnamed.exists()) {
        fs::rename(unnamed, version_file(root, *runtime))?;
    }
    for &runtime in runtimes {
        if !version_file(root, runtime).is_file() {
            let text = format!("the archive has no version file for {runtime}");
            return Err(io::Error::other(text));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::MetadataExt as _;

    use tar::{Builder, EntryType, Header};

    use super::*;

    fn entry(kind: EntryType, mode: u32, size: usize) -> Header {
        let mut header = Header::new_gnu();
        header.set_entry_type(kind);
        header.set_mode(mode);
        header.set_size(size as u64);
        header
    }

    fn file(archive: &mut Builder<Vec<u8>>, path: &str, mode: u32, text: &str) {
        let mut header = entry(EntryType::Regular, mode, text.len());
        archive
            .append_data(&mut header, path, text.as_bytes())
            .unwrap();
    }

    /// Returns an archive of a root with bash only.
    fn bash() -> Builder<Vec<u8>> {
        let mut archive = Builder::new(Vec::new());
        file(&mut archive, "usr/bin/bash", 0o4777, "bash");
        file(&mut archive, "etc/passwd", 0o644, "root:x:0:0::/:/bin/sh\n");
        file(&mut archive, ".isol8/version", 0o644, "bash 5.2\n");
        archive
    }

    /// Returns a directory that sandboxes can traverse.
    fn directory() -> tempfile::TempDir {
        let directory = tempfile::tempdir().unwrap();
        fs::set_permissions(directory.path(), Permissions::from_mode(0o755)).unwrap();
        directory
    }

    fn install(directory: &Path, archive: Builder<Vec<u8>>) -> io::Result<PathBuf> {
        let bytes = archive.into_inner().unwrap();
        let installer = Installer::open(&directory.join("images"))?;
        installer.install(bytes.as_slice(), &[Runtime::Bash], "abc")
    }

    #[test]
    fn an_archive_becomes_a_root_with_all_that_sandboxes_need() {
        let directory = directory();
        let mut archive = bash();
        let mut device = entry(EntryType::Char, 0o666, 0);
        archive
            .append_data(&mut device, "dev/null", io::empty())
            .unwrap();
        let root = install(directory.path(), archive).unwrap();

        let roots = Roots::new(&directory.path().join("images"));
        let found = roots.find(Runtime::Bash).unwrap();
        assert_eq!(
            (found.path, found.version.as_str()),
            (root.clone(), "bash 5.2")
        );
        assert!(roots.is_current(Runtime::Bash, "abc"));
        // The file has no set-uid bit, and only its owner may write.
        let mode = fs::metadata(root.join("usr/bin/bash")).unwrap().mode();
        assert_eq!(mode & 0o7777, 0o755);
        assert!(!root.join("dev/null").exists());
        for needed in ["proc", "dev", "sandbox", "tmp", ".isol8/guest"] {
            assert!(root.join(needed).exists(), "{needed}");
        }
        let passwd = fs::read_to_string(root.join("etc/passwd")).unwrap();
        assert!(passwd.contains("sandbox:x:64800:64800:"));
    }

    #[test]
    fn no_file_is_written_outside_the_root_and_the_old_root_stays() {
        let directory = directory();
        let outside = directory.path().join("outside");
        fs::create_dir(&outside).unwrap();
        let old = install(directory.path(), bash()).unwrap();

        let mut through_a_link = bash();
        let mut link = entry(EntryType::Symlink, 0o777, 0);
        through_a_link
            .append_link(&mut link, "way", &outside)
            .unwrap();
        file(&mut through_a_link, "way/file", 0o644, "x");

        let mut hard_link = bash();
        let mut link = entry(EntryType::Link, 0o644, 0);
        hard_link
            .append_link(&mut link, "shadow", "/etc/shadow")
            .unwrap();

        let mut upwards = bash();
        let mut header = entry(EntryType::Regular, 0o644, 1);
        // The builder's own methods refuse such a path.
        header.as_old_mut().name[..7].copy_from_slice(b"../file");
        header.set_cksum();
        upwards.append(&header, "x".as_bytes()).unwrap();

        for archive in [through_a_link, hard_link, upwards] {
            install(directory.path(), archive).unwrap_err();
        }
        assert_eq!(fs::read_dir(&outside).unwrap().count(), 0);
        let roots = Roots::new(&directory.path().join("images"));
        assert_eq!(roots.find(Runtime::Bash).unwrap().path, old);
        // The failed installations leave no files.
        assert_eq!(fs::read_dir(roots.roots_directory()).unwrap().count(), 1);
    }

    #[test]
    fn an_archive_that_breaks_off_or_lacks_its_runtime_is_refused() {
        let directory = directory();
        let bytes = bash().into_inner().unwrap();
        let installer = Installer::open(directory.path()).unwrap();
        let install = |bytes: &[u8], runtime| installer.install(bytes, &[runtime], "abc");
        install(&bytes[..700], Runtime::Bash).unwrap_err();
        let error = install(&bytes, Runtime::Node).unwrap_err().to_string();
        assert_eq!(error, "the archive has no node");
        assert!(installer.roots().find(Runtime::Bash).is_err());
    }

    #[test]
    fn a_directory_that_sandboxes_cannot_reach_is_refused_by_name() {
        let directory = directory();
        let closed = directory.path().join("closed");
        DirBuilder::new().mode(0o700).create(&closed).unwrap();
        let error = Installer::open(&closed.join("images")).unwrap_err();
        assert!(
            error.to_string().contains("closed; run `chmod o+x` on it"),
            "{error}"
        );
    }
}
