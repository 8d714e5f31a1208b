//! The server and key that `isol8 login` stores in `~/.isol8/login.json`, which only the user may read.

use std::fmt;
use std::fs::{self, DirBuilder};
use std::io::{self, Write as _};
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

/// A server and its API key.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Login {
    /// The server's address.
    pub host: String,
    /// The API key.
    pub key: String,
}

/// Leaves out the key, which must not appear in logs.
impl fmt::Debug for Login {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Login")
            .field("host", &self.host)
            .finish_non_exhaustive()
    }
}

/// The error of storing, reading or deleting a login.
#[derive(Debug, thiserror::Error)]
pub enum LoginError {
    /// The user has no home directory.
    #[error("HOME is not set, so there is no ~/.isol8 to store the login in")]
    NoHome,
    /// The file cannot be used.
    #[error("{path}: {source}", path = .path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// The cause.
        source: io::Error,
    },
}

impl Login {
    /// Returns the stored login, if any.
    ///
    /// # Errors
    /// Returns [`LoginError::Io`].
    pub fn load() -> Result<Option<Self>, LoginError> {
        match path() {
            Ok(path) => Self::load_from(&path),
            Err(_) => Ok(None),
        }
    }

    /// Stores the login, and replaces an earlier one.
    ///
    /// # Errors
    /// Returns a [`LoginError`].
    pub fn store(&self) -> Result<PathBuf, LoginError> {
        let path = path()?;
        self.store_at(&path)?;
        Ok(path)
    }

    /// Deletes the stored login, and returns whether there was one.
    ///
    /// # Errors
    /// Returns a [`LoginError`].
    pub fn forget() -> Result<bool, LoginError> {
        let path = path()?;
        match fs::remove_file(&path) {
            Ok(()) => Ok(true),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
            Err(source) => Err(LoginError::Io { path, source }),
        }
    }

    fn load_from(path: &Path) -> Result<Option<Self>, LoginError> {
        let failed = |source| LoginError::Io {
            path: path.to_owned(),
            source,
        };
        let text = match fs::read_to_string(path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            text => text.map_err(failed)?,
        };
        // Report the line of the fault, but not its text, which may be the key.
        let login = serde_json::from_str(&text).map_err(|error| {
            let problem = format!(
                "not a valid login file, at line {} (delete it with `isol8 logout`)",
                error.line()
            );
            failed(io::Error::new(io::ErrorKind::InvalidData, problem))
        });
        login.map(Some)
    }

    fn store_at(&self, path: &Path) -> Result<(), LoginError> {
        self.write(path).map_err(|source| LoginError::Io {
            path: path.to_owned(),
            source,
        })
    }

    /// Writes the file atomically, and never readable by others: it is created under another name, with its owner's
    /// rights only, and then renamed.
    fn write(&self, path: &Path) -> io::Result<()> {
        let directory = path.parent().unwrap_or(Path::new("."));
        DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(directory)?;
        let mut file = tempfile::NamedTempFile::new_in(directory)?;
        file.write_all(serde_json::to_string_pretty(self)?.as_bytes())?;
        file.as_file().sync_all()?;
        file.persist(path)?;
        Ok(())
    }
}

fn path() -> Result<PathBuf, LoginError> {
    let home = std::env::var_os("HOME").filter(|home| !home.is_empty());
    let home = home.ok_or(LoginError::NoHome)?;
    Ok(Path::new(&home).join(".isol8/login.json"))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    #[test]
    fn a_login_is_its_owners_alone_whatever_was_there() {
        let home = tempfile::tempdir().unwrap();
        let path = home.path().join(".isol8/login.json");
        assert_eq!(Login::load_from(&path).unwrap(), None);
        for key in ["one", "two"] {
            let login = Login {
                host: "http://host".to_owned(),
                key: key.to_owned(),
            };
            login.store_at(&path).unwrap();
            assert_eq!(Login::load_from(&path).unwrap(), Some(login));
            let mode = fs::metadata(&path).unwrap().permissions().mode();
            assert_eq!(mode & 0o777, 0o600);
            fs::set_permissions(&path, fs::Permissions::from_mode(0o644)).unwrap();
        }
        let left = fs::read_dir(path.parent().unwrap()).unwrap().count();
        assert_eq!(left, 1);
    }

    #[test]
    fn a_file_that_is_no_login_is_named_and_its_text_is_not_shown() {
        let home = tempfile::tempdir().unwrap();
        let path = home.path().join("login.json");
        fs::write(&path, "{\"host\": \"h\", \"key\": hunter2}").unwrap();
        let error = Login::load_from(&path).unwrap_err().to_string();
        assert!(
            error.contains("login.json") && !error.contains("hunter2"),
            "{error}"
        );
    }
}
