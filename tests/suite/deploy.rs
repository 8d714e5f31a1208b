//! The files of `deploy/` work as they are.

use std::net::TcpStream;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};

use isol8_client::RemoteIsol8;
use serde_json::Value;
use tempfile::TempDir;

use crate::harness::{ISOL8, KEY, Kind, Server, bash, python, state_directory, until};

const DEPLOY: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/deploy");

/// This test's own, removed at its end.
const IMAGE: &str = "isol8-test-deploy:server";

fn file(name: &str) -> String {
    std::fs::read_to_string(Path::new(DEPLOY).join(name)).unwrap()
}

fn succeeds(output: Output, what: &str) -> String {
    let told = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success(), "{what}: {told}");
    String::from_utf8_lossy(&output.stdout).into_owned()
}

fn docker(arguments: &[&str]) -> Output {
    Command::new("docker").args(arguments).output().unwrap()
}

/// The units, and ten times the exposure that systemd may find in each: 100 is none of its settings.
const UNITS: [(&str, u32); 2] = [("isol8.service", 62), ("isol8-docker.service", 19)];

fn systemd_analyze(unit: &Path, arguments: &[&str]) -> Output {
    Command::new("systemd-analyze")
        .args(arguments)
        .arg(unit)
        .output()
        .expect("systemd-analyze is missing: run scripts/install-dependencies")
}

#[test]
fn systemd_finds_no_fault_with_the_units_and_little_exposed() {
    let directory = tempfile::tempdir().unwrap();
    for (name, exposure) in UNITS {
        let unit = directory.path().join(name);
        let text = file(name);
        assert!(
            text.contains("ExecStart=/usr/local/bin/isol8 serve"),
            "{text}"
        );
        std::fs::write(&unit, text.replace("/usr/local/bin/isol8", ISOL8)).unwrap();
        let arguments = ["verify", "--man=no", "--recursive-errors=no"];
        let output = systemd_analyze(&unit, &arguments);
        // `systemd-analyze` warns of keys that it does not know, and succeeds.
        assert_eq!(String::from_utf8_lossy(&output.stderr), "");
        succeeds(output, "systemd-analyze verify");
        let threshold = format!("--threshold={exposure}");
        let output = systemd_analyze(&unit, &["security", "--offline=true", &threshold]);
        succeeds(output, "systemd-analyze security");
    }
}

/// The capabilities that the unit of the native backend takes from root.
fn denied_capabilities() -> Vec<String> {
    let text = file("isol8.service");
    let lines = text
        .lines()
        .filter_map(|line| line.strip_prefix("CapabilityBoundingSet=~CAP_"));
    let names = lines.flat_map(|line| line.split(" CAP_"));
    names
        .map(|name| format!("-{}", name.to_lowercase()))
        .collect()
}

/// systemd does not run where this test does, so its settings are set by other means: the bounding set, and the
/// mounts of ProtectSystem=full and ProtectKernelModules=yes.
#[test]
fn the_native_backend_makes_sandboxes_within_what_the_unit_leaves_to_root() {
    let capabilities = denied_capabilities();
    assert!(capabilities.len() > 20, "{capabilities:?}");
    let text = file("isol8.service");
    for setting in [
        "ProtectSystem=full",
        "ProtectKernelModules=yes",
        "ProtectHome=yes",
    ] {
        assert!(text.contains(&format!("\n{setting}\n")), "{text}");
    }
    assert!(text.contains("\nUMask=0077\n"), "{text}");
    let script = "umask 077\n\
                  for place in /usr /etc; do\n\
                  \x20 mount --rbind $place $place && mount -o remount,bind,ro $place || exit 1\n\
                  done\n\
                  for place in /usr/lib/modules /home; do\n\
                  \x20 if [ -d $place ]; then mount -t tmpfs -o mode=000,ro none $place || exit 1; fi\n\
                  done\n\
                  exec \"$0\" \"$@\"";
    let bounding = format!("--bounding-set={}", capabilities.join(","));
    let mut confined = Command::new("unshare");
    confined.args(["--mount", "bash", "-c", script, "setpriv", "--no-new-privs"]);
    confined.args([&bounding, ISOL8]);
    let config = "[server]\nuser = \"54321:54322\"\n";
    let server = Server::launch(confined, Kind::Native, state_directory(), config);
    let runtime = tokio::runtime::Runtime::new().unwrap();
    runtime.block_on(async {
        assert_eq!(server.python("print(6 * 7)").await.stdout, "42");
        let session = server.session("s");
        let result = session.execute(python("open('/sandbox/a', 'w').write('x')"));
        assert_eq!(result.await.unwrap().exit_code, 0);
    });
    server.stop();
}

/// As isol8-docker.service has it: a user that has nothing but the engine's group.
#[test]
fn the_docker_backend_needs_nothing_but_the_engines_group() {
    let engine = std::fs::metadata("/var/run/docker.sock").unwrap().gid();
    let state = state_directory();
    std::os::unix::fs::chown(state.path(), Some(54_321), Some(54_322)).unwrap();
    let groups = format!("--groups={engine}");
    // The executable may be in a directory that the user cannot enter.
    let executable = state.path().join("isol8");
    std::fs::copy(ISOL8, &executable).unwrap();
    assert!(file("isol8-docker.service").contains("\nUMask=0077\n"));
    let mut confined = Command::new("bash");
    confined.args(["-c", "umask 077 && exec \"$0\" \"$@\"", "setpriv"]);
    confined.args(["--reuid=54321", "--regid=54322", &groups, "--no-new-privs"]);
    confined.args(["--bounding-set=-all", "--inh-caps=-all"]);
    confined.arg(&executable);
    let server = Server::launch(confined, Kind::Docker, state, "");
    let runtime = tokio::runtime::Runtime::new().unwrap();
    runtime.block_on(async {
        assert_eq!(server.python("print(6 * 7)").await.stdout, "42");
        let session = server.session("s");
        let result = session.execute(python("open('/sandbox/a', 'w').write('x')"));
        assert_eq!(result.await.unwrap().exit_code, 0);
        let file = session.get_file("/sandbox/a").await.unwrap();
        assert_eq!(file, b"x");
    });
    server.stop();
}

#[test]
fn the_configurations_are_small_and_accepted() {
    for name in ["serve.toml", "config.toml"] {
        let text = file(name);
        let keys = text
            .lines()
            .filter(|line| line.contains('=') && !line.starts_with('#'));
        assert!(keys.count() < 6, "{text}");
        let mut check = Command::new(ISOL8);
        check.args(["config", "--json", "--config"]);
        let output = check.arg(Path::new(DEPLOY).join(name)).output().unwrap();
        let config: Value = serde_json::from_str(&succeeds(output, name)).unwrap();
        assert_eq!(config["shutdown"]["keepSessions"], true, "{name}");
    }
}

/// The program that `scripts/install-dependencies` unpacks: as a package it would start a server.
const NGINX: &str = "/usr/local/lib/isol8-tests/bin/nginx";

/// nginx in the foreground with what deploy/nginx.conf says, on ports of loopback: one with TLS, one without.
struct Nginx {
    process: Child,
    directory: TempDir,
    tls: u16,
    plain: u16,
}

impl Nginx {
    fn before(server: &Server) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let at = directory.path();
        let certificate = "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes \
            -subj /CN=isol8.example.com -days 2 -keyout key.pem -out certificate.pem";
        let made = Command::new("bash")
            .args(["-c", certificate])
            .current_dir(at)
            .output();
        succeeds(made.unwrap(), "openssl");
        let [tls, plain] = free_ports();
        let mut site = file("nginx.conf");
        for (there, here) in [
            ("/etc/ssl/isol8", at.to_str().unwrap()),
            ("127.0.0.1:3000", &server.address),
            (
                "listen 443 ssl;",
                &format!("listen 127.0.0.1:{tls} ssl; listen 127.0.0.1:{plain};"),
            ),
        ] {
            assert!(site.contains(there), "{site}");
            site = site.replace(there, here);
        }
        let places = ["client_body", "proxy", "fastcgi", "uwsgi", "scgi"];
        let places: Vec<_> = places
            .iter()
            .map(|name| format!("{name}_temp_path {}/{name};", at.display()))
            .collect();
        let main = format!(
            "daemon off; master_process off; pid {at}/pid; error_log stderr; events {{}}\n\
             http {{ access_log off; {places} {site} }}\n",
            at = at.display(),
            places = places.join(" "),
        );
        std::fs::write(at.join("nginx.conf"), main).unwrap();
        let checked = Self::command(at).arg("-t").output();
        succeeds(
            checked.expect("nginx is missing: run scripts/install-dependencies"),
            "nginx -t",
        );
        let process = Self::command(at).spawn().unwrap();
        let nginx = Self {
            process,
            directory,
            tls,
            plain,
        };
        until("nginx listens", || {
            TcpStream::connect(("127.0.0.1", plain)).is_ok()
        });
        nginx
    }

    fn command(directory: &Path) -> Command {
        let mut command = Command::new(NGINX);
        command.arg("-p").arg(directory).args(["-c", "nginx.conf"]);
        command.args(["-e", "stderr"]);
        command
    }
}

impl Drop for Nginx {
    fn drop(&mut self) {
        let _ = (self.process.kill(), self.process.wait());
        let _ = &self.directory;
    }
}

/// Ports that are free, and will likely be so in a moment.
fn free_ports() -> [u16; 2] {
    let listeners = [(); 2].map(|()| std::net::TcpListener::bind("127.0.0.1:0").unwrap());
    listeners.map(|listener| listener.local_addr().unwrap().port())
}

/// A program that has begun to print goes on when a large file has arrived: so what passes through the proxy is not
/// kept back in either direction, and its bodies are as large as the server's.
#[tokio::test]
async fn nginx_passes_streams_uploads_and_websockets_on_as_they_come() {
    let server = Server::start(Kind::Native);
    let nginx = Nginx::before(&server);
    let url = format!("http://127.0.0.1:{}", nginx.plain);
    let client = RemoteIsol8::new(&url, KEY).unwrap();
    let code =
        "echo first; while [ ! -s /sandbox/large ]; do sleep 0.02; done; read line; echo $line";
    let large = vec![b'x'; 8 << 20];

    let session = client.clone().with_session("websocket".parse().unwrap());
    let mut run = session.execute_stream(bash(code)).await.unwrap();
    let input = run.take_input().expect("no WebSocket passes");
    assert_eq!(run.next().await.unwrap().unwrap().data, "first\n");
    session
        .put_file("/sandbox/large", large.clone())
        .await
        .unwrap();
    input.stdin("second\n").await.unwrap();
    assert_eq!(run.next().await.unwrap().unwrap().data, "second\n");
    drop(run);
    session.stop().await.unwrap();

    let session = client.with_session("events".parse().unwrap());
    let mut request = bash(code);
    request.stdin = Some("second\n".to_owned());
    let body = serde_json::json!({ "sessionId": "events", "request": request });
    let http = reqwest::Client::new();
    let events = http.post(format!("{url}/execute/stream")).bearer_auth(KEY);
    let mut events = events.json(&body).send().await.unwrap();
    let mut seen = String::new();
    while !seen.contains("first") {
        let piece = events.chunk().await.unwrap().unwrap();
        seen += std::str::from_utf8(&piece).unwrap();
    }
    session.put_file("/sandbox/large", large).await.unwrap();
    while let Some(piece) = events.chunk().await.unwrap() {
        seen += std::str::from_utf8(&piece).unwrap();
    }
    assert!(seen.contains("second"), "{seen}");
    session.stop().await.unwrap();

    let health = format!("https://127.0.0.1:{}/health", nginx.tls);
    let curl = Command::new("curl")
        .args(["--insecure", "--silent", "--fail", &health])
        .output();
    succeeds(curl.unwrap(), "TLS");
    drop(nginx);
    server.stop();
}

/// Removes the container and the image, whatever the test comes to.
struct Container {
    name: String,
    state: PathBuf,
}

impl Drop for Container {
    fn drop(&mut self) {
        docker(&["rm", "--force", &self.name]);
        let label = format!("label=isol8.state={}", self.state.join("docker").display());
        let left = docker(&["ps", "--all", "--quiet", "--filter", &label]);
        for id in String::from_utf8_lossy(&left.stdout).split_whitespace() {
            docker(&["rm", "--force", id]);
        }
        docker(&["rmi", IMAGE]);
    }
}

impl Container {
    /// Sends a request from within: the container needs no network of the host for that.
    fn execute(&self, body: &str) -> Value {
        let length = body.len();
        let script = format!(
            "exec 3<>/dev/tcp/127.0.0.1/3000\n\
             printf 'POST /execute HTTP/1.0\\r\\nAuthorization: Bearer %s\\r\\nContent-Length: {length}\\r\\n\\r\\n%s' \
             \"$ISOL8_API_KEY\" \"$1\" >&3\ncat <&3"
        );
        let answer = docker(&["exec", &self.name, "bash", "-c", &script, "-", body]);
        let answer = succeeds(answer, "a request from within");
        let (_, body) = answer.split_once("\r\n\r\n").unwrap();
        serde_json::from_str(body).unwrap_or_else(|error| panic!("{error}: {answer}"))
    }

    fn is_healthy(&self) -> bool {
        let format = "{{.State.Health.Status}}";
        let output = docker(&["inspect", "--format", format, &self.name]);
        output.stdout.starts_with(b"healthy")
    }
}

#[test]
fn the_server_in_a_container_runs_code_and_keeps_sessions_over_a_restart() {
    let build = "tar -c -C \"$1\" Dockerfile config.toml -C \"$(dirname \"$2\")\" isol8 \
        | docker build --quiet --network host --build-arg BASE=isol8:bash --tag \"$3\" -";
    let built = Command::new("bash")
        .args(["-o", "pipefail", "-c", build, "-", DEPLOY, ISOL8, IMAGE])
        .stdin(Stdio::null())
        .output()
        .unwrap();
    succeeds(built, "docker build");

    let state = state_directory();
    let path = state.path().to_str().unwrap();
    let container = Container {
        name: format!("isol8-test-deploy-{}", std::process::id()),
        state: state.path().to_owned(),
    };
    let (volume, directory) = (format!("{path}:{path}"), format!("ISOL8_STATE_DIR={path}"));
    // As compose.yaml says, but for the places.
    let mut run = vec![
        "run",
        "--detach",
        "--name",
        &container.name,
        "--network",
        "none",
    ];
    run.extend(["--read-only", "--security-opt", "no-new-privileges:true"]);
    run.extend(["--cap-drop", "ALL"]);
    let compose = file("compose.yaml");
    let granted = ["CHOWN", "DAC_OVERRIDE", "FOWNER"];
    let list = format!("cap_add: [{}]", granted.join(", "));
    assert!(
        compose.contains(&list) && compose.contains("cap_drop: [ALL]"),
        "{compose}"
    );
    for capability in granted {
        run.extend(["--cap-add", capability]);
    }
    run.extend(["--volume", "/var/run/docker.sock:/var/run/docker.sock"]);
    run.extend([
        "--volume",
        &volume,
        "--env",
        &directory,
        "--env",
        "ISOL8_API_KEY=k",
        IMAGE,
    ]);
    succeeds(docker(&run), "docker run");

    until("the container is healthy", || container.is_healthy());
    let mut request = serde_json::json!({
        "sessionId": "s",
        "request": { "runtime": "python", "code": "x = 41" },
    });
    assert_eq!(container.execute(&request.to_string())["exitCode"], 0);
    succeeds(
        docker(&["restart", "--time", "30", &container.name]),
        "docker restart",
    );
    until("the container is healthy again", || container.is_healthy());
    request["request"]["code"] = "print(x + 1)".into();
    assert_eq!(container.execute(&request.to_string())["stdout"], "42");
}
