//! The root directory that every sandbox of an instance has, read-only, an overlay of it each.
//!
//! The skeleton holds mount points, a synthetic `/etc`, and nothing else, in memory; overlays of the host's own programs are
//! mounted within it. Nothing of the host's `/root`, `/home`, `/var` or `/run` appears anywhere.

use std::fs;
use std::io;
use std::os::unix::fs::{PermissionsExt as _, symlink};
use std::path::{Path, PathBuf};

use isol8_api::Runtime;
use isol8_backend::spec::{HOSTS, RESOLV_CONF};
use isol8_protocol::{SANDBOX_GID, SANDBOX_UID};

/// Path of the guest agent inside.
pub const GUEST: &str = "/.isol8/guest";

/// The certificates that programs trust, where sandboxes are given some.
pub const CERTIFICATES: &str = "/.isol8/ca.pem";

/// Directories that the host shares, if it has them. The last two hold no secret, and many programs of `/usr` lead
/// through them.
const SHARED: [&str; 8] = [
    "usr",
    "bin",
    "sbin",
    "lib",
    "lib32",
    "lib64",
    "etc/alternatives",
    "etc/ssl/certs",
];

/// How names are looked up: with a network of its own by the guest, which knows none and says so.
const NAMES_FROM_NETWORK: &str = "passwd: files\ngroup: files\nhosts: files dns\n";

/// Mount points and directories of the sandbox's own.
const OWN: [&str; 7] = ["proc", "dev", "sandbox", "tmp", "etc", ".isol8", "var"];

/// Directories in which programs are looked for, in the order of the sandbox's `PATH`.
const PROGRAM_DIRECTORIES: [&str; 3] = ["usr/local/bin", "usr/bin", "bin"];

/// A directory of the host, and its path in the sandbox.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Share {
    /// On the host.
    pub source: PathBuf,
    /// In the sandbox, from its root.
    pub destination: PathBuf,
}

/// The program that runs scripts of a runtime.
#[must_use]
pub fn interpreter(runtime: Runtime) -> &'static str {
    match runtime {
        Runtime::Python => "python3",
        Runtime::Node => "node",
        Runtime::Bun => "bun",
        Runtime::Deno => "deno",
        Runtime::Bash => "bash",
    }
}

/// The interpreter's file on the host, where sandboxes would see it.
#[must_use]
pub fn find_interpreter(host: &Path, runtime: Runtime) -> Option<PathBuf> {
    PROGRAM_DIRECTORIES
        .into_iter()
        .map(|directory| host.join(directory).join(interpreter(runtime)))
        .find(|path| {
            // Links are followed: one that leads outside of what is shared would dangle inside.
            let visible = |path: PathBuf| SHARED.iter().any(|d| path.starts_with(host.join(d)));
            let executable = |path: &Path| {
                fs::metadata(path)
                    .is_ok_and(|found| found.is_file() && found.permissions().mode() & 0o111 != 0)
            };
            fs::canonicalize(path).is_ok_and(visible) && executable(path)
        })
}

/// Returns the host's directories that are mounted over the root.
#[must_use]
pub fn shares(host: &Path) -> Vec<Share> {
    let directories = SHARED.into_iter().filter(|name| {
        let found = fs::symlink_metadata(host.join(name));
        found.is_ok_and(|found| found.is_dir())
    });
    directories
        .map(|name| Share {
            source: host.join(name),
            destination: name.into(),
        })
        .collect()
}

/// Fills an empty directory with what is to be a sandbox's root, but for what [`shares`] mounts there.
///
/// # Errors
/// The first file that could not be made.
pub fn build(host: &Path, root: &Path) -> io::Result<()> {
    furnish(root)?;
    // The places of the host's libraries; a host without a cache has them in the default directories.
    if let Ok(cache) = fs::read(host.join("etc/ld.so.cache")) {
        fs::write(root.join("etc/ld.so.cache"), cache)?;
    }
    for name in SHARED {
        let inside = root.join(name);
        match fs::read_link(host.join(name)) {
            // A merged /usr: /bin and the like are links into it.
            Ok(target) => symlink(target, inside)?,
            Err(_) if host.join(name).is_dir() => fs::create_dir_all(inside)?,
            Err(_) => {}
        }
    }
    open_to_all(root)
}

/// Gives a root what every sandbox has of its own: mount points, and files of `/etc` in the place of those
/// that are there.
///
/// # Errors
/// The first file that could not be made.
pub fn furnish(root: &Path) -> io::Result<()> {
    for directory in OWN {
        fs::create_dir_all(root.join(directory))?;
    }
    // Mounting a file needs a file to mount it over.
    for file in [GUEST, CERTIFICATES] {
        replace(&root.join(file.trim_start_matches('/')), "")?;
    }
    // Programs expect it to be writable.
    let temporary = root.join("var/tmp");
    if temporary.is_dir() {
        fs::remove_dir_all(&temporary)?;
    }
    symlink("/tmp", temporary)?;
    write_etc(&root.join("etc"))
}

/// Makes a directory whose `etc` has the host's names as they are now, for a sandbox in the host's network. Copies,
/// because a sandbox could lock and watch the host's own files.
///
/// # Errors
/// The first file that could not be made.
pub fn name_hosts(host_etc: &Path, root: &Path) -> io::Result<()> {
    let etc = root.join("etc");
    fs::create_dir_all(&etc)?;
    for name in ["hosts", "resolv.conf"] {
        match fs::read(host_etc.join(name)) {
            Ok(content) => fs::write(etc.join(name), content)?,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(error),
        }
    }
    fs::write(etc.join("nsswitch.conf"), NAMES_FROM_NETWORK)?;
    open_to_all(root)
}

/// Writes a file that every user may read; an existing file, or a link to anywhere, is removed first.
fn replace(path: &Path, content: &str) -> io::Result<()> {
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
        ("nsswitch.conf", NAMES_FROM_NETWORK.to_owned()),
    ];
    for (name, content) in files {
        replace(&etc.join(name), &content)?;
    }
    let time_zone = etc.join("localtime");
    remove_file(&time_zone)?;
    symlink("/usr/share/zoneinfo/Etc/UTC", time_zone)
}

/// The sandbox's ids have no user here, so files for it must be readable by all, whatever the umask was.
fn open_to_all(directory: &Path) -> io::Result<()> {
    for entry in fs::read_dir(directory)? {
        let entry = entry?;
        let kind = entry.file_type()?;
        if kind.is_dir() {
            open_to_all(&entry.path())?;
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
            shares(host.path()),
            [Share {
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
    fn a_sandbox_in_the_host_s_network_has_copies_of_its_names() {
        let (host, root) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        fs::write(host.path().join("hosts"), "127.0.0.1 here\n").unwrap();

        name_hosts(host.path(), root.path()).unwrap();

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
            let program = bin.join(interpreter(runtime));
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
