//! The server's process after it has dropped root: what it still may do, and that it still does its work.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::time::{Duration, Instant};

use isol8_client::Runtime;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::json;

use crate::harness::{
    ISOL8, KEY, Kind, PATIENCE, Server, on_each_backend, python, source, state_directory, traces,
    until,
};

/// Ids that nothing else on the host has.
const USER: u32 = 54_321;
const GROUP: u32 = 54_322;

const CONFIG: &str = "[server]\nuser = \"54321:54322\"\n[shutdown]\nkeepSessions = true\n";

on_each_backend!(with crate::hostile::privileges::CONFIG;
    the_http_process_has_no_privilege_and_serves_all_the_same,
    sessions_outlive_a_server_without_privileges,
    the_servers_user_owns_no_more_than_it_needs,
);

/// The process that speaks HTTP: the child of the one that was started.
fn http_process(server: &Server) -> u32 {
    let mut children = children(server.pid()).into_iter();
    let found = children.find(|(_, arguments)| arguments.contains("__server"));
    let (pid, _) = found.expect("the launcher has a server");
    pid.cast_unsigned()
}

/// Ids and arguments of a launcher's children.
fn children(launcher: u32) -> Vec<(i32, String)> {
    let children = fs::read_to_string(format!("/proc/{launcher}/task/{launcher}/children"));
    let arguments = |pid: &str| fs::read_to_string(format!("/proc/{pid}/cmdline"));
    let described = |pid: &str| (pid.parse().unwrap(), arguments(pid).unwrap_or_default());
    children
        .unwrap()
        .split_whitespace()
        .map(described)
        .collect()
}

fn status(pid: u32) -> BTreeMap<String, String> {
    let text = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let pairs = text.lines().filter_map(|line| line.split_once(':'));
    pairs
        .map(|(name, value)| {
            let words: Vec<_> = value.split_whitespace().collect();
            (name.to_owned(), words.join(" "))
        })
        .collect()
}

/// Runs a program as the server's user.
fn as_user(program: &str, arguments: &[&str]) -> Output {
    let mut command = Command::new(program);
    command.args(arguments).uid(USER).gid(GROUP);
    command.current_dir("/").output().unwrap()
}

fn assert_unprivileged(server: &Server) {
    let pid = http_process(server);
    let status = status(pid);
    let user = format!("{USER} {USER} {USER} {USER}");
    let group = format!("{GROUP} {GROUP} {GROUP} {GROUP}");
    let nothing = "0000000000000000";
    for (name, expected) in [
        ("Uid", user.as_str()),
        ("Gid", group.as_str()),
        ("CapInh", nothing),
        ("CapPrm", nothing),
        ("CapEff", nothing),
        ("CapBnd", nothing),
        ("CapAmb", nothing),
        ("NoNewPrivs", "1"),
        ("Seccomp", "2"),
    ] {
        assert_eq!(status[name], expected, "{name}");
    }
    let groups: Vec<&str> = status["Groups"].split_whitespace().collect();
    match server.kind {
        Kind::Native => assert_eq!(groups, [""; 0]),
        // The only group is that of the engine's socket, which may be root's.
        Kind::Docker => {
            let engine = fs::metadata("/var/run/docker.sock").unwrap().gid();
            assert_eq!(groups, [engine.to_string()]);
        }
    }
    // Every thread, not the first alone.
    for task in fs::read_dir(format!("/proc/{pid}/task")).unwrap() {
        let text = fs::read_to_string(task.unwrap().path().join("status")).unwrap();
        assert!(text.contains(&format!("CapEff:\t{nothing}\n")), "{text}");
        assert!(text.contains("Seccomp:\t2\n"), "{text}");
    }
    // Another process of the same user reads neither its memory nor the key in its environment.
    for file in ["environ", "mem", "maps"] {
        let read = as_user("cat", &[&format!("/proc/{pid}/{file}")]);
        assert!(!read.status.success(), "{file}");
    }
}

async fn the_http_process_has_no_privilege_and_serves_all_the_same(server: Server) {
    assert_unprivileged(&server);
    assert_eq!(server.python("print(6 * 7)").await.stdout, "42");
    let session = server.session("s");
    session.execute(python("x = 41")).await.unwrap();
    let content = b"content".to_vec();
    session.put_file("/sandbox/in", content).await.unwrap();
    let code = "print(x + 1, open('/sandbox/in').read(), file=open('/sandbox/out', 'w'))";
    let result = session.execute(python(code)).await.unwrap();
    assert_eq!(result.exit_code, 0, "{}", result.stderr);
    let out = session.get_file("/sandbox/out").await.unwrap();
    assert_eq!(out, b"42 content\n");
    // The figures come from cgroups, which are root's.
    let usage = result.resource_usage.unwrap();
    assert!(usage.peak_memory_mb > 0.0, "{usage:?}");
    if server.kind == Kind::Native {
        another_spawner_is_started(&server).await;
    }
    server
        .client()
        .delete_session(&"s".parse().unwrap())
        .await
        .unwrap();
    server.stop();
}

async fn another_spawner_is_started(server: &Server) {
    let first = server.spawner();
    kill(first, Signal::SIGKILL).unwrap();
    let other = || {
        let children = children(server.pid());
        children
            .into_iter()
            .any(|(pid, arguments)| arguments.contains("__spawner") && pid != first.as_raw())
    };
    let deadline = Instant::now() + PATIENCE;
    while !other() {
        assert!(Instant::now() < deadline, "no other spawner is started");
        // A request that was under way may fail with the spawner; a later one may not.
        let _ = server.client().execute(source(Runtime::Bash, "true")).await;
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    assert_eq!(server.python("print(6 * 7)").await.stdout, "42");
    assert_unprivileged(server);
}

async fn sessions_outlive_a_server_without_privileges(server: Server) {
    let kind = server.kind;
    server.session("s").execute(python("x = 41")).await.unwrap();
    let mut server = Some(server);
    // A spawner that was adopted is not the next launcher's child, so its end comes first.
    for ending in ["a crash of the spawner too", "a clean end", "a crash"] {
        let ended = server.take().unwrap();
        let process = http_process(&ended);
        let state = match ending {
            "a clean end" => ended.terminate(),
            "a crash" => ended.kill(),
            _ if kind == Kind::Docker => ended.kill(),
            _ => {
                let spawner = ended.spawner();
                kill(spawner, Signal::SIGSTOP).unwrap();
                let state = ended.kill();
                kill(spawner, Signal::SIGKILL).unwrap();
                state
            }
        };
        until("the server has ended with its launcher", || {
            !Path::new(&format!("/proc/{process}")).exists()
        });
        let again = Server::start_in(kind, state, CONFIG);
        assert_unprivileged(&again);
        let session = again.session("s");
        let kept = session.execute(python("print(x + 1)")).await.unwrap();
        assert_eq!(kept.stdout, "42", "after {ending}");
        assert!(!kept.state_lost, "after {ending}");
        server = Some(again);
    }
    let server = server.unwrap();
    let sessions = server.client();
    sessions
        .delete_session(&"s".parse().unwrap())
        .await
        .unwrap();
    server.stop();
}

/// Everything under the state directory that the server's user could change.
async fn the_servers_user_owns_no_more_than_it_needs(server: Server) {
    server.session("s").execute(python("x = 41")).await.unwrap();
    let state = server.state().to_str().unwrap();
    let found = as_user("find", &[state, "-writable", "-not", "-type", "l"]);
    let writable = String::from_utf8(found.stdout).unwrap();
    let backend = format!("{state}/{}/", server.kind.name());
    for path in writable.lines() {
        let within = path.strip_prefix(&backend);
        let parts: Vec<_> = within.unwrap_or_default().split('/').collect();
        let is_cache = Path::new(path).starts_with(format!("{state}/packages"));
        let is_needed = match (server.kind, parts.as_slice()) {
            (Kind::Native, [_, "lock" | "claims"] | [_, "claims", _] | [_, _, "control"]) => true,
            // The engine makes the sandboxes, and has no trust to lose.
            (Kind::Docker, _) => path.starts_with(backend.trim_end_matches('/')),
            _ => false,
        };
        assert!(is_needed || is_cache, "{path}");
    }
    // Root's files stay root's.
    let key = server.state().join("environment");
    fs::write(&key, "ISOL8_API_KEY=k").unwrap();
    fs::set_permissions(&key, fs::Permissions::from_mode(0o600)).unwrap();
    assert!(!as_user("cat", &[key.to_str().unwrap()]).status.success());
    server
        .client()
        .delete_session(&"s".parse().unwrap())
        .await
        .unwrap();
    server.stop();
}

/// A server that is not expected to serve.
fn serve(state: &Path, config: &str, arguments: &[&str]) -> Output {
    let file = state.join("config.toml");
    fs::write(&file, config).unwrap();
    Command::new("timeout")
        .args([
            "30",
            ISOL8,
            "serve",
            "--port",
            "0",
            "--backend",
            "native",
            "--config",
        ])
        .arg(&file)
        .args(arguments)
        .env("ISOL8_API_KEY", KEY)
        .env("ISOL8_STATE_DIR", state)
        .output()
        .unwrap()
}

#[test]
fn what_cannot_be_is_refused_with_the_fix_and_leaves_nothing() {
    let closed = PathBuf::from("config.toml");
    for (user, mode, expected) in [
        ("root", 0o644, "user \"root\" is root, or in its group"),
        ("no-such-user", 0o644, "create it with `useradd --system`"),
        (
            "54321",
            0o644,
            "uid 54321 has no entry in /etc/passwd: pass UID:GID",
        ),
        (
            "54321:54322",
            0o600,
            "config.toml cannot be read by the server's user",
        ),
    ] {
        let state = state_directory();
        fs::write(state.path().join(&closed), "").unwrap();
        let permissions = fs::Permissions::from_mode(mode);
        fs::set_permissions(state.path().join(&closed), permissions).unwrap();
        let output = serve(state.path(), "", &["--user", user]);
        let told = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(1), "{told}");
        assert!(told.contains(expected), "{told}");
        assert_eq!(traces(Kind::Native, state.path()), BTreeSet::new());
    }
    // A directory in which root would work for the user must not be the user's.
    let state = state_directory();
    std::os::unix::fs::chown(state.path(), Some(USER), Some(GROUP)).unwrap();
    let output = serve(state.path(), "", &["--user", "54321:54322"]);
    let told = String::from_utf8_lossy(&output.stderr);
    assert!(
        told.contains("belongs to uid 54321") && told.contains("`chown root "),
        "{told}"
    );
}

#[test]
fn the_launcher_ends_with_the_status_of_its_server() {
    let server = Server::configured(Kind::Native, CONFIG);
    let process = i32::try_from(http_process(&server)).unwrap();
    kill(Pid::from_raw(process), Signal::SIGKILL).unwrap();
    assert_eq!(server.ended().code(), Some(128 + 9));
}

#[test]
fn a_port_below_1024_is_bound_for_the_server() {
    let state = state_directory();
    let config = state.path().join("config.toml");
    // An address of loopback that nothing else uses.
    let address = "127.54.32.1:983";
    let text = "[server]\nhost = \"127.54.32.1\"\nport = 983\nuser = \"54321:54322\"\n[runtimes]\n";
    fs::write(&config, text).unwrap();
    let mut launcher = Command::new(ISOL8)
        .args(["serve", "--backend", "native", "--config"])
        .arg(&config)
        .env("ISOL8_API_KEY", KEY)
        .env("ISOL8_STATE_DIR", state.path())
        .env_remove("ISOL8_PORT")
        .env_remove("PORT")
        .spawn()
        .unwrap();
    let mut answer = String::new();
    until("the server answers", || {
        let Ok(mut connection) = std::net::TcpStream::connect(address) else {
            return false;
        };
        connection
            .write_all(b"GET /health HTTP/1.0\r\n\r\n")
            .unwrap();
        connection.read_to_string(&mut answer).is_ok()
    });
    kill(Pid::from_raw(launcher.id().cast_signed()), Signal::SIGTERM).unwrap();
    assert!(launcher.wait().unwrap().success());
    assert!(answer.starts_with("HTTP/1.0 200 "), "{answer}");
    assert_eq!(traces(Kind::Native, state.path()), BTreeSet::new());
}

/// A spawner with its server's end of the socket, in the hands of a server that was taken over.
struct HostileServer {
    socket: BufReader<UnixStream>,
    spawner: std::process::Child,
}

impl HostileServer {
    fn start(grant: &serde_json::Value) -> Self {
        let (ours, theirs) = UnixStream::pair().unwrap();
        ours.set_read_timeout(Some(PATIENCE)).unwrap();
        let spawner = Command::new(ISOL8)
            .args(["__spawner", &grant.to_string()])
            .stdin(std::process::Stdio::from(std::os::fd::OwnedFd::from(
                theirs,
            )))
            .spawn()
            .unwrap();
        Self {
            socket: BufReader::new(ours),
            spawner,
        }
    }

    fn ask(&mut self, action: &serde_json::Value) -> serde_json::Value {
        let line = json!({"number": 1, "action": action}).to_string() + "\n";
        self.socket.get_mut().write_all(line.as_bytes()).unwrap();
        let mut answer = String::new();
        self.socket.read_line(&mut answer).unwrap();
        let answer: serde_json::Value = serde_json::from_str(&answer).unwrap();
        answer["outcome"].clone()
    }
}

#[test]
fn a_spawner_refuses_what_it_was_not_started_for() {
    let state = state_directory();
    let native = state.path().join("native");
    let make = |name: &str| {
        let directory = native.join(name);
        fs::create_dir_all(&directory).unwrap();
        fs::write(directory.join("lock"), "").unwrap();
        fs::write(directory.join("guest"), "").unwrap();
        directory
    };
    let (own, other) = (make("0123456789abcdef"), make("0123456789abcde0"));
    let mut server = HostileServer::start(&json!({
        "owner": {"uid": USER, "gid": GROUP}, "instance": own, "host": "/", "roots": null,
    }));
    let start = |instance: &Path, host: &str, roots: Option<&str>| json!({"start": {"instance": instance, "host": host, "roots": roots, "adoptable_ms": 0}});
    for refused in [
        start(&other, "/", None),
        start(Path::new("/etc"), "/", None),
        start(&own, "/srv", None),
        start(&own, "/", Some("/")),
    ] {
        let outcome = server.ask(&refused);
        let reason = outcome["Err"].as_str().unwrap();
        assert!(reason.ends_with("is refused"), "{refused}: {outcome}");
    }
    let started = server.ask(&start(&own, "/", None));
    assert_eq!(started["Ok"]["started"]["identity"], "root", "{started}");

    let limits = json!({"memoryBytes": 1 << 26, "cpuQuotaUs": 50_000, "pids": 16});
    let create = |id: &str, root: Option<&str>| {
        json!({"create": {
            "id": id, "root": root, "limits": limits, "sandboxBytes": 4096, "tmpBytes": 4096, "shmBytes": 4096,
            "hostNetwork": false,
        }})
    };
    let valid = "00000000000000ff";
    for (refused, expected) in [
        (create("../0123456789abcde0/x", None), "name is not valid"),
        (create("claims", None), "name is not valid"),
        (create(valid, Some("/")), "root / is refused"),
        (create(valid, Some("/etc")), "root /etc is refused"),
        (
            json!({"remove": {"id": "../0123456789abcde0"}}),
            "name is not valid",
        ),
        (json!({"remove": {"id": "."}}), "name is not valid"),
        (
            json!({"setLimits": {"id": "..", "limits": limits}}),
            "name is not valid",
        ),
        (start(&other, "/", None), "another instance"),
    ] {
        let outcome = server.ask(&refused);
        let reason = outcome["Err"].as_str().unwrap_or_default();
        assert!(reason.contains(expected), "{refused}: {outcome}");
    }
    assert!(other.join("lock").exists() && own.join("lock").exists());
    assert_eq!(server.ask(&json!("stop"))["Ok"], "done");
    assert!(server.spawner.wait().unwrap().success());
    assert!(!own.exists() && other.exists());
}
