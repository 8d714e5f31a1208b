//! Every file system of a sandbox that is not its own: nothing of the host or of other sandboxes is seen or blocked.
//!
//! A sandbox watches all that it has mounted with inotify and dnotify, and locks it with flock and with record
//! locks. Another sandbox and the host then open, read and lock the same files.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io::Write as _;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use isol8_client::RemoteIsol8;
use serde::Deserialize;

use crate::harness::{ISOL8, Kind, Server, on_each_backend, python};

/// The functions that all three sides call.
const FUNCTIONS: &str = include_str!("filesystems.py");

/// As many events of one path as the watching sandbox never causes itself; each of the other sides causes 120.
const LEAK: u64 = 40;

/// Types of file systems that native sandboxes may have. Each is one that a sandbox has alone.
pub(crate) const NATIVE: [&str; 5] = ["devpts", "mqueue", "overlay", "proc", "tmpfs"];

/// File systems that the engine adds: a view of devices, and of the container's own cgroups.
const DOCKER: [&str; 8] = [
    "cgroup", "cgroup2", "devpts", "mqueue", "overlay", "proc", "sysfs", "tmpfs",
];

/// Files that Docker sandboxes have from the host's file systems, whatever type these are of.
const FROM_THE_HOST: [&str; 8] = [
    "/.isol8/control",
    "/.isol8/guest",
    "/etc/hostname",
    "/etc/group",
    "/etc/hosts",
    "/etc/passwd",
    "/etc/resolv.conf",
    "/etc/ssl/certs/ca-certificates.crt",
];

/// Device files that a sandbox of an ordinary user shares with the host: only root can make others.
const SHARED_DEVICES: [&str; 6] = [
    "/dev/full",
    "/dev/null",
    "/dev/random",
    "/dev/tty",
    "/dev/urandom",
    "/dev/zero",
];

/// Files of the state that other users may open: no process waits for a lock on them.
const OPEN_TO_ALL: [&str; 4] = ["config.toml", "guest", "hosts", "resolv.conf"];

on_each_backend!(
    nothing_of_others_is_seen_or_blocked,
    no_other_user_can_lock_what_a_server_locks,
);

async fn nothing_of_others_is_seen_or_blocked(server: Server) {
    let types = match server.kind {
        Kind::Native => &NATIVE[..],
        Kind::Docker => &DOCKER,
    };
    assert_eq!(leaks(&server, types).await, BTreeSet::new());
}

#[tokio::test]
async fn an_ordinary_user_s_sandboxes_share_six_device_files_and_nothing_else() {
    let server = Server::of_an_ordinary_user("");
    let types = [&NATIVE[..], &["devtmpfs"]].concat();
    let leaks = leaks(&server, &types).await;
    // Files of /proc are hidden by /dev/null.
    let is_device = |leak: &&String| {
        let mut devices = SHARED_DEVICES.iter();
        devices.any(|device| leak.contains(device)) || leak.contains(" /proc/")
    };
    let others: Vec<_> = leaks.iter().filter(|leak| !is_device(leak)).collect();
    assert!(others.is_empty(), "{others:?}");
}

/// A kernel does not mount an overlay over two others.
#[tokio::test]
async fn where_no_overlay_is_possible_nothing_is_seen_and_the_operator_is_told() {
    let server = Server::on_two_overlays_of_usr();
    assert!(
        server
            .log()
            .contains("this kernel refuses overlay file systems of /usr"),
        "{}",
        server.log()
    );
    let mut leaks = leaks(&server, &NATIVE).await;
    assert!(
        leaks.contains("another sandbox: flock on /usr/bin: EAGAIN"),
        "{leaks:?}"
    );
    leaks.retain(|leak| leak.starts_with("seen"));
    assert_eq!(leaks, BTreeSet::new());
}

/// A mount of the watching sandbox.
#[derive(Debug, Deserialize)]
struct Mount {
    /// Device number, as in `mountinfo`.
    device: String,
    root: String,
    point: String,
    kind: String,
}

impl Mount {
    /// Whether the host has what is mounted there for this sandbox only: overlays, and files of the sandbox's own
    /// directory and of the engine's for its container.
    fn is_the_sandbox_s_own(&self, sandbox: &str) -> bool {
        let mut names = self.root.split('/');
        ["overlay", "devpts"].contains(&self.kind.as_str())
            || names.any(|name| name == sandbox || name == "containers")
    }
}

/// A session that watches and locks all that it sees.
struct Watcher {
    session: RemoteIsol8,
    sandbox: String,
    mounts: Vec<Mount>,
    paths: Vec<String>,
}

/// Lists what a sandbox sees of others, and keeps them from. File systems of other types than these count as well: they
/// may be shared in a way that nothing here looks for.
pub(crate) async fn leaks(server: &Server, types: &[&str]) -> BTreeSet<String> {
    let watcher = Watcher::start(server).await;
    let is_known = |mount: &&Mount| {
        types.contains(&mount.kind.as_str())
            || server.kind == Kind::Docker && FROM_THE_HOST.contains(&mount.point.as_str())
    };
    let unknown = watcher.mounts.iter().filter(|mount| !is_known(mount));
    let unknown =
        unknown.map(|mount| format!("nothing is known of {} {}", mount.kind, mount.point));
    let mut found: BTreeSet<_> = unknown.collect();

    let blocked_before = watcher.blocked_on_the_host(server);
    watcher.hold().await;
    found.extend(watcher.blocked_elsewhere(server).await);
    let blocked = watcher.blocked_on_the_host(server);
    found.extend(blocked.difference(&blocked_before).cloned());
    found.extend(watcher.seen().await);
    found
}

impl Watcher {
    async fn start(server: &Server) -> Self {
        #[derive(Deserialize)]
        struct Started {
            mounts: Vec<Mount>,
            paths: Vec<String>,
        }
        let session = server.session("watcher");
        let code = format!(
            "{FUNCTIONS}\nwatcher = Watcher()\nnames = ('device', 'root', 'point', 'kind')\n\
             all = [dict(zip(names, mount)) for mount in mounts()]\n\
             print(json.dumps(dict(mounts=all, paths=watcher.paths)))"
        );
        let Started { mounts, paths } = cell(&session, &code).await;
        let result = session.execute(python("pass")).await.unwrap();
        Self {
            session,
            sandbox: result.container_id,
            mounts,
            paths,
        }
    }

    async fn hold(&self) {
        let code = "watcher.hold_all()\nprint(json.dumps(watcher.held))";
        let held: Vec<String> = cell(&self.session, code).await;
        for path in ["/", "/etc", "/usr", "/usr/bin", "/.isol8/guest"] {
            assert!(held.contains(&path.to_owned()), "{path} of {held:?}");
        }
    }

    async fn seen(&self) -> impl Iterator<Item = String> + use<> {
        let code = "print(json.dumps(watcher.seen()))";
        let seen: BTreeMap<String, u64> = cell(&self.session, code).await;
        let often = seen.into_iter().filter(|(_, times)| *times >= LEAK);
        often.map(|(path, _)| format!("seen: {path}"))
    }

    async fn blocked_elsewhere(&self, server: &Server) -> BTreeSet<String> {
        let paths = serde_json::to_string(&self.paths).unwrap();
        let neighbour = server.session("neighbour");
        let code = format!("{FUNCTIONS}\nprint(json.dumps(use(json.loads({paths:?}))))");
        let blocked: Vec<String> = cell(&neighbour, &code).await;
        let named = blocked
            .into_iter()
            .map(|what| format!("another sandbox: {what}"));
        named.collect()
    }

    fn blocked_on_the_host(&self, server: &Server) -> BTreeSet<String> {
        let mounts: Vec<_> = self
            .mounts
            .iter()
            .filter(|mount| !mount.is_the_sandbox_s_own(&self.sandbox))
            .map(|mount| (&mount.device, &mount.root, &mount.point, &mount.kind))
            .collect();
        let mut paths = self.paths.clone();
        let files = files_of(server.state()).into_iter();
        paths.extend(
            files
                .filter(|file| {
                    file.ends_with("guest") && !file.iter().any(|name| name == &*self.sandbox)
                })
                .map(|file| file.display().to_string()),
        );
        let code = format!(
            "{FUNCTIONS}\nprint(json.dumps(use(here(json.loads({:?}), json.loads({:?})))))\n",
            serde_json::to_string(&mounts).unwrap(),
            serde_json::to_string(&paths).unwrap()
        );
        let blocked: Vec<String> = serde_json::from_slice(&on_the_host(&code)).unwrap();
        blocked
            .into_iter()
            .map(|what| format!("the host: {what}"))
            .collect()
    }
}

/// Runs a Python program on the host, and returns its output.
fn on_the_host(code: &str) -> Vec<u8> {
    let mut script = Command::new("python3")
        .arg("-")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut stdin = script.stdin.take().unwrap();
    stdin.write_all(code.as_bytes()).unwrap();
    drop(stdin);
    let output = script.wait_with_output().unwrap();
    assert!(output.status.success());
    output.stdout
}

/// Runs a cell that prints JSON.
async fn cell<T: for<'de> Deserialize<'de>>(session: &RemoteIsol8, code: &str) -> T {
    let result = session.execute(python(code)).await.unwrap();
    serde_json::from_str(&result.stdout)
        .unwrap_or_else(|error| panic!("{error}: {} {}", result.stdout, result.stderr))
}

async fn no_other_user_can_lock_what_a_server_locks(server: Server) {
    let session = server.session("claimed");
    session.execute(python("pass")).await.unwrap();
    // A session without a server has a lock of its own.
    let isol8 = |arguments: &[&str]| {
        let mut command = Command::new(ISOL8);
        command.args(arguments);
        command.env("ISOL8_STATE_DIR", server.state());
        let status = command.env("ISOL8_BACKEND", server.kind.name()).status();
        assert!(status.unwrap().success());
    };
    isol8(&["run", "--persistent", "-r", "bash", "-e", "true"]);
    let locked = locked_inodes();
    let files = files_of(server.state());
    let is_locked = |path: &&PathBuf| locked.contains(&fs::metadata(path).unwrap().ino());
    assert!(files.iter().any(|path| is_locked(&path)), "{files:?}");
    let mut open = openable_by_others(&files);
    open.retain(|path| !OPEN_TO_ALL.contains(&path.file_name().unwrap().to_str().unwrap()));
    assert!(open.is_empty(), "{open:?}");
    isol8(&["session", "delete", "bash"]);
}

/// Inode numbers of all files that any process has locked.
fn locked_inodes() -> BTreeSet<u64> {
    let locks = fs::read_to_string("/proc/locks").unwrap();
    let files = locks.lines().filter_map(|line| {
        let mut words = line.split_whitespace();
        words.find(|word| word.matches(':').count() == 2)
    });
    files
        .map(|file| file.rsplit(':').next().unwrap().parse().unwrap())
        .collect()
}

/// Files that another user of the host may open, and so lock.
fn openable_by_others(files: &[PathBuf]) -> Vec<PathBuf> {
    let code = r#"for path; do if : < "$path"; then echo "$path"; fi; done 2>/dev/null"#;
    let output = Command::new("setpriv")
        .args(["--reuid", "65534", "--regid", "65534", "--clear-groups"])
        .args(["bash", "-c", code, "bash"])
        .args(files)
        .output()
        .unwrap();
    let paths = String::from_utf8(output.stdout).unwrap();
    paths.lines().map(PathBuf::from).collect()
}

/// All regular files below a directory.
fn files_of(directory: &Path) -> Vec<PathBuf> {
    let mut files = Vec::new();
    for entry in fs::read_dir(directory).unwrap() {
        let entry = entry.unwrap();
        let kind = entry.file_type().unwrap();
        if kind.is_dir() {
            files.extend(files_of(&entry.path()));
        } else if kind.is_file() {
            files.push(entry.path());
        }
    }
    files
}
