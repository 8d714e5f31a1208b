//! Files in and out, with the rights of user code and confined to the writable places.
//!
//! A path is opened beneath the place that it starts with: the kernel refuses every component
//! that would leave it, links included. A written file gets its name when it is complete; what
//! had that name before, were it a link, is replaced and not followed.

use std::ffi::{CString, OsStr, OsString};
use std::fs::File;
use std::hash::{BuildHasher as _, Hasher as _, RandomState};
use std::io::{self, Read as _, Write as _};
use std::os::fd::{AsFd as _, OwnedFd};
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Component, Path, PathBuf};

use isol8_protocol::{CHUNK_SIZE, Failure, FailureKind};
use nix::dir::Dir;
use nix::errno::Errno;
use nix::fcntl::{AT_FDCWD, AtFlags, OFlag, OpenHow, ResolveFlag, open, openat2, renameat};
use nix::sys::stat::{Mode, SFlag, fchmod, fstatat, mkdirat};
use nix::unistd::{UnlinkatFlags, unlinkat};

use crate::failure::{failure, file_failure, internal};
use crate::lockdown::Privileges;

/// The directories that files may be written to and read from.
pub(crate) const PLACES: [&str; 2] = ["/sandbox", "/tmp"];

/// A name for a file of the guest's among those of user code, which could not have taken it before.
pub(crate) fn unguessable_name() -> String {
    // Keyed with what the system gave as random.
    let number = RandomState::new().build_hasher().finish();
    format!(".isol8-{number:016x}")
}

/// Returns the result of `make` for the first place in which it succeeds, or its error for the first place, which is
/// the usual one and so says more.
pub(crate) fn in_any_place<T, const N: usize>(
    places: [&str; N],
    make: impl Fn(&str) -> io::Result<T>,
) -> io::Result<T> {
    let mut failed = None;
    for place in places {
        match make(place) {
            Ok(made) => return Ok(made),
            Err(error) => failed = failed.or(Some(error)),
        }
    }
    Err(failed.unwrap_or_else(|| io::ErrorKind::NotFound.into()))
}

/// One of [`PLACES`], or a path within one.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Place {
    pub(crate) place: &'static str,
    names: Vec<OsString>,
}

impl Place {
    pub(crate) fn parse(path: &str) -> Result<Self, Failure> {
        let place = PLACES
            .into_iter()
            .find(|place| Path::new(path).starts_with(place))
            .ok_or_else(|| refused(path, "is not inside /sandbox or /tmp"))?;
        let rest = Path::new(path).strip_prefix(place);
        let rest = rest.map_err(|_| refused(path, "is not inside /sandbox or /tmp"))?;
        if path.contains('\0') {
            return Err(refused(path, "contains a NUL character"));
        }
        let mut names = Vec::new();
        for component in rest.components() {
            match component {
                Component::Normal(name) => names.push(name.to_owned()),
                Component::CurDir => {}
                _ => return Err(refused(path, "contains ..")),
            }
        }
        Ok(Self { place, names })
    }

    /// Seen from the place itself.
    pub(crate) fn relative(&self) -> PathBuf {
        Path::new(".").join(self.names.iter().collect::<PathBuf>())
    }
}

/// A path within one of [`PLACES`] that names a file.
#[derive(Debug, PartialEq, Eq)]
struct Within {
    place: &'static str,
    parents: Vec<OsString>,
    name: OsString,
}

fn parse(path: &str) -> Result<Within, Failure> {
    let Place { place, mut names } = Place::parse(path)?;
    match names.pop() {
        Some(name) if !path.ends_with('/') => Ok(Within {
            place,
            parents: names,
            name,
        }),
        _ => Err(refused(path, "does not name a file")),
    }
}

fn refused(path: &str, reason: &str) -> Failure {
    failure(FailureKind::Refused, format!("path {path} {reason}"))
}

pub(crate) fn beneath(root: &OwnedFd, path: &Path, flags: OFlag) -> nix::Result<OwnedFd> {
    let how = OpenHow::new()
        .flags(flags | OFlag::O_CLOEXEC)
        .resolve(ResolveFlag::RESOLVE_BENEATH | ResolveFlag::RESOLVE_NO_MAGICLINKS);
    openat2(root, path, how)
}

pub(crate) fn open_place(place: &str) -> nix::Result<OwnedFd> {
    let flags = OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
    open(place, flags, Mode::empty())
}

impl Within {
    /// Returns the directory of the file, creating it if it is missing.
    fn directory(&self) -> nix::Result<OwnedFd> {
        let root = open_place(self.place)?;
        let flags = OFlag::O_PATH | OFlag::O_DIRECTORY;
        let mut current = beneath(&root, Path::new("."), flags)?;
        let mut path = PathBuf::new();
        for name in &self.parents {
            path.push(name);
            let next = match beneath(&root, &path, flags) {
                Err(Errno::ENOENT) => {
                    match mkdirat(&current, name.as_os_str(), Mode::from_bits_truncate(0o755)) {
                        Ok(()) | Err(Errno::EEXIST) => beneath(&root, &path, flags),
                        Err(error) => Err(error),
                    }
                }
                other => other,
            };
            current = next?;
        }
        Ok(current)
    }

    fn relative(&self) -> PathBuf {
        let mut path: PathBuf = self.parents.iter().collect();
        path.push(&self.name);
        path
    }
}

/// A file that is being written.
#[derive(Debug)]
pub(crate) struct Writer {
    privileges: Privileges,
    path: String,
    directory: OwnedFd,
    name: OsString,
    temporary: String,
    mode: Mode,
    file: File,
    complete: bool,
}

impl Writer {
    /// Begins a file.
    pub(crate) fn create(privileges: Privileges, path: &str, mode: u32) -> Result<Self, Failure> {
        let within = parse(path)?;
        let temporary = unguessable_name();
        let begin = || -> nix::Result<(OwnedFd, File)> {
            let directory = within.directory()?;
            refuse_special(&directory, &within)?;
            let flags = OFlag::O_WRONLY
                | OFlag::O_CREAT
                | OFlag::O_EXCL
                | OFlag::O_NOFOLLOW
                | OFlag::O_CLOEXEC;
            let mode = Mode::from_bits_truncate(0o600);
            let file = nix::fcntl::openat(&directory, temporary.as_str(), flags, mode)?;
            Ok((directory, File::from(file)))
        };
        let (directory, file) = privileges
            .as_sandbox_user(begin)
            .map_err(|error| internal("acting as the sandbox user failed", error))?
            .map_err(|error| file_failure(path, error))?;
        Ok(Self {
            privileges,
            path: path.to_owned(),
            directory,
            name: within.name,
            temporary,
            mode: Mode::from_bits_truncate(mode & 0o777),
            file,
            complete: false,
        })
    }

    /// Adds content.
    pub(crate) fn write(&mut self, bytes: &[u8]) -> Result<(), Failure> {
        let written = self.file.write_all(bytes);
        written.map_err(|error| file_failure(&self.path, error))
    }

    /// Gives the complete file its name and mode.
    pub(crate) fn finish(mut self) -> Result<(), Failure> {
        let end = || -> nix::Result<()> {
            fchmod(&self.file, self.mode)?;
            let (temporary, name) = (self.temporary.as_str(), self.name.as_os_str());
            renameat(&self.directory, temporary, &self.directory, name)?;
            // Only now: an import at the same time compiles the new file.
            remove_compiled(&self.directory, name);
            Ok(())
        };
        self.privileges
            .as_sandbox_user(end)
            .map_err(|error| internal("acting as the sandbox user failed", error))?
            .map_err(|error| file_failure(&self.path, error))?;
        self.complete = true;
        Ok(())
    }
}

/// Directory in which Python keeps what it compiled from the modules of a directory.
const COMPILED: &str = "__pycache__";

/// Entries of that directory that are looked at: user code may fill it, and the guest has one thread.
const MAX_COMPILED: usize = 10_000;

/// Removes what Python compiled from the module that had this name before. Python takes it for up to date where the
/// new file has the same size and the same second.
fn remove_compiled(directory: &OwnedFd, module: &OsStr) {
    let Some(stem) = module.as_bytes().strip_suffix(b".py") else {
        return;
    };
    let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
    let Ok(mut compiled) = Dir::openat(directory, COMPILED, flags, Mode::empty()) else {
        return; // nothing was compiled
    };
    let names: Vec<CString> = compiled
        .iter()
        .take(MAX_COMPILED)
        .flatten()
        .map(|entry| entry.file_name().to_owned())
        .filter(|name| is_compiled_from(stem, name.to_bytes()))
        .collect();
    for name in names {
        // User code may have removed it meanwhile.
        let _ = unlinkat(&compiled, name.as_c_str(), UnlinkatFlags::NoRemoveDir);
    }
}

/// Whether a name such as `module.cpython-313.opt-1.pyc` is that of something compiled from the module.
fn is_compiled_from(stem: &[u8], name: &[u8]) -> bool {
    name.strip_prefix(stem)
        .is_some_and(|rest| rest.starts_with(b".") && rest.ends_with(b".pyc"))
}

impl Drop for Writer {
    fn drop(&mut self) {
        if !self.complete {
            let remove = || {
                let temporary = self.temporary.as_str();
                unlinkat(&self.directory, temporary, UnlinkatFlags::NoRemoveDir)
            };
            // User code may have removed it before.
            let _ = self.privileges.as_sandbox_user(remove);
        }
    }
}

/// Only a file, or a link that will be replaced, may have the name already.
fn refuse_special(directory: &OwnedFd, within: &Within) -> nix::Result<()> {
    let flags = AtFlags::AT_SYMLINK_NOFOLLOW;
    match fstatat(directory, within.name.as_os_str(), flags) {
        Ok(found) => match SFlag::from_bits_truncate(found.st_mode & SFlag::S_IFMT.bits()) {
            SFlag::S_IFREG | SFlag::S_IFLNK => Ok(()),
            SFlag::S_IFDIR => Err(Errno::EISDIR),
            _ => Err(Errno::EEXIST),
        },
        Err(Errno::ENOENT) => Ok(()),
        Err(error) => Err(error),
    }
}

/// A file that is being read.
#[derive(Debug)]
pub(crate) struct Reader {
    path: String,
    file: File,
    /// Bytes still to come: what a file grows by while it is read does not count, so that every
    /// transfer ends.
    left: u64,
}

impl Reader {
    pub(crate) fn open(privileges: Privileges, path: &str) -> Result<Self, Failure> {
        let within = parse(path)?;
        let open = || -> nix::Result<OwnedFd> {
            let root = open_place(within.place)?;
            // Opening a pipe must not wait for its other end.
            let flags = OFlag::O_RDONLY | OFlag::O_NONBLOCK | OFlag::O_NOCTTY;
            beneath(&root, &within.relative(), flags)
        };
        let file = privileges
            .as_sandbox_user(open)
            .map_err(|error| internal("acting as the sandbox user failed", error))?
            .map_err(|error| file_failure(path, error))?;
        let file = File::from(file);
        let metadata = file.metadata().map_err(|error| file_failure(path, error))?;
        if !metadata.is_file() {
            return Err(file_failure(path, Errno::EISDIR));
        }
        Ok(Self {
            path: path.to_owned(),
            file,
            left: metadata.size(),
        })
    }

    /// At most `limit` bytes; none at the end.
    pub(crate) fn read(&mut self, limit: u64) -> Result<Vec<u8>, Failure> {
        let size = limit.min(self.left).min(CHUNK_SIZE as u64) as usize;
        let mut bytes = vec![0; size];
        let count = self.file.read(&mut bytes);
        let count = count.map_err(|error| file_failure(&self.path, error))?;
        bytes.truncate(count);
        self.left = if count == 0 {
            0
        } else {
            self.left - count as u64
        };
        Ok(bytes)
    }

    pub(crate) fn is_at_end(&self) -> bool {
        self.left == 0
    }
}

/// Whether user code could have `path` as its working directory.
pub(crate) fn check_directory(privileges: Privileges, path: &str) -> Result<(), Failure> {
    let look = || {
        let flags = OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
        let directory = nix::fcntl::openat(AT_FDCWD, path, flags, Mode::empty())?;
        nix::unistd::faccessat(
            directory.as_fd(),
            ".",
            nix::unistd::AccessFlags::X_OK,
            AtFlags::AT_EACCESS,
        )
    };
    privileges
        .as_sandbox_user(look)
        .map_err(|error| internal("acting as the sandbox user failed", error))?
        .map_err(|error| file_failure(&format!("working directory {path}"), error))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn kind(path: &str) -> FailureKind {
        parse(path).unwrap_err().kind
    }

    #[test]
    fn what_was_compiled_from_a_module_is_known_by_its_name() {
        for name in [
            "a.cpython-313.pyc",
            "a.pypy310.pyc",
            "a.cpython-311.opt-1.pyc",
        ] {
            assert!(is_compiled_from(b"a", name.as_bytes()), "{name}");
        }
        for name in ["ab.cpython-313.pyc", "a.txt", "a", "b.pyc"] {
            assert!(!is_compiled_from(b"a", name.as_bytes()), "{name}");
        }
    }

    #[test]
    fn a_path_is_taken_apart_below_its_place() {
        assert_eq!(
            parse("/sandbox/a/./b//c.txt").unwrap(),
            Within {
                place: "/sandbox",
                parents: vec!["a".into(), "b".into()],
                name: "c.txt".into()
            }
        );
        assert_eq!(parse("/tmp/x").unwrap().place, "/tmp");
    }

    #[test]
    fn a_path_elsewhere_or_upwards_is_refused() {
        for path in [
            "/etc/passwd",
            "sandbox/x",
            "/sandboxed/x",
            "/sandbox",
            "/sandbox/",
            "/sandbox/a/",
            "/sandbox/../etc/passwd",
            "/tmp/a/../../etc/passwd",
            "/sandbox/a\0b",
            "",
        ] {
            assert_eq!(kind(path), FailureKind::Refused, "{path:?}");
        }
    }
}
