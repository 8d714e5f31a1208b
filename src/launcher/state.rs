//! Ownership of the state directory of a server that runs as another user.

use std::fs::{self, DirBuilder, Permissions};
use std::io;
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};

use isol8_backend::{Instance, Owner};
use isol8_config::Config;
use isol8_engine::backends::{self, BackendKind};

/// Mode that lets other users pass through a directory, but not list it.
const MODE: u32 = 0o711;

/// Creates the state directory and the directories that the server needs in it. Root works below `native`, so that
/// directory and the state directory stay root's. `docker` and the package cache become the user's, including files
/// that an earlier server left there as root.
///
/// # Errors
/// Returns a text that names the directory and the fix.
pub(super) fn prepare(config: &Config, kind: BackendKind, owner: Owner) -> Result<(), String> {
    let state = &config.startup.state;
    make_for_root(state, owner)?;
    let backend = backends::state_of(kind, config);
    match kind {
        BackendKind::Native => make_for_root(&backend, owner)?,
        BackendKind::Docker => {
            give_to_user(&backend, owner)?;
            for instance in Instance::all(&backend) {
                give_to_user(&instance, owner)?;
            }
        }
    }
    if config.packages.is_cached && config.packages.directory.is_none() {
        give_to_user(&config.packages.cache_directory(state), owner)?;
    }
    Ok(())
}

/// Creates a directory in which root may work: neither the directory nor one above it belongs to the user.
fn make_for_root(directory: &Path, owner: Owner) -> Result<(), String> {
    make(directory).map_err(|error| failed(directory, &error))?;
    let whole = fs::canonicalize(directory).map_err(|error| failed(directory, &error))?;
    for place in whole.ancestors() {
        let found = fs::symlink_metadata(place).map_err(|error| failed(place, &error))?;
        let is_theirs = found.uid() == owner.uid;
        let is_whole = place == whole && (found.uid() != 0 || found.mode() & 0o022 != 0);
        if is_theirs || is_whole {
            return Err(format!(
                "state directory {} must belong to root, because root creates sandboxes there; {place} belongs to uid {} \
                 (mode {:o}): `chown root {place} && chmod 711 {place}`, or set stateDir to another directory",
                directory.display(),
                found.uid(),
                found.mode() & 0o7777,
                place = place.display(),
            ));
        }
    }
    Ok(())
}

/// Creates a directory for the server, and gives it to the user.
fn give_to_user(directory: &Path, owner: Owner) -> Result<(), String> {
    make(directory)
        .and_then(|()| owner.chown_tree(directory))
        .map_err(|error| failed(directory, &error))
}

fn make(directory: &Path) -> io::Result<()> {
    if directory.is_dir() {
        return Ok(());
    }
    DirBuilder::new()
        .recursive(true)
        .mode(MODE)
        .create(directory)?;
    // The umask may have removed bits that sandboxes' users need to pass through.
    fs::set_permissions(directory, Permissions::from_mode(MODE))
}

fn failed(directory: &Path, error: &io::Error) -> String {
    format!("cannot prepare directory {}: {error}", directory.display())
}

/// Returns an error for the first configuration file that the server could not read again.
pub(super) fn unreadable(sources: &[PathBuf]) -> Option<String> {
    sources.iter().find_map(|path| {
        let error = fs::File::open(path).err()?;
        Some(format!(
            "configuration {} cannot be read by the server's user ({error}): the server reads it again when it changes, so \
             choose a directory and a mode that let the user read it, and put the API key in ISOL8_API_KEY",
            path.display()
        ))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const OWNER: Owner = Owner {
        uid: 54321,
        gid: 54322,
    };

    #[test]
    fn root_works_in_no_directory_that_the_user_can_change() {
        let is_root = nix::unistd::geteuid().is_root();
        assert!(
            is_root,
            "only root gives files away: run scripts/test as root"
        );
        let top = tempfile::tempdir().unwrap();
        let top = fs::canonicalize(top.path()).unwrap();
        let state = top.join("state");
        make_for_root(&state, OWNER).unwrap();
        assert_eq!(fs::metadata(&state).unwrap().mode() & 0o7777, MODE);
        make_for_root(&state, OWNER).unwrap();

        fs::set_permissions(&state, Permissions::from_mode(0o777)).unwrap();
        let error = make_for_root(&state, OWNER).unwrap_err();
        let fix = format!("`chown root {0} && chmod 711 {0}`", state.display());
        assert!(error.contains(&fix), "{error}");
        fs::set_permissions(&state, Permissions::from_mode(MODE)).unwrap();
        OWNER.chown(&top).unwrap();
        let error = make_for_root(&state, OWNER).unwrap_err();
        let fix = format!("`chown root {} &&", top.display());
        assert!(
            error.contains(&fix) && error.contains("uid 54321"),
            "{error}"
        );
    }

    #[test]
    fn a_file_that_cannot_be_read_again_is_named() {
        let gone = PathBuf::from("/no/such/config.toml");
        assert_eq!(unreadable(&[]), None);
        let text = unreadable(&[gone]).unwrap();
        assert!(
            text.starts_with("configuration /no/such/config.toml"),
            "{text}"
        );
    }
}
