//! The command line, as scripts use it.

mod backend;
mod bytes;
mod completion;
mod failures;
mod pipes;

use std::os::unix::process::CommandExt as _;
use std::process::{Command, Output};

use crate::harness::{ISOL8, KEY, Kind, state_directory, traces};

fn isol8(arguments: &[&str]) -> Output {
    let state = state_directory();
    let output = Command::new(ISOL8)
        .args(arguments)
        .env("ISOL8_STATE_DIR", state.path())
        .env_remove("ISOL8_API_KEY")
        .output()
        .unwrap();
    for kind in [Kind::Native, Kind::Docker] {
        assert!(traces(kind, state.path()).is_empty());
    }
    output
}

fn stdout(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned()
}

fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

#[test]
fn run_prints_what_the_program_prints_and_exits_with_its_code() {
    for backend in ["native", "docker"] {
        let code = "import sys; print(6 * 7); print('e', file=sys.stderr); sys.exit(3)";
        let output = isol8(&["run", "--backend", backend, "-e", code, "-r", "python"]);
        assert_eq!(stdout(&output), "42\n", "{}", stderr(&output));
        assert!(stderr(&output).ends_with("e\n"), "{}", stderr(&output));
        assert_eq!(output.status.code(), Some(3));
    }
}

#[test]
fn the_runtime_follows_from_the_extension_and_is_python_without_one() {
    let directory = tempfile::tempdir().unwrap();
    let script = directory.path().join("script.sh");
    std::fs::write(&script, "echo $((6 * 7))").unwrap();
    let output = isol8(&["run", "--backend", "native", script.to_str().unwrap()]);
    assert_eq!(stdout(&output), "42\n", "{}", stderr(&output));
    let output = isol8(&["run", "--backend", "native", "-e", "print(1)"]);
    assert_eq!(stdout(&output), "1\n", "{}", stderr(&output));
}

#[test]
fn the_network_is_filtered_and_told_of_on_standard_error() {
    let code = "import urllib.request, urllib.error
try: urllib.request.urlopen('http://denied.example/path', timeout=20)
except urllib.error.HTTPError as error: print(error.code)";
    let arguments = [
        "run",
        "--backend",
        "native",
        "--net",
        "filtered",
        "--deny",
        "^denied",
    ];
    let output = isol8(&[&arguments[..], &["--log-network", "-e", code]].concat());
    assert_eq!(stdout(&output), "403\n", "{}", stderr(&output));
    let told = stderr(&output);
    assert!(told.contains(" blocked GET denied.example/path "), "{told}");
}

#[test]
fn no_arguments_print_the_help_and_version_the_bare_number() {
    let help = isol8(&[]);
    assert!(stdout(&help).contains("Commands:"));
    assert!(help.status.success());
    let version = isol8(&["--version"]);
    assert_eq!(stdout(&version).trim(), env!("CARGO_PKG_VERSION"));
}

#[test]
fn the_help_names_the_variable_of_the_key_and_not_the_key() {
    for command in ["serve", "run", "login"] {
        let output = Command::new(ISOL8)
            .args([command, "--help"])
            .env("ISOL8_API_KEY", KEY)
            .output()
            .unwrap();
        let help = stdout(&output);
        assert!(output.status.success(), "{}", stderr(&output));
        assert!(help.contains("ISOL8_API_KEY"), "{command}: {help}");
        assert!(!help.contains(KEY), "{command}: {help}");
    }
}

#[test]
fn faults_of_the_caller_are_named_on_stderr() {
    let cases: [(&[&str], &str); 6] = [
        (&["frobnicate"], "frobnicate"),
        (
            &["run", "/no/such/file.py"],
            "File not found: /no/such/file.py",
        ),
        (
            &["run", "-e", "1", "--timeout", "0"],
            "--timeout: 0 is out of range",
        ),
        (
            &["run", "-e", "1", "--workdir", "/etc"],
            "Working directory must be inside /sandbox",
        ),
        (&["serve", "--port", "0"], "API key required"),
        (
            &["run", "-e", "1", "--config", "/no/config.toml"],
            "/no/config.toml",
        ),
    ];
    for (arguments, expected) in cases {
        let output = isol8(arguments);
        assert!(!output.status.success(), "{arguments:?}");
        assert!(
            stderr(&output).contains(expected),
            "{arguments:?}: {}",
            stderr(&output)
        );
    }
}

#[test]
fn an_ordinary_user_can_run_code_and_is_told_what_is_not_enforced() {
    let (uid, gid) = (65_534, 65_534);
    let state = tempfile::tempdir_in("/var/tmp").unwrap();
    std::os::unix::fs::chown(state.path(), Some(uid), Some(gid)).unwrap();
    // The executable may be in a directory that the user cannot enter.
    let executable = state.path().join("isol8");
    std::fs::copy(ISOL8, &executable).unwrap();
    let run = |arguments: &[&str], code: &str| {
        Command::new(&executable)
            .args(["run", "--backend", "native", "-r", "python", "-e", code])
            .args(arguments)
            .env_clear()
            .env("ISOL8_STATE_DIR", state.path().join("state"))
            .current_dir("/")
            .uid(uid)
            .gid(gid)
            .output()
            .unwrap()
    };
    let output = run(
        &[],
        "import os, socket\nprint(6 * 7, [n for _, n in socket.if_nameindex()], os.path.exists('/root'))\n\
         print(open('/proc/self/status').read().split('CapEff:')[1].split()[0])\n\
         try: os.kill(1, 9); print(os.readlink('/proc/1/fd/3'))\nexcept PermissionError: print('refused')",
    );
    assert_eq!(
        stdout(&output),
        "42 ['lo'] False\n0000000000000000\nrefused\n",
        "{}",
        stderr(&output)
    );
    assert!(stderr(&output).contains("memory, CPU and process limits are not enforced"));
    // The guest has the same user id.
    let output = run(
        &[],
        "import resource\nfor change in (lambda: resource.prlimit(1, resource.RLIMIT_NOFILE, (12, 12)),\n\
         \x20   lambda: open('/proc/1/oom_score_adj', 'w'), lambda: open('/proc/1/task/1/comm', 'w')):\n\
         \x20 try: change(); print('changed')\n\x20 except OSError as e: print(e.errno)",
    );
    // EPERM, and twice EROFS.
    assert_eq!(stdout(&output), "1\n30\n30\n", "{}", stderr(&output));
    // A limit that is requested explicitly is either enforced or refused.
    for limit in [["--memory", "64m"], ["--cpu", "1"], ["--pids-limit", "20"]] {
        let output = run(&limit, "print('ran')");
        let said = stderr(&output);
        assert_eq!(output.status.code(), Some(1), "{limit:?}: {said}");
        assert_eq!(stdout(&output), "");
        let refused = format!("{}: the native backend cannot enforce it", limit[0]);
        assert!(
            said.contains(&refused) && said.contains("systemd-run"),
            "{said}"
        );
    }
    let left = std::fs::read_dir(state.path().join("state/native"))
        .unwrap()
        .count();
    assert_eq!(left, 0);
}
