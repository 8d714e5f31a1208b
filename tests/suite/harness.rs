//! A server for one test, and the checks that it leaves nothing behind.

use std::collections::BTreeSet;
use std::fs;
use std::io::{BufRead, BufReader};
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Arc, Mutex, PoisonError, mpsc};
use std::time::{Duration, Instant};

use isol8_client::{ExecutionRequest, ExecutionResult, RemoteIsol8, Runtime, SessionId};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tempfile::TempDir;

/// The built executable.
pub(crate) const ISOL8: &str = env!("CARGO_BIN_EXE_isol8");

/// The key of every server of the suite.
pub(crate) const KEY: &str = "suite-key-8d1f";

/// Environment variable that selects the messages that a server logs.
pub(crate) const LOG_FILTER: &str = "RUST_LOG";

/// Deadline of every wait in the suite; a longer wait means that something is wrong.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);

/// Bound of what must happen soon, on a busy machine too: far below the 25 s and more that the programs of such tests
/// would take by themselves.
pub(crate) const SOON: Duration = Duration::from_secs(15);

/// Id of the unprivileged user of the tests, and of its group.
const ORDINARY_USER: u32 = 65_534;

/// Hides each program with the name in the first argument by a mount of `/dev/null` in this mount namespace, and executes
/// the command.
const HIDE: &str = r#"
for program in {/usr/local/bin,/usr/bin,/bin}/"$1"; do
    if [ -e "$program" ]; then mount --bind /dev/null "$program" || exit 1; fi
done
shift
exec "$0" "$@"
"#;

/// Mounts the file in the first argument over `/etc/resolv.conf` in this mount namespace, and executes the command.
const RESOLVE_BY: &str = r#"mount --bind "$1" /etc/resolv.conf || exit 1; shift; exec "$0" "$@""#;

/// Mounts two overlays of `/usr` on top of each other in this mount namespace, and executes the command. The first argument
/// is an empty directory.
const STACK: &str = r#"
for _ in 1 2; do mount -t overlay -o "lowerdir=/usr:$1" overlay /usr || exit 1; done
shift
exec "$0" "$@"
"#;

/// Runs each test against its own server on each backend, with a configuration if one is given first.
macro_rules! on_each_backend {
    (with $config:expr; $($test:ident),* $(,)?) => {
        mod native {
            $(#[tokio::test]
            async fn $test() {
                let kind = $crate::harness::Kind::Native;
                super::$test($crate::harness::Server::configured(kind, $config)).await;
            })*
        }
        mod docker {
            $(#[tokio::test]
            async fn $test() {
                let kind = $crate::harness::Kind::Docker;
                super::$test($crate::harness::Server::configured(kind, $config)).await;
            })*
        }
    };
    ($($test:ident),* $(,)?) => {
        $crate::harness::on_each_backend!(with ""; $($test),*);
    };
}
pub(crate) use on_each_backend;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    Native,
    Docker,
}

impl Kind {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Native => "native",
            Self::Docker => "docker",
        }
    }
}

/// A state directory that a sandbox's mapped root can pass through.
pub(crate) fn state_directory() -> TempDir {
    let directory = tempfile::tempdir().unwrap();
    fs::set_permissions(directory.path(), fs::Permissions::from_mode(0o711)).unwrap();
    directory
}

/// A running server; ended and checked for leftovers by [`Server::stop`], and in any case killed.
pub(crate) struct Server {
    pub(crate) kind: Kind,
    pub(crate) address: String,
    process: Child,
    /// The log so far.
    log: Arc<Mutex<String>>,
    state: TempDir,
}

impl Server {
    pub(crate) fn start(kind: Kind) -> Self {
        Self::start_in(kind, state_directory(), "")
    }

    /// A server with this configuration.
    pub(crate) fn configured(kind: Kind, config: &str) -> Self {
        Self::start_in(kind, state_directory(), config)
    }

    /// A server whose backend cannot offer a runtime, whatever this machine has.
    pub(crate) fn lacking(kind: Kind, runtime: Runtime) -> Self {
        let config = match kind {
            Kind::Native => String::new(),
            Kind::Docker => format!("[runtimes.{runtime}]\nimage = \"isol8-test:no-such\"\n"),
        };
        let mut hidden = Command::new("unshare");
        hidden.args(["--mount", "bash", "-c", HIDE, ISOL8, &runtime.to_string()]);
        Self::launch(hidden, kind, state_directory(), &config)
    }

    /// A server that asks the name servers of this file, in the form of `/etc/resolv.conf`.
    pub(crate) fn resolving_by(kind: Kind, resolv_conf: &Path, config: &str) -> Self {
        let mut apart = Command::new("unshare");
        apart.args(["--mount", "bash", "-c", RESOLVE_BY, ISOL8]);
        apart.arg(resolv_conf);
        Self::launch(apart, kind, state_directory(), config)
    }

    /// A server under a limit, as the shell's `ulimit` sets it.
    pub(crate) fn limited(kind: Kind, limit: &str, config: &str) -> Self {
        let mut limited = Command::new("bash");
        let script = format!("ulimit {limit} && exec \"$0\" \"$@\"");
        limited.args(["-c", &script, ISOL8]);
        Self::launch(limited, kind, state_directory(), config)
    }

    /// A server on what an earlier one left.
    pub(crate) fn start_in(kind: Kind, state: TempDir, config: &str) -> Self {
        Self::launch(Command::new(ISOL8), kind, state, config)
    }

    /// A native server for which `/usr` is a stack of overlays as deep as the kernel allows.
    pub(crate) fn on_two_overlays_of_usr() -> Self {
        let state = state_directory();
        let empty = state.path().join("empty");
        fs::create_dir(&empty).unwrap();
        let mut command = Command::new("unshare");
        command
            .args(["--mount", "bash", "-c", STACK, ISOL8])
            .arg(empty);
        Self::launch(command, Kind::Native, state, "")
    }

    /// A native server of a user who is not root.
    pub(crate) fn of_an_ordinary_user(config: &str) -> Self {
        let state = state_directory();
        // The built executable may be in a directory that the user cannot enter.
        let executable = state.path().join("isol8");
        fs::copy(ISOL8, &executable).unwrap();
        std::os::unix::fs::chown(state.path(), Some(ORDINARY_USER), Some(ORDINARY_USER)).unwrap();
        let mut command = Command::new(executable);
        command
            .uid(ORDINARY_USER)
            .gid(ORDINARY_USER)
            .current_dir("/");
        Self::launch(command, Kind::Native, state, config)
    }

    /// A server that chooses its backend itself, and is expected to choose this one.
    pub(crate) fn choosing(kind: Kind, config: &str) -> Self {
        let command = Command::new(ISOL8);
        Self::launch_with("auto", command, kind, state_directory(), config)
    }

    /// A server that another program starts, whose last argument is the executable.
    pub(crate) fn launch(command: Command, kind: Kind, state: TempDir, config: &str) -> Self {
        Self::launch_with(kind.name(), command, kind, state, config)
    }

    fn launch_with(
        backend: &str,
        mut command: Command,
        kind: Kind,
        state: TempDir,
        config: &str,
    ) -> Self {
        assert!(
            nix::unistd::geteuid().is_root(),
            "the suite needs root: run scripts/test as root"
        );
        let config_file = state.path().join("config.toml");
        fs::write(&config_file, config).unwrap();
        // A test that wants to see more sets it.
        if !command.get_envs().any(|(name, _)| name == LOG_FILTER) {
            command.env_remove(LOG_FILTER);
        }
        let mut process = command
            .args(["serve", "--port", "0", "--backend", backend, "--config"])
            .arg(&config_file)
            .env("ISOL8_API_KEY", KEY)
            .env("ISOL8_STATE_DIR", state.path())
            .env("SUITE_SECRET", "only-the-server-knows")
            .stdin(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let log = Arc::default();
        let lines = BufReader::new(process.stderr.take().unwrap());
        let address = listening_address(lines, &log).unwrap_or_else(|| {
            let _ = process.kill();
            let log = log.lock().unwrap();
            panic!("{} server did not start: {log}", kind.name());
        });
        Self {
            kind,
            address,
            process,
            log,
            state,
        }
    }

    pub(crate) fn client(&self) -> RemoteIsol8 {
        RemoteIsol8::new(&format!("http://{}", self.address), KEY).unwrap()
    }

    pub(crate) fn session(&self, id: &str) -> RemoteIsol8 {
        self.client().with_session(id.parse::<SessionId>().unwrap())
    }

    /// Runs Python and expects an answer.
    pub(crate) async fn python(&self, code: &str) -> ExecutionResult {
        self.client().execute(python(code)).await.unwrap()
    }

    /// Returns the log so far.
    pub(crate) fn log(&self) -> String {
        self.log.lock().unwrap().clone()
    }

    pub(crate) fn state(&self) -> &Path {
        self.state.path()
    }

    pub(crate) fn pid(&self) -> u32 {
        self.process.id()
    }

    /// The native backend's helper process.
    pub(crate) fn spawner(&self) -> Pid {
        let tasks = fs::read_dir(format!("/proc/{}/task", self.pid())).unwrap();
        let children = tasks.flat_map(|task| {
            let children = fs::read_to_string(task.unwrap().path().join("children")).unwrap();
            let pids = children.split_whitespace().map(|pid| pid.parse().unwrap());
            pids.collect::<Vec<i32>>()
        });
        let mut spawners = children.filter(|pid| {
            let arguments = fs::read_to_string(format!("/proc/{pid}/cmdline")).unwrap_or_default();
            arguments.contains("__spawner")
        });
        Pid::from_raw(spawners.next().expect("the server has no spawner"))
    }

    /// Everything of this server's sandboxes that the system shows now.
    pub(crate) fn traces(&self) -> BTreeSet<String> {
        traces(self.kind, self.state.path())
    }

    /// Bytes that the server has in memory: `VmRSS` is what it has now, `VmHWM` the most it had.
    pub(crate) fn memory(&self, which: &str) -> u64 {
        let status = fs::read_to_string(format!("/proc/{}/status", self.pid())).unwrap();
        let line = status.lines().find(|line| line.starts_with(which)).unwrap();
        let kib = line.split_whitespace().nth(1).unwrap();
        kib.parse::<u64>().unwrap() * 1024
    }

    /// Files that the server has open, sockets included.
    pub(crate) fn open_files(&self) -> usize {
        fs::read_dir(format!("/proc/{}/fd", self.pid()))
            .unwrap()
            .count()
    }

    /// Processor time that the server has used.
    pub(crate) fn processor_time(&self) -> Duration {
        let stat = fs::read_to_string(format!("/proc/{}/stat", self.pid())).unwrap();
        let (_, after_name) = stat.rsplit_once(')').unwrap();
        let ticks = after_name.split_whitespace().skip(11).take(2);
        let ticks: u64 = ticks.map(|ticks| ticks.parse::<u64>().unwrap()).sum();
        // USER_HZ, which is 100 wherever Linux runs.
        Duration::from_millis(ticks * 10)
    }

    /// Kills everything in this server's sandboxes, as the kernel or an operator might.
    pub(crate) fn kill_sandboxes(&self) {
        for process in sandboxed_processes(self.kind, self.state()) {
            // A process that has ended by itself is as good.
            let _ = kill(Pid::from_raw(process), Signal::SIGKILL);
        }
        if self.kind == Kind::Docker {
            for id in containers(self.state()) {
                until("the container has ended", || {
                    // A container that is just being made cannot be killed yet, and one that is gone not any more.
                    let _ = Command::new("docker").args(["kill", &id]).output();
                    !is_running(&id)
                });
            }
        }
    }

    /// Returns the names of this server's sandboxes that still exist, those that have died included.
    pub(crate) fn sandboxes(&self) -> BTreeSet<String> {
        match self.kind {
            Kind::Native => sandbox_cgroups(self.kind, self.state())
                .iter()
                .map(|cgroup| cgroup.file_name().unwrap().to_string_lossy().into_owned())
                .collect(),
            Kind::Docker => containers(self.state()).into_iter().collect(),
        }
    }

    /// Waits until a program in one of this server's sandboxes has made a file, by which it shows how far it is.
    pub(crate) async fn until_file(&self, path: &str) {
        eventually(&format!("a sandbox has {path}"), || {
            self.has_in_a_sandbox(path)
        })
        .await;
    }

    fn has_in_a_sandbox(&self, path: &str) -> bool {
        match self.kind {
            Kind::Native => sandboxed_processes(self.kind, self.state())
                .iter()
                .any(|process| Path::new(&format!("/proc/{process}/root{path}")).exists()),
            Kind::Docker => containers(self.state()).iter().any(|id| {
                let found = Command::new("docker")
                    .args(["exec", id, "test", "-e", path])
                    .output();
                found.unwrap().status.success()
            }),
        }
    }

    /// Waits until the server has logged a text.
    pub(crate) async fn until_logged(&self, text: &str) {
        eventually(&format!("the log has {text:?}"), || {
            self.log().contains(text)
        })
        .await;
    }

    /// Ends the server as an operator would, and expects a clean end and no trace.
    pub(crate) fn stop(mut self) {
        let sandboxed = sandboxed_processes(self.kind, self.state.path());
        self.end_well();
        assert_eq!(self.traces(), BTreeSet::new());
        for process in sandboxed {
            assert!(!Path::new(&format!("/proc/{process}/ns")).exists() || reused(process));
        }
    }

    /// Ends the server as an operator would who wants its sessions kept, and gives back its state
    /// directory.
    pub(crate) fn terminate(mut self) -> TempDir {
        self.end_well();
        let unused = tempfile::tempdir().unwrap();
        std::mem::replace(&mut self.state, unused)
    }

    /// Kills the server without a chance to clean up, and gives back its state directory.
    pub(crate) fn kill(mut self) -> TempDir {
        self.signal(Signal::SIGKILL);
        self.wait();
        let unused = tempfile::tempdir().unwrap();
        std::mem::replace(&mut self.state, unused)
    }

    /// Waits until the server has ended by itself.
    pub(crate) fn ended(mut self) -> ExitStatus {
        self.wait()
    }

    fn end_well(&mut self) {
        self.signal(Signal::SIGTERM);
        let status = self.wait();
        let log = self.log.lock().unwrap().clone();
        assert!(status.success(), "server ended with {status}: {log}");
    }

    fn signal(&self, signal: Signal) {
        let pid = i32::try_from(self.process.id()).unwrap();
        kill(Pid::from_raw(pid), signal).unwrap();
    }

    fn wait(&mut self) -> ExitStatus {
        let mut ended = None;
        until("the server ends", || {
            ended = self.process.try_wait().unwrap();
            ended.is_some()
        });
        ended.unwrap()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!(
                "{} server logged:\n{}",
                self.kind.name(),
                self.log.lock().unwrap_or_else(PoisonError::into_inner)
            );
        }
        if matches!(self.process.try_wait(), Ok(None)) {
            // The spawner, or the next sweep, removes its sandboxes; give the former the time.
            let pid = i32::try_from(self.process.id()).unwrap();
            let _ = kill(Pid::from_raw(pid), Signal::SIGTERM);
            let deadline = Instant::now() + Duration::from_secs(20);
            while matches!(self.process.try_wait(), Ok(None)) && Instant::now() < deadline {
                std::thread::sleep(Duration::from_millis(10));
            }
            let _ = self.process.kill();
            let _ = self.process.wait();
        }
    }
}

/// A Python request.
pub(crate) fn python(code: &str) -> ExecutionRequest {
    source(Runtime::Python, code)
}

/// Code of any runtime.
pub(crate) fn source(runtime: Runtime, code: impl Into<String>) -> ExecutionRequest {
    let mut request = ExecutionRequest::new(runtime);
    request.code = Some(code.into());
    request
}

/// A shell command beside a session's Python.
pub(crate) fn command(cmd: &str) -> ExecutionRequest {
    let mut request = ExecutionRequest::new(Runtime::Python);
    request.cmd = Some(cmd.to_owned());
    request
}

/// A bash request.
pub(crate) fn bash(code: &str) -> ExecutionRequest {
    let mut request = ExecutionRequest::new(Runtime::Bash);
    request.code = Some(code.to_owned());
    request
}

/// Waits for a condition, with a deadline, while the other tasks of the test go on.
pub(crate) async fn eventually(what: &str, mut holds: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !holds() {
        assert!(Instant::now() < deadline, "waited in vain until {what}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

/// Waits for a condition, with a deadline. Blocks the thread, and with it the other tasks of the test.
pub(crate) fn until(what: &str, mut holds: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !holds() {
        assert!(Instant::now() < deadline, "waited in vain until {what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// Returns the traces of the sandboxes under a state directory: directories, mounts, cgroups, containers.
pub(crate) fn traces(kind: Kind, state: &Path) -> BTreeSet<String> {
    let mut traces: BTreeSet<String> = instances(kind, state)
        .into_iter()
        .map(|path| format!("directory {}", path.display()))
        .collect();
    let mounts = fs::read_to_string("/proc/self/mounts").unwrap();
    let ours = state.to_str().unwrap();
    traces.extend(
        mounts
            .lines()
            .filter(|line| line.contains(ours))
            .map(|line| format!("mount {line}")),
    );
    traces.extend(
        cgroups(kind, state)
            .into_iter()
            .map(|path| format!("cgroup {}", path.display())),
    );
    if kind == Kind::Docker {
        traces.extend(
            containers(state)
                .into_iter()
                .map(|id| format!("container {id}")),
        );
    }
    traces
}

fn instances(kind: Kind, state: &Path) -> Vec<PathBuf> {
    match fs::read_dir(state.join(kind.name())) {
        Ok(entries) => entries.map(|entry| entry.unwrap().path()).collect(),
        Err(_) => Vec::new(),
    }
}

/// The cgroups of a state directory's native instances, in every hierarchy.
fn cgroups(kind: Kind, state: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    if kind == Kind::Docker {
        return found;
    }
    for instance in instances(kind, state) {
        let name = instance.file_name().unwrap().to_owned();
        let roots = fs::read_dir("/sys/fs/cgroup").unwrap();
        let roots = roots.map(|entry| entry.unwrap().path());
        for root in roots.chain([PathBuf::from("/sys/fs/cgroup")]) {
            let cgroup = root.join("isol8").join(&name);
            if cgroup.exists() {
                found.push(cgroup);
            }
        }
    }
    found
}

fn containers(state: &Path) -> Vec<String> {
    let filter = format!("label=isol8.state={}", state.join("docker").display());
    let output = Command::new("docker")
        .args(["ps", "--all", "--quiet", "--filter", &filter])
        .output()
        .expect("the docker command is missing: run scripts/install-dependencies");
    assert!(output.status.success(), "docker does not answer");
    let text = String::from_utf8(output.stdout).unwrap();
    text.lines().map(str::to_owned).collect()
}

fn is_running(container: &str) -> bool {
    let inspect = ["inspect", "--format", "{{.State.Running}}", container];
    let output = Command::new("docker").args(inspect).output().unwrap();
    output.stdout.starts_with(b"true")
}

/// Host process ids of everything in the native sandboxes of a state directory.
pub(crate) fn sandboxed_processes(kind: Kind, state: &Path) -> Vec<i32> {
    let mut processes = Vec::new();
    for cgroup in sandbox_cgroups(kind, state) {
        let members = fs::read_to_string(cgroup.join("cgroup.procs")).unwrap_or_default();
        processes.extend(members.lines().filter_map(|line| line.parse::<i32>().ok()));
    }
    processes
}

/// The cgroups of each native sandbox of a state directory, in every hierarchy.
fn sandbox_cgroups(kind: Kind, state: &Path) -> Vec<PathBuf> {
    let instances = cgroups(kind, state).into_iter();
    let entries = instances.filter_map(|cgroup| fs::read_dir(cgroup).ok());
    let entries = entries.flat_map(|entries| entries.flatten());
    entries
        .map(|entry| entry.path())
        .filter(|path| path.is_dir())
        .collect()
}

/// Whether a process id now belongs to something that is not in a sandbox.
fn reused(process: i32) -> bool {
    let membership = fs::read_to_string(format!("/proc/{process}/cgroup")).unwrap_or_default();
    !membership.contains("/isol8/")
}

/// Returns the address in the server's log; `None` if the server ended without one. The whole log is read and kept, so
/// that the server never waits for it.
fn listening_address(
    lines: impl BufRead + Send + 'static,
    log: &Arc<Mutex<String>>,
) -> Option<String> {
    let (found, address) = mpsc::channel();
    let log = Arc::clone(log);
    std::thread::spawn(move || {
        for line in lines.lines() {
            let line = line.unwrap_or_default();
            if std::env::var_os("SUITE_LOG").is_some() {
                eprintln!("{line}");
            }
            let mut log = log.lock().unwrap();
            log.push_str(&line);
            log.push('\n');
            if let Some((_, address)) = line.split_once("address=") {
                let _ = found.send(address.trim().to_owned());
            }
        }
    });
    // Without an address the reader ends with the log, and the wait with the reader.
    address.recv_timeout(PATIENCE).ok()
}
