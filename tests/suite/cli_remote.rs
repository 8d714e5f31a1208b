//! The command line against a server, as scripts use it.

mod sessions;
pub(crate) mod user;

use std::fs;
use std::io::{Read as _, Write as _};
use std::process::{Child, Command, Stdio};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;

use crate::harness::{ISOL8, KEY, Server, on_each_backend, python};
use user::{User, stderr, stdout};

on_each_backend!(
    a_run_prints_and_exits_as_one_here_does,
    options_files_and_packages_setups_and_secrets_are_passed,
    a_session_goes_on_between_runs,
    standard_input_is_live_and_ctrl_c_is_the_programs,
    ending_the_command_ends_the_run,
    a_result_is_printed_as_json,
    failures_exit_with_one_and_say_why,
    a_shell_is_at_this_terminal,
);

async fn a_run_prints_and_exits_as_one_here_does(server: Server) {
    let user = User::of(&server);
    let code = "import sys; print(6 * 7); print('e', file=sys.stderr); sys.exit(3)";
    for more in [&[][..], &["--no-stream"], &["--log-network"]] {
        let arguments = [&["run", "-e", code][..], more].concat();
        let output = user.isol8(&arguments);
        assert_eq!(stdout(&output), "42\n", "{more:?}: {}", stderr(&output));
        assert_eq!(stderr(&output), "e\n", "{more:?}");
        assert_eq!(output.status.code(), Some(3));
    }
    let output = user.isol8(&["run", "-r", "bash", "-e", "sleep 60", "--timeout", "300"]);
    assert_eq!(output.status.code(), Some(137), "{}", stderr(&output));
    assert!(stderr(&output).contains("EXECUTION TIMED OUT"));
    server.stop();
}

async fn options_files_and_packages_setups_and_secrets_are_passed(server: Server) {
    let user = User::of(&server);
    fs::create_dir(user.path("project")).unwrap();
    fs::write(user.path("project/data.txt"), "from here").unwrap();
    let code = "import os; print(open('/sandbox/data.txt').read(), open('/sandbox/made').read(), os.environ['TOKEN'], os.getcwd())";
    let project = user.path("project");
    let printed = user.prints(&[
        "run",
        "-e",
        code,
        "--files",
        &project,
        "--setup",
        "mkdir d; printf by-setup > made",
        "--secret",
        "TOKEN=hunter2",
        "--workdir",
        "d",
        "--memory",
        "256m",
        "--out",
        &user.path("out"),
    ]);
    assert_eq!(printed, "from here by-setup *** /sandbox/d\n");
    assert_eq!(fs::read_to_string(user.path("out")).unwrap(), printed);
    let output = user.isol8(&["run", "-e", "print('x' * 5000)", "--max-output", "100"]);
    assert!(stderr(&output).contains("truncated"), "{}", stderr(&output));
    let output = user.isol8(&["run", "-e", "1", "--memory", "99g"]);
    assert_eq!(output.status.code(), Some(1));
    assert!(
        stderr(&output).contains("--memory: 99g is out of range"),
        "{}",
        stderr(&output)
    );
    server.stop();
}

async fn a_session_goes_on_between_runs(server: Server) {
    let user = User::of(&server);
    user.prints(&["run", "-e", "x = 10", "--session-id", "demo"]);
    let printed = user.prints(&["run", "-e", "print(x + 5)", "--session-id", "demo"]);
    assert_eq!(printed, "15\n");
    let output = user
        .keyless(&["run", "-e", "1", "--session-id", "demo"])
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(1));
    assert!(
        stderr(&output).contains("--session-id needs --host"),
        "{}",
        stderr(&output)
    );
    server.stop();
}

/// Reads what the child prints up to this.
fn wait_for(child: &mut Child, expected: &str) {
    let mut seen = String::new();
    let stdout = child.stdout.as_mut().unwrap();
    let mut byte = [0];
    while !seen.ends_with(expected) {
        let count = stdout.read(&mut byte).unwrap();
        assert_eq!(count, 1, "ended after {seen:?}");
        seen.push(char::from(byte[0]));
    }
}

async fn standard_input_is_live_and_ctrl_c_is_the_programs(server: Server) {
    let user = User::of(&server);
    let code = "import sys, time
for line in sys.stdin: print(line.upper(), end='', flush=True)
try: print('all', flush=True); time.sleep(60)
except KeyboardInterrupt: print('interrupted'); sys.exit(7)";
    let mut command = user
        .command(&["run", "-e", code])
        .stdin(Stdio::piped())
        .spawn()
        .unwrap();
    let mut stdin = command.stdin.take().unwrap();
    for line in ["one\n", "two\n"] {
        stdin.write_all(line.as_bytes()).unwrap();
        wait_for(&mut command, &line.to_uppercase());
    }
    drop(stdin);
    wait_for(&mut command, "all\n");
    let pid = Pid::from_raw(i32::try_from(command.id()).unwrap());
    kill(pid, Signal::SIGINT).unwrap();
    let output = command.wait_with_output().unwrap();
    assert_eq!(stdout(&output), "interrupted\n", "{}", stderr(&output));
    assert_eq!(output.status.code(), Some(7));
    server.stop();
}

async fn ending_the_command_ends_the_run(server: Server) {
    let user = User::of(&server);
    let code = "import time; print('ready', flush=True); time.sleep(50)";
    let arguments = ["run", "-e", code, "--session-id", "demo"];
    let mut command = user.command(&arguments).spawn().unwrap();
    wait_for(&mut command, "ready\n");
    let pid = Pid::from_raw(i32::try_from(command.id()).unwrap());
    kill(pid, Signal::SIGTERM).unwrap();
    assert_eq!(command.wait().unwrap().code(), Some(143));
    // Its turn comes, because the first is over.
    let result = server.session("demo").execute(python("print(1)")).await;
    assert_eq!(result.unwrap().stdout, "1");
    server.stop();
}

async fn a_result_is_printed_as_json(server: Server) {
    let user = User::of(&server);
    let output = user.fed(
        &["run", "-e", "print(input()); exit(4)", "--json"],
        "typed\n",
    );
    assert_eq!(output.status.code(), Some(4), "{}", stderr(&output));
    let result: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(
        (&result["stdout"], &result["exitCode"]),
        (&"typed".into(), &4.into())
    );
    assert!(result["executionId"].is_string());
    server.stop();
}

async fn failures_exit_with_one_and_say_why(server: Server) {
    let user = User::of(&server);
    let fails = |mut command: Command, expected: &str| {
        let output = command.output().unwrap();
        assert_eq!(
            output.status.code(),
            Some(1),
            "{expected}: {}",
            stderr(&output)
        );
        assert!(
            stderr(&output).contains(expected),
            "{expected}: {}",
            stderr(&output)
        );
        assert!(!stderr(&output).contains("hunter2"), "{}", stderr(&output));
    };
    let host = ["run", "-e", "print(1)", "--host", &user.url];
    fails(user.keyless(&host), "API key required");
    fails(
        user.keyless(&[&host[..], &["--key", "hunter2"]].concat()),
        "Invalid API key",
    );
    let nobody = [
        "run",
        "-e",
        "1",
        "--key",
        "hunter2",
        "--host",
        "http://127.0.0.1:1",
    ];
    fails(user.keyless(&nobody), "server cannot be reached");
    fails(
        user.command(&["run", "-e", "1", "--setup", "exit 9"]),
        "Setup script failed",
    );
    fails(
        user.command(&["run", "-e", "1", "--workdir", "/etc"]),
        "Working directory must be inside /sandbox",
    );
    fails(
        user.command(&["run", "/no/such.py"]),
        "File not found: /no/such.py",
    );
    fails(
        user.command(&["session", "delete", "none"]),
        "Session not found",
    );
    server.stop();
}

async fn a_shell_is_at_this_terminal(server: Server) {
    let user = User::of(&server);
    let write = "open('/sandbox/made', 'w').write('here')";
    server.session("s").execute(python(write)).await.unwrap();
    let shell = format!("{ISOL8} shell --host {} --session-id s", user.url);
    let typed = "tty; echo $(cat made) $((6 * 7)); exit 5\n";
    let output = user.at_a_terminal(&shell, &[("ISOL8_API_KEY", KEY)], typed);
    let shown = stdout(&output);
    assert!(
        shown.contains("/dev/pts/") && shown.contains("here 42"),
        "{shown}"
    );
    assert_eq!(output.status.code(), Some(5), "{shown}");
    server.stop();
}
