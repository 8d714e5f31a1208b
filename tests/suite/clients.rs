//! The client libraries in other languages: their types, and their own tests, which start servers of the
//! built executable on the native backend.

use std::path::{Path, PathBuf};
use std::process::Command;

use crate::harness::ISOL8;

const CLIENTS: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/clients");

#[test]
fn the_python_client_is_well_typed_and_passes_its_tests() {
    let directory = Path::new(CLIENTS).join("python");
    let python = installed(directory.join(".venv/bin/python"));
    let python = python.to_str().unwrap();
    passes(&directory, python, &["-m", "mypy", "--strict"]);
    passes(&directory, python, &["-m", "pytest", "--quiet"]);
}

#[test]
fn the_typescript_client_is_well_typed_and_passes_its_tests() {
    let directory = Path::new(CLIENTS).join("typescript");
    let compiler = installed(directory.join("node_modules/typescript/bin/tsc"));
    let compiler = compiler.to_str().unwrap();
    passes(&directory, "node", &[compiler, "--noEmit"]);
    // Checks the tests' types as well.
    let tests = [compiler, "--project", "tsconfig.test.json"];
    passes(&directory, "node", &tests);
    // Node 20 has a WebSocket, and hides it. It finds the tests by their names.
    let node = [
        "--experimental-websocket",
        "--test",
        "--test-timeout=120000",
    ];
    passes(&directory.join("build"), "node", &node);
}

/// A tool of a client's directory.
fn installed(tool: PathBuf) -> PathBuf {
    assert!(
        tool.exists(),
        "{} is missing: run scripts/install-dependencies",
        tool.display()
    );
    tool
}

/// Runs a program in a client's directory, and expects that it finds nothing wrong.
fn passes(directory: &Path, program: &str, arguments: &[&str]) {
    let mut command = Command::new(program);
    command.args(arguments).current_dir(directory);
    command.env("ISOL8", ISOL8);
    let output = command.output().unwrap_or_else(|error| {
        panic!("{program} cannot be started: {error}; run scripts/install-dependencies")
    });
    assert!(
        output.status.success(),
        "{command:?}: {}\n{}{}",
        output.status,
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
}
