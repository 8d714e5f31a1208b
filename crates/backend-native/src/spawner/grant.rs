//! The bounds of a spawner whose server runs without privileges.
//!
//! Such a spawner is started by a launcher that runs as root, and gets its bounds from there. The server's requests are
//! checked against them: a server that was taken over must not become root by asking for another directory, another
//! root file system or a name that leads elsewhere.

use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use isol8_backend::Owner;
use serde::{Deserialize, Serialize};

/// Limits of what a spawner does, and the user who may ask for it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Grant {
    /// The user that the server runs as, which gets the sockets.
    pub owner: Owner,
    /// Directory of the one instance, which is root's.
    pub instance: PathBuf,
    /// Root of the host's file system.
    pub host: PathBuf,
    /// Directory of unpacked roots.
    pub roots: Option<PathBuf>,
}

impl Grant {
    /// As an argument of a command line, which [`Self::parse`] reads.
    ///
    /// # Errors
    /// If a path is not valid UTF-8.
    pub fn to_argument(&self) -> serde_json::Result<String> {
        serde_json::to_string(self)
    }

    /// Reads an argument of the command line.
    ///
    /// # Errors
    /// If the text was not made by [`Self::to_argument`].
    pub fn parse(argument: &str) -> serde_json::Result<Self> {
        serde_json::from_str(argument)
    }

    /// Checks what a server asks a spawner to begin with.
    ///
    /// # Errors
    /// A text that names what is not granted.
    pub fn check(&self, instance: &Path, host: &Path, roots: Option<&Path>) -> Result<(), String> {
        let refused =
            |what: &str, path: &Path| Err(format!("{what} {} is refused", path.display()));
        if instance != self.instance || !is_roots_own(instance) {
            return refused("instance", instance);
        }
        if host != self.host {
            return refused("host", host);
        }
        if roots != self.roots.as_deref() {
            return refused("images.root", roots.unwrap_or(Path::new("(none)")));
        }
        Ok(())
    }
}

/// Whether a path is a directory that only root can change.
fn is_roots_own(path: &Path) -> bool {
    fs::symlink_metadata(path)
        .is_ok_and(|found| found.is_dir() && found.uid() == 0 && found.mode() & 0o022 == 0)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{PermissionsExt as _, symlink};

    use super::*;

    const NAME: &str = "0123456789abcdef";

    fn grant(instance: &Path) -> Grant {
        Grant {
            owner: Owner { uid: 999, gid: 999 },
            instance: instance.to_owned(),
            host: "/".into(),
            roots: Some("/srv/images".into()),
        }
    }

    #[test]
    fn a_grant_survives_the_command_line() {
        let grant = grant(Path::new("/var/lib/isol8/native/0123456789abcdef"));
        assert_eq!(Grant::parse(&grant.to_argument().unwrap()).unwrap(), grant);
        assert!(Grant::parse("{}").is_err());
    }

    #[test]
    fn only_the_one_instance_is_granted_and_only_where_it_is_roots() {
        let state = tempfile::tempdir().unwrap();
        let state = state.path();
        let make = |name: &str| {
            let path = state.join(name);
            fs::create_dir(&path).unwrap();
            fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
            path
        };
        let own = make(NAME);
        let host = Path::new("/");
        let roots = Some(Path::new("/srv/images"));
        let is_granted =
            |grant: &Grant, instance: &Path| grant.check(instance, host, roots).is_ok();
        assert_eq!(
            is_granted(&grant(&own), &own),
            nix::unistd::geteuid().is_root()
        );
        let other = make("0123456789abcde0");
        for refused in [&other, &state.join("absent"), Path::new("/etc")] {
            assert!(!is_granted(&grant(&own), refused), "{}", refused.display());
        }
        // A path that the launcher granted, and that the user has replaced or may change.
        let link = state.join("0123456789abcde1");
        symlink(&own, &link).unwrap();
        fs::set_permissions(&other, fs::Permissions::from_mode(0o777)).unwrap();
        for refused in [&link, &other, &state.join("absent")] {
            assert!(
                !is_granted(&grant(refused), refused),
                "{}",
                refused.display()
            );
        }
        for (host, roots) in [("/srv", roots), ("/", None), ("/", Some(Path::new("/etc")))] {
            let checked = grant(&own).check(&own, Path::new(host), roots);
            checked.unwrap_err();
        }
    }
}
