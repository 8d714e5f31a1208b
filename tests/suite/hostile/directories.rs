//! The directory that a command is started in: its configuration loosens nothing, because it may belong to the code
//! that is to be confined. The tests of `crates/config/src/trust.rs` hold the effect of each key to the schema.

use std::fs;
use std::io::Write as _;
use std::net::TcpListener;
use std::process::Output;

use serde_json::Value;

use crate::cli_remote::user::{User, stderr, stdout};
use crate::harness::{Kind, Server};

/// Everything that would loosen, and what only a server uses.
const HOSTILE: &str = r#"
backend = "docker"
stateDir = "/tmp/isol8-hostile-state"
maxConcurrent = 1000
[server]
port = 1
[defaults]
network = "host"
timeoutMs = 3600000
memoryLimit = "8g"
[ceilings]
memoryLimit = "1000g"
[limits]
files = 1000000
[policy]
network = ["none", "filtered", "host"]
images = ["evil:image"]
[network]
allowedCidrs = ["0.0.0.0/0"]
ports = ["*"]
maxConnections = 128
[docker]
host = "tcp://127.0.0.1:1"
[images]
root = "/tmp/isol8-hostile-roots"
[packages]
pythonIndex = "http://127.0.0.1:1/simple/"
cacheDir = "/tmp/isol8-hostile-cache"
[runtimes.python]
image = "evil:image"
preload = ["evil"]
registries = ["evil.example"]
[[prebuiltImages]]
tag = "evil:other"
runtime = "python"
"#;

const NAMED: [&str; 18] = [
    "backend",
    "stateDir",
    "defaults.network",
    "defaults.timeoutMs",
    "defaults.memoryLimit",
    "ceilings.memoryLimit",
    "limits.files",
    "policy.network",
    "policy.images",
    "network.allowedCidrs",
    "network.ports",
    "network.maxConnections",
    "docker.host",
    "images.root",
    "packages.pythonIndex",
    "runtimes.python.image",
    "runtimes.python.preload",
    "prebuiltImages",
];

/// Prints the answer of a service on this machine's loopback, or that it cannot be reached.
fn canary() -> (u16, String) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    std::thread::spawn(move || {
        for mut stream in listener.incoming().flatten() {
            let _ = stream.write_all(b"CANARY");
        }
    });
    let code = format!(
        "import socket
try: print(socket.create_connection(('127.0.0.1', {port}), 5).recv(6).decode())
except OSError: print('no way')"
    );
    (port, code)
}

fn native(user: &User, arguments: &[&str]) -> Output {
    let mut command = user.keyless(arguments);
    command.args(["--backend", "native"]).output().unwrap()
}

#[test]
fn a_run_in_a_cloned_directory_is_confined_as_anywhere() {
    let json = toml::from_str::<Value>(HOSTILE).unwrap().to_string();
    for (file, text) in [("config.toml", HOSTILE), ("isol8.config.json", &json)] {
        let user = User::here();
        fs::write(user.path(file), text).unwrap();
        let (_, code) = canary();
        let run = native(&user, &["run", "-e", &code]);
        let told = stderr(&run);
        assert_eq!(stdout(&run), "no way\n", "{told}");
        assert_eq!(told.lines().count(), 1, "{told}");
        for key in NAMED {
            assert!(told.contains(key), "{key} is not named: {told}");
        }
        assert!(told.starts_with(&format!("isol8: {file}: ")), "{told}");
        assert!(!told.contains("server.port"), "{told}");
        for place in ["state", "roots", "cache"] {
            assert!(!fs::exists(format!("/tmp/isol8-hostile-{place}")).unwrap());
        }
        // Named, it is the operator's.
        let run = native(&user, &["config", "--json", "--config", file]);
        let shown: Value = serde_json::from_slice(&run.stdout).unwrap();
        assert_eq!(shown["defaults"]["network"], "host");
        // The page shows the values of a server in this directory, and warns that other commands ignore them.
        let shown = native(&user, &["config", "--json"]);
        let values: Value = serde_json::from_slice(&shown.stdout).unwrap();
        assert_eq!(values["defaults"]["network"], "host");
        assert!(
            stderr(&shown).contains("policy.network"),
            "{}",
            stderr(&shown)
        );
    }
}

#[test]
fn another_programs_file_of_the_same_name_stops_nothing() {
    let user = User::here();
    fs::write(
        user.path("config.toml"),
        "baseURL = \"https://example.org\"\n",
    )
    .unwrap();
    let run = native(&user, &["run", "-e", "print(6 * 7)"]);
    assert_eq!(stdout(&run), "42\n", "{}", stderr(&run));
    let told = stderr(&run);
    assert_eq!(told.lines().count(), 1, "{told}");
    assert!(told.contains("config.toml:1: baseURL"), "{told}");
    assert!(told.contains("ignored"), "{told}");
}

#[test]
fn what_restricts_holds_and_is_not_warned_of() {
    let user = User::here();
    fs::write(user.path("config.toml"), "[defaults]\ntimeoutMs = 500\n").unwrap();
    let run = native(&user, &["run", "-r", "bash", "-e", "sleep 60"]);
    assert_eq!(run.status.code(), Some(137), "{}", stderr(&run));
    assert!(!stderr(&run).contains("config.toml"), "{}", stderr(&run));
}

#[test]
fn the_host_s_network_is_granted_by_a_flag_and_said() {
    let user = User::here();
    let (_, code) = canary();
    let run = native(&user, &["run", "--net", "host", "-e", &code]);
    assert_eq!(stdout(&run), "CANARY\n", "{}", stderr(&run));
    let told = stderr(&run);
    assert_eq!(told.lines().count(), 1, "{told}");
    assert!(
        told.contains("--net host is not in policy.network"),
        "{told}"
    );
    // The operator has allowed the host network, so there is no warning.
    let granted = "[policy]\nnetwork = [\"none\", \"host\"]\n";
    fs::write(user.path("granted.toml"), granted).unwrap();
    let run = native(
        &user,
        &[
            "run",
            "--net",
            "host",
            "--config",
            "granted.toml",
            "-e",
            &code,
        ],
    );
    assert_eq!(
        (stdout(&run), stderr(&run)),
        ("CANARY\n".to_owned(), String::new())
    );
}

#[test]
fn a_server_takes_its_directory_s_file_and_says_which() {
    let server = Server::configured(Kind::Native, "[policy]\nnetwork = [\"none\", \"host\"]\n");
    let file = server.state().join("config.toml");
    let said = format!("configuration read file={}", file.display());
    assert!(server.log().contains(&said), "{}", server.log());
    server.stop();
}

#[test]
fn a_key_that_goes_over_the_network_in_clear_is_warned_of() {
    let user = User::here();
    let told = |host: &str| {
        let mut command = user.keyless(&["sessions", "--host", host, "--key", "k"]);
        stderr(&command.output().unwrap())
    };
    // Names of this domain do not exist, so nothing is sent.
    let warned = told("http://isol8.invalid:1");
    assert!(warned.contains("can be read on the way"), "{warned}");
    for host in [
        "http://127.0.0.1:1",
        "http://localhost:1",
        "https://isol8.invalid:1",
    ] {
        assert!(!told(host).contains("can be read on the way"), "{host}");
    }
}
