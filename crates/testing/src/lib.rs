//! Runs documentation examples against a real server.
//!
//! Only tests use this crate. A documentation test is a separate executable, so it can also be the
//! server: [`example`] starts the executable a second time as `isol8 serve` on the native backend, and stops
//! the server after the example. This needs root, as the native backend does to enforce all limits.

use std::error::Error;
use std::fs;
use std::io::{BufRead as _, BufReader};
use std::os::unix::fs::PermissionsExt as _;
use std::process::{Child, ChildStderr, Command, ExitCode, Stdio};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tempfile::TempDir;

/// API key of the server.
const KEY: &str = "example-key";

/// Any error of an example; the test fails with it.
pub type ExampleError = Box<dyn Error>;

/// Runs an example with the address and the API key of a server that is started for it. The `main` of a
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
pub fn example(run: impl AsyncFnOnce(String, String) -> Result<(), ExampleError>) -> ExitCode {
    // With arguments, this process is the server or its spawner.
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
    run: impl AsyncFnOnce(String, String) -> Result<(), ExampleError>,
) -> Result<(), ExampleError> {
    let (mut server, url) = ExampleServer::start()?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    let ran = runtime.block_on(run(url, KEY.to_owned()));
    let ended = server.stop();
    ran.and(ended)
}

struct ExampleServer {
    process: Child,
    _state: TempDir,
}

impl ExampleServer {
    fn start() -> Result<(Self, String), ExampleError> {
        let state = tempfile::tempdir()?;
        // A sandbox's mapped root must be able to traverse the directory.
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

    /// Stops the server, and returns an error if it does not exit successfully.
    fn stop(&mut self) -> Result<(), ExampleError> {
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

impl Drop for ExampleServer {
    fn drop(&mut self) {
        // Ignore errors: the server may have ended already.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// Returns the address in the server's log. A thread reads the rest of the log, so that the server never blocks on
/// writing it.
fn address(log: ChildStderr) -> Result<String, ExampleError> {
    let mut lines = BufReader::new(log).lines();
    let mut output = String::new();
    while let Some(line) = lines.next().transpose()? {
        if let Some((_, address)) = line.split_once("address=") {
            let address = address.trim().to_owned();
            std::thread::spawn(move || lines.for_each(drop));
            return Ok(address);
        }
        output.push_str(&line);
        output.push('\n');
    }
    Err(format!("the server did not start: {output}").into())
}
