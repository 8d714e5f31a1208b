//! The directory of a sandbox on the host, and its files.
//!
//! A container mounts some of these files read-only. Each sandbox has its own copies, because locks and watches of a
//! file affect all containers that mount the same file.

use std::fs;
use std::io;
use std::os::unix::fs::{DirBuilderExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};

use isol8_backend::Certificates;
use isol8_backend::spec::{HOSTS, RESOLV_CONF};

/// The accounts of a Debian system, as the package `base-passwd` defines them.
const ACCOUNTS: &str = include_str!("etc/passwd");
/// The groups of a Debian system, as the package `base-passwd` defines them.
const GROUPS: &str = include_str!("etc/group");

/// Files of `/etc` that define users and groups.
pub(crate) const ACCOUNT_FILES: [&str; 2] = ["passwd", "group"];
/// Files of `/etc` for name resolution, in a container without a network. With a network, the engine writes these
/// files for each container.
pub(crate) const NAME_RESOLUTION_FILES: [&str; 2] = ["hosts", "resolv.conf"];

/// File of the certificates that programs trust.
pub(crate) const CERTIFICATES: &str = "ca-certificates.crt";

/// The directory of one sandbox.
#[derive(Clone, Debug)]
pub(crate) struct SandboxDirectory(PathBuf);

impl SandboxDirectory {
    pub(crate) fn new(instance: &Path, sandbox: &str) -> Self {
        Self(instance.join(sandbox))
    }

    pub(crate) fn path(&self) -> &Path {
        &self.0
    }

    /// Returns the path of the guest agent's executable.
    pub(crate) fn guest(&self) -> PathBuf {
        self.0.join("guest")
    }

    /// Returns the path of the only directory that a container mounts.
    pub(crate) fn control(&self) -> PathBuf {
        self.0.join("control")
    }

    /// Returns the path of a file that a container mounts in `/etc`.
    pub(crate) fn etc(&self, name: &str) -> PathBuf {
        self.0.join("etc").join(name)
    }

    /// Makes the directory with all its files, for a sandbox whose user code has the id `user`.
    ///
    /// # Errors
    /// The I/O error of the first file that cannot be made. Files that were made before stay.
    pub(crate) fn make(
        &self,
        guest: &Path,
        user: u32,
        certificates: Option<&Certificates>,
    ) -> io::Result<()> {
        let make_private = |path: &Path| fs::DirBuilder::new().mode(0o700).create(path);
        make_private(&self.0)?;
        make_private(&self.control())?;
        make_private(&self.0.join("etc"))?;
        fs::copy(guest, self.guest())?;
        let certificates = certificates.map(|all| (CERTIFICATES, all.pem().to_owned()));
        let files = [
            ("passwd", accounts(user)),
            ("group", groups(user)),
            ("hosts", HOSTS.to_owned()),
            ("resolv.conf", RESOLV_CONF.to_owned()),
        ];
        for (name, content) in files.into_iter().chain(certificates) {
            let path = self.etc(name);
            fs::write(&path, content)?;
            // User code must be able to read the file, whatever the umask was.
            fs::set_permissions(&path, fs::Permissions::from_mode(0o644))?;
        }
        Ok(())
    }

    /// Removes the directory with all its files.
    pub(crate) fn remove(&self) {
        match fs::remove_dir_all(&self.0) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                log::warn!(path:% = self.0.display(), error:%; "sandbox directory could not be removed");
            }
            _ => {}
        }
    }
}

fn accounts(user: u32) -> String {
    format!("{ACCOUNTS}sandbox:x:{user}:{user}:sandbox:/sandbox:/bin/bash\n")
}

fn groups(user: u32) -> String {
    format!("{GROUPS}sandbox:x:{user}:\n")
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::MetadataExt as _;

    use super::*;

    const PEM: &str = "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n";

    #[test]
    fn no_file_is_shared_between_two_sandboxes() {
        let instance = tempfile::tempdir().unwrap();
        let guest = instance.path().join("guest");
        fs::write(&guest, "program").unwrap();
        fs::set_permissions(&guest, fs::Permissions::from_mode(0o755)).unwrap();
        let made = ["one", "two"].map(|name| {
            let directory = SandboxDirectory::new(instance.path(), name);
            let certificates = Certificates::merge([PEM]).unwrap();
            let made = directory.make(&guest, 0x7000_0002, Some(&certificates));
            made.unwrap();
            directory
        });
        let inodes = made.each_ref().map(|one| {
            let names = ACCOUNT_FILES.iter().chain(&NAME_RESOLUTION_FILES);
            let names = names.chain([&CERTIFICATES]);
            let etc = names.map(|name| one.etc(name));
            let paths: Vec<PathBuf> = etc.chain([one.guest(), one.control()]).collect();
            let inode = |path: &PathBuf| fs::metadata(path).unwrap().ino();
            paths.iter().map(inode).collect::<Vec<_>>()
        });
        let [one, two] = &inodes;
        assert!(one.iter().all(|inode| !two.contains(inode)));

        let [one, two] = &made;
        let mode = |path: &Path| fs::metadata(path).unwrap().mode() & 0o7777;
        assert_eq!(mode(one.path()), 0o700);
        assert_eq!(mode(&one.control()), 0o700);
        assert_eq!(mode(&one.guest()), 0o755);
        assert_eq!(mode(&one.etc("passwd")), 0o644);
        one.remove();
        one.remove();
        assert!(!one.path().exists());
        assert!(two.path().exists());
    }

    #[test]
    fn the_user_of_a_sandbox_has_a_name() {
        let user = "sandbox:x:1879048194:1879048194:sandbox:/sandbox:/bin/bash\n";
        assert!(accounts(0x7000_0002).ends_with(user));
        assert!(groups(0x7000_0002).ends_with("\nsandbox:x:1879048194:\n"));
        for (file, fields) in [(ACCOUNTS, 7), (GROUPS, 4)] {
            assert!(file.starts_with("root:x:0:") && file.ends_with('\n'));
            assert!(file.lines().all(|line| line.split(':').count() == fields));
            assert!(!file.contains("sandbox"));
        }
    }
}
