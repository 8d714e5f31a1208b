//! The bounds of a spawner whose server runs without privileges.
//!
//! Such a spawner is started by a launcher that runs as root, and gets its bounds from there. What the
//! server asks for is checked against them: a server that was taken over must not become root by asking for
//! another directory, another root file system or a name that leads elsewhere.

use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use isol8_backend::{Owner, SandboxId};
use serde::{Deserialize, Serialize};

/// What a spawner may be asked for, and by whom.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Grant {
    /// The user that the server runs as, which gets the sockets.
    pub owner: Owner,
    /// The directory that holds all instances. It and they are root's.
    pub state: PathBuf,
    /// Root of the host's file system.
    pub host: PathBuf,
    /// Directory of unpacked roots.
    pub roots: Option<PathBuf>,
}

impl Grant {
    /// As an argument of a command line, which [`Self::parse`] reads.
    ///
    /// # Errors
    /// Where a path is not valid UTF-8.
    pub fn to_argument(&self) -> serde_json::Result<String> {
        serde_json::to_string(self)
    }

    /// Reads an argument of the command line.
    ///
    /// # Errors
    /// Where it is none that [`Self::to_argument`] made.
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
        let name = instance.file_name().and_then(|name| name.to_str());
        let is_name = name.and_then(SandboxId::parse).is_some();
        if !is_name || instance.parent() != Some(&self.state) || !is_roots_own(instance) {
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
    use std::os::unix::fs::{DirBuilderExt as _, symlink};

    use super::*;

    const NAME: &str = "0123456789abcdef";

    fn grant(state: &Path) -> Grant {
        Grant {
            owner: Owner { uid: 999, gid: 999 },
            state: state.to_owned(),
            host: "/".into(),
            roots: Some("/srv/images".into()),
        }
    }

    #[test]
    fn a_grant_survives_the_command_line() {
        let grant = grant(Path::new("/var/lib/isol8/native"));
        assert_eq!(Grant::parse(&grant.to_argument().unwrap()).unwrap(), grant);
        assert!(Grant::parse("{}").is_err());
    }

    #[test]
    fn only_an_instance_of_roots_under_the_state_directory_is_granted() {
        let state = tempfile::tempdir().unwrap();
        let state = state.path();
        let make = |name: &str, mode| {
            let path = state.join(name);
            fs::DirBuilder::new().mode(mode).create(&path).unwrap();
            path
        };
        let own = make(NAME, 0o755);
        let grant = grant(state);
        let roots = Some(Path::new("/srv/images"));
        let host = Path::new("/");
        let is_granted = |instance: &Path| grant.check(instance, host, roots).is_ok();
        assert_eq!(is_granted(&own), nix::unistd::geteuid().is_root());

        let open = make("0123456789abcde0", 0o755);
        fs::set_permissions(&open, std::os::unix::fs::PermissionsExt::from_mode(0o777)).unwrap();
        let link = state.join("0123456789abcde1");
        symlink(&own, &link).unwrap();
        let elsewhere = make("etc", 0o755);
        let absent = state.join("0123456789abcde2");
        let up = state.join(NAME).join("..").join(NAME);
        for refused in [&open, &link, &elsewhere, &absent, &up, &state.to_owned()] {
            assert!(!is_granted(refused), "{}", refused.display());
        }
        for (host, roots) in [("/srv", roots), ("/", None), ("/", Some(Path::new("/etc")))] {
            grant.check(&own, Path::new(host), roots).unwrap_err();
        }
    }
}
