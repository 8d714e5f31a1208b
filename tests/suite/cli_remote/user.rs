//! The user who gives the commands.

use std::io::Write as _;
use std::process::{Command, Output, Stdio};

use tempfile::TempDir;

use crate::harness::{ISOL8, KEY, Server, state_directory};

/// A user of the command line, with a home of its own.
pub(crate) struct User {
    pub(crate) home: TempDir,
    pub(crate) url: String,
}

impl User {
    pub(crate) fn of(server: &Server) -> Self {
        Self {
            home: state_directory(),
            url: format!("http://{}", server.address),
        }
    }

    /// A user who knows of no server.
    pub(crate) fn here() -> Self {
        Self {
            home: state_directory(),
            url: String::new(),
        }
    }

    /// A command without any key.
    pub(crate) fn keyless(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(ISOL8);
        command
            .args(arguments)
            .env("HOME", self.home.path())
            .env("ISOL8_STATE_DIR", self.home.path().join("state"))
            .env_remove("ISOL8_API_KEY")
            .current_dir(self.home.path())
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        command
    }

    /// A command with the server and its key.
    pub(crate) fn command(&self, arguments: &[&str]) -> Command {
        let mut command = self.keyless(arguments);
        command
            .args(["--host", &self.url])
            .env("ISOL8_API_KEY", KEY);
        command
    }

    pub(crate) fn isol8(&self, arguments: &[&str]) -> Output {
        self.command(arguments).output().unwrap()
    }

    /// Returns the output of a command that is to succeed.
    pub(crate) fn prints(&self, arguments: &[&str]) -> String {
        succeeded(arguments, &self.isol8(arguments))
    }

    pub(crate) fn fed(&self, arguments: &[&str], input: &str) -> Output {
        fed(self.command(arguments), input.as_bytes())
    }

    /// Returns the text that a command shows at a terminal of its own while the input is typed. The terminal ends with
    /// the command.
    pub(crate) fn at_a_terminal(
        &self,
        command: &str,
        variables: &[(&str, &str)],
        typed: &str,
    ) -> Output {
        let mut script = Command::new("script");
        script
            .args(["--quiet", "--return", "--command", command, "/dev/null"])
            .env("HOME", self.home.path())
            .env("ISOL8_STATE_DIR", self.home.path().join("state"))
            .env_remove("ISOL8_API_KEY")
            .envs(variables.iter().copied())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped());
        let mut script = script.spawn().unwrap();
        let mut stdin = script.stdin.take().unwrap();
        stdin.write_all(typed.as_bytes()).unwrap();
        // Open until the end: a terminal that hangs up ends what runs at it.
        let output = script.wait_with_output().unwrap();
        drop(stdin);
        output
    }

    pub(crate) fn path(&self, name: &str) -> String {
        self.home.path().join(name).to_str().unwrap().to_owned()
    }
}

/// Returns the output of a command for this standard input.
pub(crate) fn fed(mut command: Command, input: &[u8]) -> Output {
    let mut command = command.stdin(Stdio::piped()).spawn().unwrap();
    let mut stdin = command.stdin.take().unwrap();
    let input = input.to_vec();
    // Beside the reading of what it prints: neither waits for the other.
    let writing = std::thread::spawn(move || {
        // A command that has ended reads no more.
        let _ = stdin.write_all(&input);
    });
    let output = command.wait_with_output().unwrap();
    writing.join().unwrap();
    output
}

pub(crate) fn succeeded(arguments: &[&str], output: &Output) -> String {
    assert!(output.status.success(), "{arguments:?}: {}", stderr(output));
    stdout(output)
}

pub(crate) fn stdout(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned()
}

pub(crate) fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}
