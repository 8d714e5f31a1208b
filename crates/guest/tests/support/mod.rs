//! A sandbox for tests: the guest as PID 1 in new namespaces with its own root file system, and the host's end of its
//! control connection. The sandbox needs root, and changes nothing on the machine but a temporary directory.

#![allow(clippy::unwrap_used)] // a test that cannot go on should end at once
#![allow(clippy::expect_used)] // as above
#![allow(dead_code)] // every test file uses its own part

use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::{Duration, Instant};

use isol8_backend::{Control, ControlError, RunEvent, RunHandle};
use isol8_protocol::{
    Exit, ExitStatus, OutputStream, PrewarmSettings, Program, RunSpec, Runtime, Stdin,
};
use tokio::net::UnixStream;
use tokio::process::{Child, Command};

/// Deadline of every wait: longer than any step takes on a busy machine.
pub(crate) const TIMEOUT: Duration = Duration::from_secs(30);

/// A script that makes the root file system and executes the guest in it. `$1` is an empty directory that stays visible
/// as `/run/isol8`, `$2` the guest's executable; the rest are the guest's arguments.
const SETUP: &str = r#"
set -eu
shared=$1 guest=$2
shift 2
root=$shared/root
mkdir "$root"
mount --make-rprivate /
mount -t tmpfs -o mode=755 tmpfs "$root"
cd "$root"
mkdir usr proc dev dev/shm dev/mqueue dev/pts etc run run/isol8 sandbox tmp
mount --rbind -o ro /usr usr
# A module that leaves a thread running after its import.
for place in usr/local/lib/python3.*/dist-packages; do
    [ -d "$place" ] || continue
    mount -t tmpfs tmpfs "$place"
    printf 'import threading, time\nthreading.Thread(target=time.sleep, args=(9999,), daemon=True).start()\n' \
        > "$place/lingering.py"
done
for link in bin sbin lib lib64; do ln -s "usr/$link" "$link"; done
for device in null zero urandom tty; do touch "dev/$device"; mount --bind "/dev/$device" "dev/$device"; done
ln -s /proc/self/fd dev/fd
mount -t devpts -o newinstance,ptmxmode=0666,mode=0620,max=8 devpts dev/pts
ln -s pts/ptmx dev/ptmx
[ ! -d /etc/python3.11 ] || cp -r /etc/python3.11 etc/
echo 'sandbox:x:64800:64800::/sandbox:/bin/bash' > etc/passwd
mount -t proc proc proc
owner=64800
# As the native backend has it where user code has the guest's user id.
case " $* " in *" --shared-uid "*) owner=0; mount --bind -o ro proc/1 proc/1 ;; esac
mount -t mqueue mqueue dev/mqueue
mount -t tmpfs -o mode=1777,size=64m tmpfs dev/shm
mount -t tmpfs -o mode=755,uid=$owner,gid=$owner,size=256m tmpfs sandbox
mount -t tmpfs -o mode=1777,size=64m tmpfs tmp
mount --bind "$shared" run/isol8
cp "$guest" guest
mount -o remount,ro,bind .
exec chroot . /guest "$@"
"#;

/// A running guest.
#[derive(Debug)]
pub(crate) struct Sandbox {
    process: Child,
    directory: tempfile::TempDir,
    guest: i32,
    pub(crate) control: Control,
}

impl Drop for Sandbox {
    fn drop(&mut self) {
        // The guest does not die with its parent any more, because dropping capabilities has cleared that setting. The
        // end of PID 1 ends all processes of its namespace.
        let pid = nix::unistd::Pid::from_raw(self.guest);
        let _ = nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGKILL);
    }
}

impl Sandbox {
    pub(crate) async fn start() -> Self {
        Self::start_with(&[]).await
    }

    pub(crate) async fn start_with(arguments: &[&str]) -> Self {
        let arguments = [&["--socket", "/run/isol8/socket"], arguments].concat();
        Self::launch(tempfile::tempdir().unwrap(), &arguments).await
    }

    /// Starts a guest that inherits the listening socket `socket` of `directory` as the descriptor `number`.
    pub(crate) async fn start_listening(directory: tempfile::TempDir, number: i32) -> Self {
        Self::launch(directory, &["--fd", &number.to_string()]).await
    }

    async fn launch(directory: tempfile::TempDir, arguments: &[&str]) -> Self {
        let process = spawn(directory.path(), arguments);
        let stream = connect(&directory.path().join("socket")).await;
        let control = Control::open(stream).await.unwrap();
        let guest = only_child(process.id().unwrap()).unwrap();
        Self {
            process,
            directory,
            guest,
            control,
        }
    }

    pub(crate) fn socket(&self) -> PathBuf {
        self.directory.path().join("socket")
    }

    /// Opens a further connection, which replaces the one before.
    pub(crate) async fn reconnect(&mut self) {
        let stream = connect(&self.socket()).await;
        self.control = Control::open(stream).await.unwrap();
    }

    /// Waits until an interpreter is kept ready.
    pub(crate) async fn prepare(&self, runtime: Runtime) {
        let settings = PrewarmSettings::default();
        self.control.prepare(runtime, settings).await.unwrap();
    }

    pub(crate) async fn run(&self, spec: RunSpec) -> Outcome {
        finish(self.control.run(spec).unwrap()).await.unwrap()
    }

    pub(crate) async fn sh(&self, script: &str) -> Outcome {
        self.run(sh(script)).await
    }

    pub(crate) async fn python(&self, source: &str) -> Outcome {
        self.run(python(source)).await
    }

    pub(crate) async fn cell(&self, source: &str) -> Outcome {
        self.run(cell(source)).await
    }

    /// Waits until `script` succeeds.
    pub(crate) async fn wait_until(&self, script: &str) {
        let deadline = Instant::now() + TIMEOUT;
        while self.sh(script).await.code() != 0 {
            assert!(Instant::now() < deadline, "never became true: {script}");
        }
    }

    /// Runs a program that writes without end, and writes its process id to `/tmp/pid`: the program must wait once its
    /// output is no longer taken, and end with its run.
    pub(crate) async fn waits_and_ends_with_its_run(&self, endless: RunSpec) {
        let mut run = self.control.run(endless).unwrap();
        assert!(matches!(run.next().await.unwrap(), RunEvent::Output(..)));
        self.wait_until("grep -q '^State:.S' /proc/$(cat /tmp/pid)/status")
            .await;
        drop(run);
        self.wait_until("[ ! -d /proc/$(cat /tmp/pid) ]").await;
    }

    /// Returns the guest's process id in the namespace of the tests.
    pub(crate) fn guest(&self) -> i32 {
        self.guest
    }

    /// Whether the guest still lives.
    pub(crate) fn is_alive(&mut self) -> bool {
        self.process.try_wait().unwrap().is_none()
    }
}

pub(crate) fn spawn(directory: &Path, arguments: &[&str]) -> Child {
    assert!(
        nix::unistd::geteuid().is_root(),
        "these tests make namespaces and mounts: run them as root"
    );
    Command::new("unshare")
        .args([
            "--pid",
            "--mount",
            "--net",
            "--ipc",
            "--fork",
            "--kill-child",
        ])
        .args(["sh", "-c", SETUP, "setup"])
        .arg(directory)
        .arg(env!("CARGO_BIN_EXE_isol8-guest"))
        .arg("--loopback")
        .args(arguments)
        .env_clear()
        .env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin:/usr/local/bin")
        .stdin(Stdio::null())
        .kill_on_drop(true)
        .spawn()
        .expect("unshare (of util-linux) must be installed")
}

/// Returns the process id of the guest: the only child of the `unshare` with this process id.
fn only_child(parent: u32) -> Option<i32> {
    let children = format!("/proc/{parent}/task/{parent}/children");
    std::fs::read_to_string(children).ok()?.trim().parse().ok()
}

pub(crate) async fn connect(socket: &Path) -> UnixStream {
    let deadline = Instant::now() + TIMEOUT;
    loop {
        match UnixStream::connect(socket).await {
            Ok(stream) => return stream,
            Err(error) => assert!(Instant::now() < deadline, "guest does not listen: {error}"),
        }
        tokio::task::yield_now().await;
    }
}

/// The outcome of a run.
#[derive(Debug)]
pub(crate) struct Outcome {
    pub(crate) stdout: String,
    pub(crate) stderr: String,
    pub(crate) exit: Exit,
}

impl Outcome {
    pub(crate) fn code(&self) -> i32 {
        self.exit.status.code()
    }

    /// Returns the standard output of a run, and asserts that the run succeeded.
    #[track_caller]
    pub(crate) fn ok(&self) -> &str {
        assert_eq!(self.exit.status, ExitStatus::Code(0), "{}", self.stderr);
        assert_eq!(self.stderr, "");
        self.stdout.trim_end()
    }
}

/// Takes all events of a run, and returns its outcome.
pub(crate) async fn finish(mut run: RunHandle) -> Result<Outcome, ControlError> {
    let (mut stdout, mut stderr) = (Vec::new(), Vec::new());
    let exit = loop {
        let event = tokio::time::timeout(TIMEOUT, run.next()).await;
        match event.expect("the run does not go on")? {
            RunEvent::Output(OutputStream::Stdout, bytes) => stdout.extend(bytes),
            RunEvent::Output(OutputStream::Stderr, bytes) => stderr.extend(bytes),
            RunEvent::Exited(exit) => break exit,
        }
    };
    let text = |bytes: Vec<u8>| String::from_utf8_lossy(&bytes).into_owned();
    Ok(Outcome {
        stdout: text(stdout),
        stderr: text(stderr),
        exit,
    })
}

pub(crate) fn spec(program: Program) -> RunSpec {
    RunSpec {
        program,
        env: Vec::new(),
        cwd: None,
        stdin: Stdin::Empty,
        timeout_ms: None,
        output_limit: None,
        eager: true,
        sweep: false,
        terminal: None,
        network: false,
    }
}

pub(crate) fn command(argv: &[&str]) -> RunSpec {
    let argv = argv.iter().map(|argument| (*argument).to_owned()).collect();
    spec(Program::Command { argv })
}

pub(crate) fn sh(script: &str) -> RunSpec {
    command(&["sh", "-c", script])
}

pub(crate) fn python(source: &str) -> RunSpec {
    spec(Program::Script {
        runtime: Runtime::Python,
        path: "/sandbox/main.py".to_owned(),
        source: source.as_bytes().to_vec(),
    })
}

pub(crate) fn cell(source: &str) -> RunSpec {
    spec(Program::Cell {
        runtime: Runtime::Python,
        source: source.as_bytes().to_vec(),
    })
}
