//! Tests of the backend with a real engine and the real guest.
//!
//! The tests need an engine (`scripts/start-docker`) and the images of `isol8 setup`. The guest's executable
//! is the file that `ISOL8_TEST_GUEST` names; without the variable the guest is built first.

// This file contains only tests: a helper that fails should panic.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use isol8_api::{ByteSize, Runtime};
use isol8_backend::instance::DeadInstance;
use isol8_backend::{
    Backend, BackendError, Control, Instance, Limits, RunEvent, RuntimeStatus, SandboxId,
    SandboxSpec,
};
use isol8_backend_docker::setup::{SetupEvent, SetupOptions, setup};
use isol8_backend_docker::{DockerBackend, DockerConfig};
use isol8_protocol::{OutputStream, Program, RunSpec, Stdin};
use tempfile::TempDir;

/// Returns the target triple of a static executable for this machine.
fn target() -> String {
    format!("{}-unknown-linux-gnu", std::env::consts::ARCH)
}

/// Longest time until a condition must become true.
const TEST_TIMEOUT: Duration = Duration::from_secs(30);

/// Returns the guest's executable, which is built once for all tests.
fn guest() -> &'static [u8] {
    static GUEST: OnceLock<Vec<u8>> = OnceLock::new();
    GUEST.get_or_init(|| {
        let path = std::env::var_os("ISOL8_TEST_GUEST").map_or_else(build_guest, PathBuf::from);
        fs::read(&path).unwrap_or_else(|error| panic!("guest {}: {error}", path.display()))
    })
}

fn build_guest() -> PathBuf {
    // A separate directory, because the build that runs this test holds the lock of the default one.
    let directory = Path::new(env!("CARGO_TARGET_TMPDIR")).join("guest");
    let target = target();
    let built = Command::new(env!("CARGO"))
        .args([
            "build",
            "--release",
            "-p",
            "isol8-guest",
            "--target",
            &target,
        ])
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .env("CARGO_TARGET_DIR", &directory)
        .env("RUSTFLAGS", "-C target-feature=+crt-static")
        .status()
        .unwrap();
    assert!(built.success(), "guest cannot be built");
    directory.join(target).join("release/isol8-guest")
}

/// A state directory and a backend in it.
struct Fixture {
    state: TempDir,
    instance: Arc<Instance>,
    backend: DockerBackend,
}

impl Fixture {
    async fn new() -> Self {
        let state = tempfile::tempdir().unwrap();
        let instance = Arc::new(Instance::create(state.path(), guest()).unwrap());
        let backend = connect(&instance).await;
        match backend.runtime_status(Runtime::Python).await {
            RuntimeStatus::Available(_) => {}
            RuntimeStatus::Unavailable(reason) => panic!("{reason}"),
        }
        Self {
            state,
            instance,
            backend,
        }
    }

    /// Returns the names of all containers of this state directory.
    fn containers(&self) -> Vec<String> {
        let filter = format!("label=isol8.state={}", self.state.path().display());
        let output = docker(&["ps", "-a", "--filter", &filter, "--format", "{{.Names}}"]);
        output.lines().map(str::to_owned).collect()
    }

    /// Returns the volumes of all containers of this state directory.
    fn volumes(&self) -> Vec<String> {
        let filter = format!("label=isol8.state={}", self.state.path().display());
        let output = docker(&["volume", "ls", "--quiet", "--filter", &filter]);
        output.lines().map(str::to_owned).collect()
    }

    fn directories(&self) -> usize {
        let entries = match fs::read_dir(self.instance.directory()) {
            // A shutdown removes the directory.
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return 0,
            entries => entries.unwrap(),
        };
        let names = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap());
        names
            .filter(|name| SandboxId::parse(name).is_some())
            .count()
    }

    async fn wait_until_empty(&self) {
        let start = Instant::now();
        while !self.containers().is_empty() || self.directories() > 0 || !self.volumes().is_empty()
        {
            assert!(start.elapsed() < TEST_TIMEOUT, "{:?}", self.containers());
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }
}

async fn connect(instance: &Arc<Instance>) -> DockerBackend {
    let backend = DockerBackend::connect(DockerConfig::default(), Arc::clone(instance)).await;
    backend.unwrap_or_else(|error| panic!("{error}"))
}

/// Runs the engine's own client, so that the tests do not rely on the backend's reports only.
fn docker(arguments: &[&str]) -> String {
    let output = Command::new("docker").args(arguments).output();
    let output = output.expect("docker is missing: run scripts/install-dependencies");
    assert!(
        output.status.success(),
        "docker {arguments:?}: {}",
        String::from_utf8_lossy(&output.stderr)
    );
    String::from_utf8(output.stdout).unwrap()
}

fn spec() -> SandboxSpec {
    SandboxSpec {
        runtime: Runtime::Python,
        limits: Limits {
            cpus: 1.0,
            memory: ByteSize::from_mebibytes(128),
            pids: 64,
        },
        sandbox_size: ByteSize::from_mebibytes(64),
        tmp_size: ByteSize::from_mebibytes(32),
        single_use: false,
        host_network: false,
        image: None,
    }
}

/// Runs a program and returns its standard output and exit code.
async fn run(control: &Control, argv: &[&str]) -> (String, i32) {
    let spec = RunSpec {
        program: Program::Command {
            argv: argv.iter().map(|argument| (*argument).to_owned()).collect(),
        },
        env: Vec::new(),
        cwd: None,
        stdin: Stdin::Empty,
        timeout_ms: Some(20_000),
        output_limit: Some(1 << 20),
        eager: false,
        sweep: true,
        terminal: None,
        network: false,
    };
    let mut run = control.run(spec).unwrap();
    let mut output = Vec::new();
    loop {
        match run.next().await.unwrap() {
            RunEvent::Output(OutputStream::Stdout, bytes) => output.extend(bytes),
            RunEvent::Output(OutputStream::Stderr, bytes) => {
                eprint!("{}", String::from_utf8_lossy(&bytes));
            }
            RunEvent::Exited(exit) => {
                let output = String::from_utf8(output).unwrap();
                return (output.trim().to_owned(), exit.status.code());
            }
        }
    }
}

#[tokio::test]
async fn a_sandbox_runs_code_without_privileges_and_leaves_nothing() {
    let fixture = Fixture::new().await;
    let sandbox = fixture.backend.create(&spec()).await.unwrap();
    let name = format!("isol8-{}", sandbox.id());
    assert_eq!(fixture.containers(), [name]);

    let script = "id -u; cat /sys/class/net/*/operstate | wc -l; grep -c . /proc/self/cgroup; \
        touch /x 2>/dev/null || echo read-only; ls /.isol8/control 2>/dev/null || echo closed; \
        grep CapEff /proc/self/status";
    let (output, code) = run(sandbox.control(), &["bash", "-c", script]).await;
    assert_eq!(code, 0);
    let lines: Vec<&str> = output.lines().collect();
    let user: u32 = lines[0].parse().unwrap();
    assert!(user >= 0x7000_0000, "{user} may be an account of the host");
    assert_eq!(lines[1], "1", "only the loopback interface");
    assert_eq!(lines[3..5], ["read-only", "closed"]);
    assert_eq!(lines[5], "CapEff:\t0000000000000000");

    sandbox.destroy().await.unwrap();
    assert!(fixture.containers().is_empty());
    assert_eq!(fixture.directories(), 0);
    sandbox.destroy().await.unwrap();
    let reason = tokio::time::timeout(TEST_TIMEOUT, sandbox.control().closed()).await;
    reason.expect("the connection ends with the container");
}

#[tokio::test]
async fn two_sandboxes_share_no_user_no_file_and_no_terminal() {
    let fixture = Fixture::new().await;
    let made = [spec(), spec()];
    let made = made.iter().map(|spec| fixture.backend.create(spec));
    let sandboxes = futures::future::try_join_all(made).await.unwrap();
    let [one, two] = &sandboxes[..] else {
        unreachable!("two were made")
    };
    let script =
        "id -u; id -un; id -gn; stat -c %u:%g /sandbox; touch /sandbox/a; stat -c %U /sandbox/a";
    let mut users = Vec::new();
    for sandbox in [one, two] {
        let (output, _) = run(sandbox.control(), &["bash", "-c", script]).await;
        let user = output.lines().next().unwrap().to_owned();
        let expected = format!("{user}\nsandbox\nsandbox\n{user}:{user}\nsandbox");
        assert_eq!(output, expected);
        users.push(user);
    }
    assert_ne!(users[0], users[1]);

    let stat =
        "stat -Lc %d:%i /.isol8/guest /etc/hosts /etc/resolv.conf /etc/passwd /etc/group /dev/pts";
    let (of_one, _) = run(one.control(), &["bash", "-c", stat]).await;
    let (of_two, _) = run(two.control(), &["bash", "-c", stat]).await;
    let of_one: Vec<&str> = of_one.lines().collect();
    assert_eq!(of_one.len(), 6, "{of_one:?}");
    assert!(of_one.iter().zip(of_two.lines()).all(|(a, b)| *a != b));

    let take_all = "import os\ntaken = 0\ntry:\n  while True: os.openpty(); taken += 1\n\
        except OSError as error: print(taken, error.strerror)";
    let (taken, _) = run(one.control(), &["python3", "-c", take_all]).await;
    assert_eq!(taken, "64 No space left on device");
    let take_one = "import os; near, far = os.openpty(); print(os.ttyname(far))";
    let (taken, _) = run(two.control(), &["python3", "-c", take_one]).await;
    assert_eq!(taken, "/dev/pts/0");
    for sandbox in sandboxes {
        sandbox.destroy().await.unwrap();
    }
    assert_eq!(fixture.volumes(), [""; 0]);
}

#[tokio::test]
async fn limits_can_be_raised_and_lowered_while_a_sandbox_lives() {
    let fixture = Fixture::new().await;
    let sandbox = fixture.backend.create(&spec()).await.unwrap();
    let name = format!("isol8-{}", sandbox.id());
    for (cpus, mebibytes, pids) in [(0.5, 512, 100), (64.0, 96, 32)] {
        let limits = Limits {
            cpus,
            memory: ByteSize::from_mebibytes(mebibytes),
            pids,
        };
        sandbox.set_limits(&limits).await.unwrap();
        let format = "{{.HostConfig.Memory}} {{.HostConfig.PidsLimit}}";
        let shown = docker(&["inspect", "--format", format, &name]);
        assert_eq!(shown.trim(), format!("{} {pids}", limits.memory.bytes()));
    }
    let allocate = "b = bytearray(200 << 20); print(len(b))";
    let (_, code) = run(sandbox.control(), &["python3", "-c", allocate]).await;
    assert_eq!(code, 137, "ended by the kernel");
    assert_eq!(sandbox.usage().await.unwrap().oom_kills, 1);

    let absurd = Limits {
        memory: ByteSize::from_bytes(1),
        ..spec().limits
    };
    let error = sandbox.set_limits(&absurd).await.unwrap_err();
    assert!(matches!(error, BackendError::Limits(_)), "{error}");
    sandbox.destroy().await.unwrap();
}

#[tokio::test]
async fn usage_is_measured_for_the_sandbox() {
    let fixture = Fixture::new().await;
    let sandbox = fixture.backend.create(&spec()).await.unwrap();
    let before = sandbox.usage().await.unwrap();
    assert!(before.memory_bytes > 0 && before.memory_bytes < 128 << 20);
    let work = "b = bytearray(40 << 20)\nfor i in range(3_000_000): pass";
    let (_, code) = run(sandbox.control(), &["python3", "-c", work]).await;
    assert_eq!(code, 0);
    let after = sandbox.usage().await.unwrap();
    assert!(after.peak_memory_bytes >= 40 << 20, "{after:?}");
    assert!(after.cpu_us > before.cpu_us, "{after:?}");
    assert_eq!(after.oom_kills, 0);
    sandbox.destroy().await.unwrap();
    let error = sandbox.usage().await.unwrap_err();
    assert!(matches!(error, BackendError::Unavailable(_)), "{error}");
}

#[tokio::test]
async fn a_dropped_sandbox_is_removed() {
    let fixture = Fixture::new().await;
    let sandbox = fixture.backend.create(&spec()).await.unwrap();
    drop(sandbox);
    fixture.wait_until_empty().await;
}

#[tokio::test]
async fn a_sandbox_whose_guest_died_is_removed_all_the_same() {
    let fixture = Fixture::new().await;
    let sandbox = fixture.backend.create(&spec()).await.unwrap();
    docker(&["kill", &format!("isol8-{}", sandbox.id())]);
    let reason = tokio::time::timeout(TEST_TIMEOUT, sandbox.control().closed()).await;
    reason.expect("the connection ends with the guest");
    assert_eq!(fixture.containers().len(), 1);
    sandbox.destroy().await.unwrap();
    assert!(fixture.containers().is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dropped_creation_leaves_nothing() {
    let fixture = Fixture::new().await;
    for milliseconds in [0, 5, 20, 60, 110] {
        let limit = Duration::from_millis(milliseconds);
        // Nothing may stay, whether the creation was cancelled at this point or had completed.
        let _ = tokio::time::timeout(limit, fixture.backend.create(&spec())).await;
    }
    // The shutdown waits for creations in progress, so no container can appear later.
    fixture.backend.shutdown().await.unwrap();
    fixture.wait_until_empty().await;
}

#[tokio::test]
async fn a_runtime_without_an_image_is_refused_with_the_fix() {
    let fixture = Fixture::new().await;
    let mut config = DockerConfig::default();
    config
        .images
        .insert(Runtime::Node, "isol8:no-such".to_owned());
    config.images.remove(&Runtime::Deno);
    let backend = DockerBackend::connect(config, Arc::clone(&fixture.instance)).await;
    let backend = backend.unwrap();
    for (runtime, fix) in [(Runtime::Node, "isol8 setup"), (Runtime::Deno, "only for")] {
        let spec = SandboxSpec { runtime, ..spec() };
        let error = backend.create(&spec).await.unwrap_err();
        assert!(error.to_string().contains(fix), "{error}");
        assert!(matches!(error, BackendError::RuntimeUnavailable { .. }));
        let status = backend.runtime_status(runtime).await;
        assert!(matches!(status, RuntimeStatus::Unavailable(text) if text.contains(fix)));
    }
    fixture.wait_until_empty().await;
}

#[tokio::test]
async fn shutdown_removes_every_sandbox_and_refuses_new_ones() {
    let fixture = Fixture::new().await;
    let specs = [spec(), spec(), spec()];
    let made = specs.iter().map(|spec| fixture.backend.create(spec));
    let sandboxes = futures::future::try_join_all(made).await.unwrap();
    assert_eq!(fixture.containers().len(), 3);
    fixture.backend.shutdown().await.unwrap();
    assert!(fixture.containers().is_empty());
    assert_eq!(fixture.directories(), 0);
    let error = fixture.backend.create(&spec()).await.unwrap_err();
    assert!(matches!(error, BackendError::Unavailable(_)), "{error}");
    drop(sandboxes);
}

#[tokio::test]
async fn a_sweep_removes_only_the_remains_of_dead_processes() {
    let fixture = Fixture::new().await;
    let mine = fixture.backend.create(&spec()).await.unwrap();
    let neighbour = Arc::new(Instance::create(fixture.state.path(), guest()).unwrap());
    let theirs = connect(&neighbour).await.create(&spec()).await.unwrap();
    assert_eq!(fixture.backend.sweep().await.unwrap(), 0);

    // Two containers of killed processes: only the first process left the directory of its instance.
    let left = fixture.state.path().join("00000000deadbeef");
    fs::create_dir(&left).unwrap();
    fs::write(left.join("lock"), "").unwrap();
    leave_behind(&fixture, "00000000deadbeef");
    leave_behind(&fixture, "11111111deadbeef");
    assert_eq!(fixture.containers().len(), 4);
    let claimed = DeadInstance::all(fixture.state.path(), Duration::ZERO);
    assert_eq!(claimed.len(), 1);
    assert_eq!(fixture.backend.sweep().await.unwrap(), 1, "one is claimed");
    let removed = fixture.backend.remove_instance(claimed[0].id()).await;
    assert_eq!(removed.unwrap(), 1);
    claimed.into_iter().for_each(DeadInstance::remove);

    leave_behind(&fixture, "22222222deadbeef");
    assert_eq!(fixture.backend.sweep().await.unwrap(), 1);
    assert_eq!(fixture.containers().len(), 2);
    mine.destroy().await.unwrap();
    theirs.destroy().await.unwrap();
}

#[tokio::test]
async fn a_sweep_removes_own_containers_that_a_removal_missed() {
    let fixture = Fixture::new().await;
    leave_behind(&fixture, fixture.instance.id().as_str());
    assert_eq!(fixture.backend.sweep().await.unwrap(), 1);
    assert!(fixture.containers().is_empty());
}

#[tokio::test]
async fn a_sweep_removes_the_remains_of_a_manual_removal() {
    let fixture = Fixture::new().await;
    let sandbox = fixture.backend.create(&spec()).await.unwrap();
    let removed = fixture.backend.create(&spec()).await.unwrap();
    docker(&["rm", "--force", &format!("isol8-{}", removed.id())]);
    assert_eq!(fixture.volumes().len(), 2);
    fixture.backend.sweep().await.unwrap();
    assert_eq!(fixture.volumes().len(), 1, "of the existing sandbox");
    removed.destroy().await.unwrap();
    sandbox.destroy().await.unwrap();
    fixture.wait_until_empty().await;
}

#[tokio::test]
async fn every_image_runs_its_interpreter_on_a_read_only_root() {
    let fixture = Fixture::new().await;
    let script = "console.log(6 * 7)";
    let commands: [(Runtime, [&str; 3]); 5] = [
        (Runtime::Python, ["python3", "-c", "print(6 * 7)"]),
        (Runtime::Node, ["node", "-e", script]),
        (Runtime::Bun, ["bun", "-e", script]),
        (Runtime::Deno, ["deno", "eval", script]),
        (Runtime::Bash, ["bash", "-c", "echo $((6 * 7))"]),
    ];
    for (runtime, command) in commands {
        let limits = Limits {
            memory: ByteSize::from_mebibytes(256),
            ..spec().limits
        };
        let spec = SandboxSpec {
            runtime,
            limits,
            ..spec()
        };
        let sandbox = fixture.backend.create(&spec).await.unwrap();
        let answer = run(sandbox.control(), &command).await;
        assert_eq!(answer, ("42".to_owned(), 0), "{runtime}");
        sandbox.destroy().await.unwrap();
    }
}

#[tokio::test]
async fn an_image_without_a_name_cannot_be_set_up() {
    let config = DockerConfig {
        images: [].into(),
        ..Default::default()
    };
    let error = setup(&config, &SetupOptions::default(), &mut |_| {}).await;
    let error = error.unwrap_err().to_string();
    assert!(error.contains("bash: the configuration"), "{error}");
}

#[tokio::test]
async fn a_failed_build_shows_the_output_of_the_engine() {
    // This base image contains no program.
    let base = "isol8-test-empty:latest";
    let empty = tempfile::NamedTempFile::new().unwrap();
    fs::write(empty.path(), [0; 1024]).unwrap();
    docker(&["import", empty.path().to_str().unwrap(), base]);
    let config = DockerConfig {
        images: [(Runtime::Bash, "isol8-test-failing:latest".to_owned())].into(),
        ..Default::default()
    };
    let options = SetupOptions {
        runtimes: vec![Runtime::Bash],
        base: base.to_owned(),
        ..Default::default()
    };
    let mut events = Vec::new();
    let error = setup(&config, &options, &mut |event| events.push(event)).await;
    docker(&["rmi", "-f", base]);
    let error = error.unwrap_err().to_string();
    assert!(
        error.contains("image isol8-test-failing:latest for bash cannot be built"),
        "{error}"
    );
    assert!(error.contains("/bin/sh"), "{error}");
    assert!(error.contains("COPY ca/"), "the log's end: {error}");
    let building = SetupEvent::Building {
        runtime: Runtime::Bash,
        tag: "isol8-test-failing:latest".to_owned(),
    };
    assert_eq!(events[0], building);
}

/// Creates a container with the labels of an instance.
fn leave_behind(fixture: &Fixture, instance: &str) {
    let state = format!("isol8.state={}", fixture.state.path().display());
    let instance = format!("isol8.instance={instance}");
    let name = format!("isol8-{}", isol8_backend::SandboxId::random());
    docker(&[
        "create",
        "--name",
        &name,
        "--label",
        &state,
        "--label",
        &instance,
        "isol8:python",
        "true",
    ]);
}
