//! Closed pipes: no command panics where its reader has gone away.

use std::io::pipe;
use std::process::{Command, Stdio};

use crate::harness::{ISOL8, state_directory};

/// The exit code of Rust's runtime after a panic.
const PANICKED: i32 = 101;

/// Every command, each with all that it prints; and whether it succeeds.
const COMMANDS: &[(&[&str], bool)] = &[
    (&[], true),
    (&["--help"], true),
    (&["--version"], true),
    (&["run", "--help"], true),
    (&["frobnicate"], false),
    (&["doctor"], true),
    (&["config"], true),
    (&["config", "--json"], true),
    (&["config", "--schema"], true),
    (&["completions", "bash"], true),
    (&["completions", "zsh"], true),
    (&["completions", "fish"], true),
    (&["sessions"], true),
    (&["sessions", "--json"], true),
    (&["session", "delete", "none"], false),
    (&["ls", "none:/sandbox"], false),
    (&["cp", "none:/sandbox/x", "-"], false),
    (&["cleanup", "--force", "--backend", "native"], true),
    (
        &["cleanup", "--force", "--json", "--backend", "native"],
        true,
    ),
    (
        &["login", "--host", "http://127.0.0.1:1", "--key", "k"],
        false,
    ),
    (&["logout"], true),
    (&["setup", "--backend", "native"], false),
    (&["build", "--base", "bash", "--tag", "!"], false),
    (
        &["run", "--backend", "native", "-e", "print(1)", "--json"],
        true,
    ),
    (
        &["run", "--backend", "native", "-e", "raise SystemExit(3)"],
        false,
    ),
    (&["shell", "--backend", "native"], false),
    (&["serve", "--port", "0", "--backend", "native"], false),
];

#[test]
fn no_command_panics_on_a_closed_pipe() {
    let home = state_directory();
    for (arguments, succeeds) in COMMANDS {
        let (reader, writer) = pipe().unwrap();
        drop(reader);
        let status = Command::new(ISOL8)
            .args(*arguments)
            .env("HOME", home.path())
            .env("ISOL8_STATE_DIR", home.path().join("state"))
            .env_remove("ISOL8_API_KEY")
            .current_dir(home.path())
            .stdin(Stdio::null())
            .stdout(writer.try_clone().unwrap())
            .stderr(writer)
            .status()
            .unwrap();
        assert_ne!(status.code(), Some(PANICKED), "{arguments:?}");
        assert_eq!(status.success(), *succeeds, "{arguments:?}: {status}");
    }
}
