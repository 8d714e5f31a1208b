//! Who gives the commands.

use std::io::Write as _;
use std::process::{Command, Output, Stdio};

use tempfile::TempDir;

use crate::harness::{ISOL8, KEY, Server, state_directory};

/// A user of the command line, with a home of its own.
pub(super) struct User {
    pub(super) home: TempDir,
    pub(super) url: String,
}

impl User {
    pub(super) fn of(server: &Server) -> Self {
        Self {
            home: state_directory(),
            url: format!("http://{}", server.address),
        }
    }

    /// A command without any key.
    pub(super) fn keyless(&self, arguments: &[&str]) -> Command {
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
    pub(super) fn command(&self, arguments: &[&str]) -> Command {
        let mut command = self.keyless(arguments);
        command
            .args(["--host", &self.url])
            .env("ISOL8_API_KEY", KEY);
        command
    }

    pub(super) fn isol8(&self, arguments: &[&str]) -> Output {
        self.command(arguments).output().unwrap()
    }

    /// What a command prints that is to succeed.
    pub(super) fn prints(&self, arguments: &[&str]) -> String {
        succeeded(arguments, &self.isol8(arguments))
    }

    pub(super) fn fed(&self, arguments: &[&str], input: &str) -> Output {
        let mut command = self
            .command(arguments)
            .stdin(Stdio::piped())
            .spawn()
            .unwrap();
        let mut stdin = command.stdin.take().unwrap();
        stdin.write_all(input.as_bytes()).unwrap();
        drop(stdin);
        command.wait_with_output().unwrap()
    }

    pub(super) fn path(&self, name: &str) -> String {
        self.home.path().join(name).to_str().unwrap().to_owned()
    }
}

pub(super) fn succeeded(arguments: &[&str], output: &Output) -> String {
    assert!(output.status.success(), "{arguments:?}: {}", stderr(output));
    stdout(output)
}

pub(super) fn stdout(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned()
}

pub(super) fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}
