//! Grants: the limits of a spawner whose server runs without privileges.
//!
//! A launcher that runs as root starts such a spawner and passes it a grant. The spawner checks every request of the
//! server against the grant: an attacker who took over the server must not become root by requesting
//! another directory, another root file system or a name that leads elsewhere.

use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use isol8_backend::Owner;
use serde::{Deserialize, Serialize};

/// The paths that a spawner may work with, and the user whose requests it accepts.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Grant {
    /// The user that the server runs as, who becomes the owner of the sockets.
    pub owner: Owner,
    /// Directory of the only permitted instance. The directory belongs to root.
    pub instance: PathBuf,
    /// Root of the host's file system.
    pub host: PathBuf,
    /// Directory of unpacked roots.
    pub roots: Option<PathBuf>,
}

impl Grant {
    /// Encodes the grant as a command-line argument for [`Self::parse`].
    ///
    /// # Errors
    /// A path is not valid UTF-8.
    pub fn to_argument(&self) -> serde_json::Result<String> {
        serde_json::to_string(self)
    }

    /// Parses a command-line argument.
    ///
    /// # Errors
    /// The argument was not made by [`Self::to_argument`].
    pub fn parse(argument: &str) -> serde_json::Result<Self> {
        serde_json::from_str(argument)
    }

    /// Checks the paths of a server's first request, [`Start`](super::message::Action::Start).
    ///
    /// # Errors
    /// A text that names the refused path.
    pub fn check(&self, instance: &Path, host: &Path, roots: Option<&Path>) -> Result<(), String> {
        let refused =
            |what: &str, path: &Path| Err(format!("{what} {} is refused", path.display()));
        if instance != self.instance || !belongs_to_root(instance) {
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

/// Returns whether a path is a directory that only root can change.
fn belongs_to_root(path: &Path) -> bool {
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
    fn only_the_granted_instance_is_accepted_and_only_if_it_belongs_to_root() {
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
        // The launcher granted the path, but the user has replaced it or may change it.
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
