//! Examples in documentation, run against a real server.
//!
//! Only tests use this crate. A documentation test is an executable of its own, so it can be the server as well:
//! [`example`] starts it a second time as `isol8 serve` on the native backend, and ends that when the example has come
//! to its end. The example needs root, as that backend does to enforce everything.

use std::error::Error;
use std::fs;
use std::io::{BufRead as _, BufReader};
use std::os::unix::fs::PermissionsExt as _;
use std::process::{Child, ChildStderr, Command, ExitCode, Stdio};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tempfile::TempDir;

/// The key of the server.
const KEY: &str = "example-key";

/// Any failure, which fails the test.
pub type Failure = Box<dyn Error>;

/// Runs an example with the address and the key of a server of its own. The `main` of a
/// `standalone_crate` documentation test calls this first.
///
/// ```standalone_crate
/// # use std::process::ExitCode;
/// fn main() -> ExitCode {
///     isol8_testing::example(async |url, key| {
///         assert!(url.starts_with("http://127.0.0.1:") && !key.is_empty());
///         Ok(())
///     })
/// }
/// ```
#[must_use]
pub fn example(run: impl AsyncFnOnce(String, String) -> Result<(), Failure>) -> ExitCode {
    // The server, or its spawner.
    if std::env::args_os().len() > 1 {
        return isol8::start();
    }
    match run_against_a_server(run) {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            eprintln!("the example failed: {failure}");
            ExitCode::FAILURE
        }
    }
}

fn run_against_a_server(
    run: impl AsyncFnOnce(String, String) -> Result<(), Failure>,
) -> Result<(), Failure> {
    let (mut server, url) = Server::start()?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    let ran = runtime.block_on(run(url, KEY.to_owned()));
    let ended = server.stop();
    ran.and(ended)
}

struct Server {
    process: Child,
    _state: TempDir,
}

impl Server {
    fn start() -> Result<(Self, String), Failure> {
        let state = tempfile::tempdir()?;
        // A sandbox's mapped root passes through.
        fs::set_permissions(state.path(), fs::Permissions::from_mode(0o711))?;
        let config = state.path().join("config.toml");
        fs::write(&config, "")?;
        let mut process = Command::new("/proc/self/exe")
            .args(["serve", "--port", "0", "--backend", "native", "--config"])
            .arg(&config)
            .env("ISOL8_API_KEY", KEY)
            .env("ISOL8_STATE_DIR", state.path())
            .env_remove("RUST_LOG")
            .stdin(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()?;
        let log = process.stderr.take();
        let server = Self {
            process,
            _state: state,
        };
        let address = address(log.ok_or("the server has no log")?)?;
        Ok((server, format!("http://{address}")))
    }

    /// Ends the server, and expects that it ends well.
    fn stop(&mut self) -> Result<(), Failure> {
        kill(
            Pid::from_raw(i32::try_from(self.process.id())?),
            Signal::SIGTERM,
        )?;
        let status = self.process.wait()?;
        if status.success() {
            return Ok(());
        }
        Err(format!("the server ended with {status}").into())
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // A process that has ended is as good.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// The address in the server's log, which is read to its end, so that the server never waits for it.
fn address(log: ChildStderr) -> Result<String, Failure> {
    let mut lines = BufReader::new(log).lines();
    let mut said = String::new();
    while let Some(line) = lines.next().transpose()? {
        if let Some((_, address)) = line.split_once("address=") {
            let address = address.trim().to_owned();
            std::thread::spawn(move || lines.for_each(drop));
            return Ok(address);
        }
        said.push_str(&line);
        said.push('\n');
    }
    Err(format!("the server did not start: {said}").into())
}
