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
    // Node finds the tests by their names.
    let node = ["--test", "--test-timeout=120000"];
    passes(&directory.join("build"), "node", &node);
}

/// The lines that the clients' pages have for it, in projects that hold nothing else.
#[test]
fn the_clients_are_installed_as_their_pages_say() {
    let project = tempfile::tempdir().unwrap();
    let target = project.path().join("python");
    let python = installed(Path::new(CLIENTS).join("python/.venv/bin/python"));
    let python = python.to_str().unwrap();
    let client = copy_of("python", project.path());
    let client = client.to_str().unwrap();
    let install = ["-m", "pip", "install", "--quiet", "--no-deps", "--target"];
    let arguments = [&install[..], &[target.to_str().unwrap(), client]].concat();
    passes(project.path(), python, &arguments);
    let check =
        format!("import isol8; assert isol8.__file__.startswith({target:?}), isol8.__file__");
    passes(&target, python, &["-c", &check]);

    let client = copy_of("typescript", project.path());
    passes(
        &client,
        "npm",
        &["ci", "--ignore-scripts", "--prefer-offline"],
    );
    passes(&client, "npm", &["pack"]);
    let package = client.join("isol8-client-0.1.0.tgz");
    let install = ["install", "--prefer-offline", package.to_str().unwrap()];
    let user = project.path().join("user");
    std::fs::create_dir(&user).unwrap();
    passes(&user, "npm", &install);
    let check =
        "import { Isol8 } from 'isol8-client'; new Isol8('http://127.0.0.1:1', { key: 'k' })";
    passes(&user, "node", &["--input-type=module", "--eval", check]);

    let user = project.path().join("rust");
    let name = user.to_str().unwrap();
    passes(
        project.path(),
        "cargo",
        &["init", "--quiet", "--vcs=none", name],
    );
    let client = concat!(env!("CARGO_MANIFEST_DIR"), "/crates/client");
    passes(
        &user,
        "cargo",
        &["add", "--quiet", "--offline", "--path", client],
    );
}

/// A client's sources as a checkout has them: building writes into them.
fn copy_of(client: &str, into: &Path) -> PathBuf {
    let copy = into.join(format!("{client}-client"));
    let (from, to) = (Path::new(CLIENTS).join(client), copy.to_str().unwrap());
    std::fs::create_dir(&copy).unwrap();
    let script = "tar -c --exclude=.venv --exclude=node_modules --exclude=build --exclude=dist . | tar -x -C \"$0\"";
    passes(&from, "bash", &["-o", "pipefail", "-c", script, to]);
    copy
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
