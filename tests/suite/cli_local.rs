//! The command line without a server: what stays between commands, files, signals and shells.

use std::collections::BTreeSet;
use std::fs;
use std::io::Read as _;
use std::os::unix::process::ExitStatusExt as _;
use std::process::{Child, Command, Output};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;

use crate::cli_remote::user::{User, stderr, stdout, succeeded};
use crate::harness::{ISOL8, Kind, traces};

const KINDS: [Kind; 2] = [Kind::Native, Kind::Docker];

/// A command on this host, with this backend.
fn here(user: &User, kind: Kind, arguments: &[&str]) -> Command {
    let mut command = user.keyless(arguments);
    command.env("ISOL8_BACKEND", kind.name());
    command
}

fn output(user: &User, kind: Kind, arguments: &[&str]) -> Output {
    here(user, kind, arguments).output().unwrap()
}

fn prints(user: &User, kind: Kind, arguments: &[&str]) -> String {
    succeeded(arguments, &output(user, kind, arguments))
}

/// Expects that no sandbox is left.
fn nothing_is_left(user: &User) {
    let state = user.home.path().join("state");
    for kind in KINDS {
        assert_eq!(traces(kind, &state), BTreeSet::new());
    }
}

fn wait_for(command: &mut Child, expected: &str) {
    let stdout = command.stdout.as_mut().unwrap();
    let mut seen = vec![0; expected.len()];
    stdout.read_exact(&mut seen).unwrap();
    assert_eq!(String::from_utf8_lossy(&seen), expected);
}

fn pid(command: &Child) -> Pid {
    Pid::from_raw(i32::try_from(command.id()).unwrap())
}

#[test]
fn a_persistent_session_goes_on_in_the_next_command_until_it_is_deleted() {
    for kind in KINDS {
        let user = User::here();
        let run = |code| prints(&user, kind, &["run", "--persistent", "-e", code]);
        assert_eq!(run("x = 10; open('kept', 'w').write('file')"), "");
        assert_eq!(run("print(x + 5)"), "15\n");
        let shown = prints(
            &user,
            kind,
            &["run", "--persistent", "-r", "bash", "-e", "y=1; ls"],
        );
        assert_eq!(shown, "", "each runtime has a session of its own");
        let listed = prints(&user, kind, &["sessions", "--json"]);
        let listed: Value = serde_json::from_str(&listed).unwrap();
        let ids = listed["sessions"]
            .as_array()
            .unwrap()
            .iter()
            .map(|one| &one["id"]);
        assert_eq!(ids.collect::<Vec<_>>(), ["bash", "python"]);
        assert_eq!(prints(&user, kind, &["cp", "python:kept", "-"]), "file");
        assert!(prints(&user, kind, &["ls", "python:/sandbox"]).contains("kept"));

        prints(&user, kind, &["session", "delete", "python"]);
        let gone = output(&user, kind, &["run", "--persistent", "-e", "print(x)"]);
        assert!(stderr(&gone).contains("NameError"), "{}", stderr(&gone));
        prints(&user, kind, &["cleanup", "--force"]);
        assert!(!prints(&user, kind, &["sessions"]).contains("python"));
        nothing_is_left(&user);
    }
}

#[test]
fn commands_for_one_session_go_one_after_the_other() {
    let user = User::here();
    let kind = Kind::Native;
    prints(&user, kind, &["run", "--persistent", "-e", "n = 0"]);
    let code = "import time; m = n; time.sleep(0.05); n = m + 1";
    let commands: Vec<Child> = (0..4)
        .map(|_| {
            here(&user, kind, &["run", "--persistent", "-e", code])
                .spawn()
                .unwrap()
        })
        .collect();
    for command in commands {
        let output = command.wait_with_output().unwrap();
        assert!(output.status.success(), "{}", stderr(&output));
    }
    assert_eq!(
        prints(&user, kind, &["run", "--persistent", "-e", "print(n)"]),
        "4\n"
    );
    prints(&user, kind, &["cleanup", "--force"]);
    nothing_is_left(&user);
}

#[test]
fn a_sandbox_that_is_left_up_is_told_of_and_can_be_entered() {
    for kind in KINDS {
        let user = User::here();
        let kept = output(
            &user,
            kind,
            &["run", "--persist", "-e", "open('kept', 'w').write('x')"],
        );
        let said = stderr(&kept);
        assert!(kept.status.success(), "{said}");
        let enter = match kind {
            Kind::Native => "nsenter --target",
            Kind::Docker => "docker exec -it",
        };
        assert!(said.contains(enter), "{said}");
        let id = said.split("isol8 session delete ").nth(1).unwrap();
        let id = id.split_whitespace().next().unwrap();
        assert!(prints(&user, kind, &["ls", &format!("{id}:/sandbox")]).contains("kept"));
        prints(&user, kind, &["session", "delete", id]);
        nothing_is_left(&user);
    }
}

#[test]
fn output_is_live_and_interrupts_are_the_programs_until_the_second() {
    for kind in KINDS {
        let user = User::here();
        let code = "import time
try: print('on', flush=True); time.sleep(60)
except KeyboardInterrupt:
  print('interrupted', flush=True)
  while True:
    try: time.sleep(60)
    except KeyboardInterrupt: pass";
        let mut command = here(&user, kind, &["run", "-e", code]).spawn().unwrap();
        wait_for(&mut command, "on\n");
        kill(pid(&command), Signal::SIGINT).unwrap();
        wait_for(&mut command, "interrupted\n");
        kill(pid(&command), Signal::SIGINT).unwrap();
        let output = command.wait_with_output().unwrap();
        assert_eq!(output.status.code(), Some(130), "{}", stderr(&output));

        let mut command = here(&user, kind, &["run", "-e", code]).spawn().unwrap();
        wait_for(&mut command, "on\n");
        kill(pid(&command), Signal::SIGTERM).unwrap();
        let output = command.wait_with_output().unwrap();
        assert_eq!(output.status.signal(), None);
        assert_eq!(output.status.code(), Some(143), "{}", stderr(&output));
        nothing_is_left(&user);
    }
}

#[test]
fn files_go_in_and_standard_output_goes_to_a_file_too() {
    for kind in KINDS {
        let user = User::here();
        fs::create_dir_all(user.path("project/deep")).unwrap();
        fs::write(user.path("project/deep/data.txt"), "from here").unwrap();
        let code = "import sys; print(open('/sandbox/deep/data.txt').read(), sys.stdin.read())";
        let out = user.path("out.txt");
        let arguments = [
            "run", "-e", code, "--files", "project", "--out", &out, "--stdin", "typed",
        ];
        let printed = prints(&user, kind, &arguments);
        assert_eq!(printed, "from here typed\n");
        assert_eq!(fs::read_to_string(&out).unwrap(), printed);

        let json = prints(&user, kind, &["run", "-e", "print(1)", "--json"]);
        let result: Value = serde_json::from_str(&json).unwrap();
        assert_eq!(
            (&result["stdout"], &result["exitCode"]),
            (&"1".into(), &0.into())
        );
        let cut = output(
            &user,
            kind,
            &["run", "-e", "print('x' * 5000)", "--max-output", "100"],
        );
        assert!(stderr(&cut).contains("truncated"), "{}", stderr(&cut));
        nothing_is_left(&user);
    }
}

#[test]
fn javascript_may_import_or_require_and_nothing_is_warned_of() {
    let user = User::here();
    for code in [
        "import { sep } from 'node:path'; console.log(sep)",
        "const { sep } = require('path'); console.log(sep)",
    ] {
        fs::write(user.path("main.js"), code).unwrap();
        let run = output(&user, Kind::Native, &["run", "main.js"]);
        assert_eq!(
            (stdout(&run), stderr(&run)),
            ("/\n".to_owned(), String::new())
        );
    }
}

#[test]
fn a_shell_is_at_this_terminal_and_in_a_persistent_session() {
    for kind in KINDS {
        let user = User::here();
        prints(
            &user,
            kind,
            &[
                "run",
                "--persistent",
                "-e",
                "open('made', 'w').write('here')",
            ],
        );
        let shell = format!("{ISOL8} shell --persistent");
        let typed = "tty; echo $(cat made) $((6 * 7)); exit 5\n";
        let output = user.at_a_terminal(&shell, &[("ISOL8_BACKEND", kind.name())], typed);
        let shown = stdout(&output);
        assert!(
            shown.contains("/dev/pts/") && shown.contains("here 42"),
            "{shown}"
        );
        assert_eq!(output.status.code(), Some(5), "{shown}");
        prints(&user, kind, &["cleanup", "--force"]);
        nothing_is_left(&user);
    }
}

#[test]
fn faults_exit_with_one_and_the_texts_that_scripts_know() {
    let user = User::here();
    for (arguments, expected) in [
        (&["run", "no-such.py"][..], "File not found: no-such.py"),
        (
            &["run", "-e", "1", "--workdir", "/etc"],
            "Working directory must be inside /sandbox",
        ),
        (
            &["run", "-e", "1", "--setup", "exit 3"],
            "Setup script failed",
        ),
        (
            &["run", "-e", "1", "--session-id", "s"],
            "--session-id needs --host",
        ),
        (
            &["run", "-e", "1", "--host", "http://127.0.0.1:1"],
            "API key required",
        ),
    ] {
        let failed = output(&user, Kind::Native, arguments);
        assert_eq!(failed.status.code(), Some(1), "{arguments:?}");
        assert!(
            stderr(&failed).contains(expected),
            "{arguments:?}: {}",
            stderr(&failed)
        );
    }
    let debugged = output(&user, Kind::Native, &["run", "-e", "print(1)", "--debug"]);
    assert!(
        stderr(&debugged).contains("[DEBUG]"),
        "{}",
        stderr(&debugged)
    );
    nothing_is_left(&user);
}
