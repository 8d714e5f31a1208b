//! The state directory of a server that runs as another user: which parts of it are whose.

use std::fs::{self, DirBuilder, Permissions};
use std::io;
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};

use isol8_backend::{Instance, Owner};

use crate::backends::{self, Kind};
use crate::config::Config;

/// Others may pass through these directories, and not list them.
const MODE: u32 = 0o711;

/// Makes the state directory and what the server needs in it. Root works below `native`, so that and the
/// state directory stay root's; `docker` and the cache of packages become the user's, with what an earlier
/// server that ran as root left there.
///
/// # Errors
/// A text that names the directory, and the fix.
pub(super) fn prepare(config: &Config, kind: Kind, owner: Owner) -> Result<(), String> {
    let state = &config.state;
    make_roots_own(state, owner)?;
    let backend = backends::state_of(kind, config);
    match kind {
        Kind::Native => make_roots_own(&backend, owner)?,
        Kind::Docker => {
            give(&backend, owner)?;
            for instance in Instance::all(&backend) {
                give(&instance, owner)?;
            }
        }
    }
    if config.packages.is_cached && config.packages.directory.is_none() {
        give(&config.packages.place(state), owner)?;
    }
    Ok(())
}

/// Makes a directory in which root may work: neither it nor one above is the user's.
fn make_roots_own(directory: &Path, owner: Owner) -> Result<(), String> {
    make(directory).map_err(|error| failed(directory, &error))?;
    let whole = fs::canonicalize(directory).map_err(|error| failed(directory, &error))?;
    for place in whole.ancestors() {
        let found = fs::symlink_metadata(place).map_err(|error| failed(place, &error))?;
        let is_theirs = found.uid() == owner.uid;
        let is_whole = place == whole && (found.uid() != 0 || found.mode() & 0o022 != 0);
        if is_theirs || is_whole {
            return Err(format!(
                "state directory {} must be root's, because root makes sandboxes there; {place} belongs to uid {} \
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

/// Makes a directory in which the server works.
fn give(directory: &Path, owner: Owner) -> Result<(), String> {
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
    // The umask may have taken away what sandboxes' users need to pass through.
    fs::set_permissions(directory, Permissions::from_mode(MODE))
}

fn failed(directory: &Path, error: &io::Error) -> String {
    format!(
        "directory {} cannot be prepared: {error}",
        directory.display()
    )
}

/// Which files of the configuration the server could not read again.
pub(super) fn unreadable(sources: &[PathBuf]) -> Option<String> {
    sources.iter().find_map(|path| {
        let error = fs::File::open(path).err()?;
        Some(format!(
            "configuration {} cannot be read by the server's user ({error}): it is read again when it changes, so \
             give it a place and a mode that let the user read it; the key belongs into ISOL8_API_KEY",
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
        make_roots_own(&state, OWNER).unwrap();
        assert_eq!(fs::metadata(&state).unwrap().mode() & 0o7777, MODE);
        make_roots_own(&state, OWNER).unwrap();

        fs::set_permissions(&state, Permissions::from_mode(0o777)).unwrap();
        let error = make_roots_own(&state, OWNER).unwrap_err();
        let fix = format!("`chown root {0} && chmod 711 {0}`", state.display());
        assert!(error.contains(&fix), "{error}");
        fs::set_permissions(&state, Permissions::from_mode(MODE)).unwrap();
        OWNER.chown(&top).unwrap();
        let error = make_roots_own(&state, OWNER).unwrap_err();
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
