//! The root file system that all sandboxes of an instance share, each through a read-only overlay.
//!
//! The skeleton is in memory and contains only mount points and a synthetic `/etc`. Overlays of the host's programs are
//! mounted within it. No file of the host's `/root`, `/home`, `/var` or `/run` is visible in a sandbox.

use std::fs;
use std::io;
use std::os::unix::fs::{PermissionsExt as _, symlink};
use std::path::{Path, PathBuf};

use isol8_api::Runtime;
use isol8_backend::spec::{HOSTS, RESOLV_CONF};
use isol8_protocol::{SANDBOX_GID, SANDBOX_UID};

/// Path of the guest agent in a sandbox.
pub const GUEST: &str = "/.isol8/guest";

/// Path, in a sandbox, of the certificates that programs trust, if any are configured.
pub const CERTIFICATES: &str = "/.isol8/ca.pem";

/// Directories of the host that sandboxes see, if they exist. The last two contain no secrets, and many
/// programs of `/usr` need them.
const SHARED_DIRECTORIES: [&str; 8] = [
    "usr",
    "bin",
    "sbin",
    "lib",
    "lib32",
    "lib64",
    "etc/alternatives",
    "etc/ssl/certs",
];

/// Content of `/etc/nsswitch.conf`: host names are resolved by DNS. In a sandbox with its own network, the guest is
/// the name server, which refuses all names.
const NSSWITCH: &str = "passwd: files\ngroup: files\nhosts: files dns\n";

/// Mount points and directories that every sandbox has.
const OWN_DIRECTORIES: [&str; 7] = ["proc", "dev", "sandbox", "tmp", "etc", ".isol8", "var"];

/// Directories of programs, in the order of the sandbox's `PATH`.
const PROGRAM_DIRECTORIES: [&str; 3] = ["usr/local/bin", "usr/bin", "bin"];

/// A directory of the host that appears in sandboxes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SharedDirectory {
    /// Path on the host.
    pub source: PathBuf,
    /// Path in the sandbox, relative to its root.
    pub destination: PathBuf,
}

/// Returns the path of the interpreter on the host, if sandboxes can see it.
#[must_use]
pub fn find_interpreter(host: &Path, runtime: Runtime) -> Option<PathBuf> {
    PROGRAM_DIRECTORIES
        .into_iter()
        .map(|directory| host.join(directory).join(runtime.facts().executable))
        .find(|path| {
            // The path is resolved first: a link to a directory that is not shared would be broken in a sandbox.
            let visible = |path: PathBuf| {
                SHARED_DIRECTORIES
                    .iter()
                    .any(|directory| path.starts_with(host.join(directory)))
            };
            let executable = |path: &Path| {
                fs::metadata(path)
                    .is_ok_and(|found| found.is_file() && found.permissions().mode() & 0o111 != 0)
            };
            fs::canonicalize(path).is_ok_and(visible) && executable(path)
        })
}

/// Returns the directories of the host that are mounted in the root.
#[must_use]
pub fn shared_directories(host: &Path) -> Vec<SharedDirectory> {
    let directories = SHARED_DIRECTORIES.into_iter().filter(|name| {
        let found = fs::symlink_metadata(host.join(name));
        found.is_ok_and(|found| found.is_dir())
    });
    directories
        .map(|name| SharedDirectory {
            source: host.join(name),
            destination: name.into(),
        })
        .collect()
}

/// Builds the skeleton of a sandbox's root in an empty directory. The [`shared_directories`] are mounted there later.
///
/// # Errors
/// The I/O error of the first file that cannot be made.
pub fn build(host: &Path, root: &Path) -> io::Result<()> {
    add_sandbox_files(root)?;
    // The cache has the paths of the host's libraries. A host without a cache has them in the default directories.
    if let Ok(cache) = fs::read(host.join("etc/ld.so.cache")) {
        fs::write(root.join("etc/ld.so.cache"), cache)?;
    }
    for name in SHARED_DIRECTORIES {
        let inside = root.join(name);
        match fs::read_link(host.join(name)) {
            // The host has a merged /usr: /bin and similar directories are links into it.
            Ok(target) => symlink(target, inside)?,
            Err(_) if host.join(name).is_dir() => fs::create_dir_all(inside)?,
            Err(_) => {}
        }
    }
    make_readable(root)
}

/// Adds the files that every sandbox has to a root: mount points, and files of `/etc`, which replace existing files.
///
/// # Errors
/// The I/O error of the first file that cannot be made.
pub fn add_sandbox_files(root: &Path) -> io::Result<()> {
    for directory in OWN_DIRECTORIES {
        fs::create_dir_all(root.join(directory))?;
    }
    // A file can only be mounted over an existing file.
    for file in [GUEST, CERTIFICATES] {
        replace_file(&root.join(file.trim_start_matches('/')), "")?;
    }
    // Programs expect /var/tmp to be writable.
    let temporary = root.join("var/tmp");
    if temporary.is_dir() {
        fs::remove_dir_all(&temporary)?;
    }
    symlink("/tmp", temporary)?;
    write_etc(&root.join("etc"))
}

/// Copies the host's files for name resolution to `etc` in a new directory, for a sandbox in the host's network. The
/// sandbox gets copies because it could lock and watch the host's files.
///
/// # Errors
/// The I/O error of the first file that cannot be made.
pub fn copy_name_resolution(host_etc: &Path, root: &Path) -> io::Result<()> {
    let etc = root.join("etc");
    fs::create_dir_all(&etc)?;
    for name in ["hosts", "resolv.conf"] {
        match fs::read(host_etc.join(name)) {
            Ok(content) => fs::write(etc.join(name), content)?,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(error),
        }
    }
    fs::write(etc.join("nsswitch.conf"), NSSWITCH)?;
    make_readable(root)
}

/// Writes a file that all users may read. Removes an existing file or link first, so that no link is followed.
fn replace_file(path: &Path, content: &str) -> io::Result<()> {
    remove_file(path)?;
    fs::write(path, content)?;
    fs::set_permissions(path, fs::Permissions::from_mode(0o644))
}

fn remove_file(path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

fn write_etc(etc: &Path) -> io::Result<()> {
    let files = [
        (
            "passwd",
            format!(
                "root:x:0:0:root:/:/usr/sbin/nologin\n\
                 sandbox:x:{SANDBOX_UID}:{SANDBOX_GID}:sandbox:/sandbox:/bin/bash\n\
                 nobody:x:65534:65534:nobody:/nonexistent:/usr/sbin/nologin\n"
            ),
        ),
        (
            "group",
            format!("root:x:0:\nsandbox:x:{SANDBOX_GID}:\nnogroup:x:65534:\n"),
        ),
        ("hosts", HOSTS.to_owned()),
        ("hostname", "sandbox\n".to_owned()),
        ("resolv.conf", RESOLV_CONF.to_owned()),
        ("nsswitch.conf", NSSWITCH.to_owned()),
    ];
    for (name, content) in files {
        replace_file(&etc.join(name), &content)?;
    }
    let time_zone = etc.join("localtime");
    remove_file(&time_zone)?;
    symlink("/usr/share/zoneinfo/Etc/UTC", time_zone)
}

/// Makes files and directories readable for all users, whatever the umask was. The ids of a sandbox belong to no user
/// of the host, so they have the permissions of other users.
fn make_readable(directory: &Path) -> io::Result<()> {
    for entry in fs::read_dir(directory)? {
        let entry = entry?;
        let kind = entry.file_type()?;
        if kind.is_dir() {
            make_readable(&entry.path())?;
        } else if kind.is_file() {
            fs::set_permissions(entry.path(), fs::Permissions::from_mode(0o644))?;
        }
    }
    fs::set_permissions(directory, fs::Permissions::from_mode(0o755))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn links_are_kept_and_directories_shared() {
        let (host, root) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        fs::create_dir_all(host.path().join("usr/bin")).unwrap();
        fs::create_dir_all(host.path().join("home/somebody")).unwrap();
        symlink("usr/bin", host.path().join("bin")).unwrap();

        let root = root.path();
        build(host.path(), root).unwrap();

        assert_eq!(
            shared_directories(host.path()),
            [SharedDirectory {
                source: host.path().join("usr"),
                destination: "usr".into()
            }]
        );
        assert_eq!(
            fs::read_link(root.join("bin")).unwrap(),
            Path::new("usr/bin")
        );
        assert!(!root.join("home").exists());
        let passwd = fs::read_to_string(root.join("etc/passwd")).unwrap();
        assert!(passwd.contains("sandbox:x:64800:64800:"));
    }

    #[test]
    fn a_sandbox_in_the_host_network_has_copies_of_the_files_for_name_resolution() {
        let (host, root) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        fs::write(host.path().join("hosts"), "127.0.0.1 here\n").unwrap();

        copy_name_resolution(host.path(), root.path()).unwrap();

        let etc = root.path().join("etc");
        let hosts = fs::read_to_string(etc.join("hosts")).unwrap();
        assert_eq!(hosts, "127.0.0.1 here\n");
        assert!(!etc.join("resolv.conf").exists(), "the host has none");
        assert!(etc.join("nsswitch.conf").exists());
    }

    #[test]
    fn every_interpreter_is_found_where_administrators_install_it() {
        let host = tempfile::tempdir().unwrap();
        let bin = host.path().join("usr/local/bin");
        fs::create_dir_all(&bin).unwrap();
        for runtime in Runtime::ALL {
            let program = bin.join(runtime.facts().executable);
            fs::write(&program, "").unwrap();
            fs::set_permissions(&program, fs::Permissions::from_mode(0o755)).unwrap();
            assert_eq!(find_interpreter(host.path(), runtime), Some(program));
        }
    }

    #[test]
    fn an_interpreter_counts_only_where_the_sandbox_would_see_it() {
        let host = tempfile::tempdir().unwrap();
        let bin = host.path().join("usr/bin");
        fs::create_dir_all(&bin).unwrap();
        fs::create_dir_all(host.path().join("root")).unwrap();
        let hidden = host.path().join("root/python3");
        fs::write(&hidden, "").unwrap();
        fs::set_permissions(&hidden, fs::Permissions::from_mode(0o755)).unwrap();
        symlink(&hidden, bin.join("python3")).unwrap();
        assert_eq!(find_interpreter(host.path(), Runtime::Python), None);

        fs::write(bin.join("bash"), "").unwrap();
        assert_eq!(find_interpreter(host.path(), Runtime::Bash), None);
        fs::set_permissions(bin.join("bash"), fs::Permissions::from_mode(0o755)).unwrap();
        assert_eq!(
            find_interpreter(host.path(), Runtime::Bash),
            Some(bin.join("bash"))
        );
    }
}
