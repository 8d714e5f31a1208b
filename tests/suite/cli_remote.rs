//! The command line against a server, as scripts use it.

use std::fs;
use std::io::{Read as _, Write as _};
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;
use tempfile::TempDir;

use crate::harness::{ISOL8, KEY, Kind, Server, on_each_backend, python, state_directory};

on_each_backend!(
    a_run_prints_and_exits_as_one_here_does,
    options_files_and_packages_setups_and_secrets_are_passed,
    a_session_goes_on_between_runs,
    standard_input_is_live_and_ctrl_c_is_the_programs,
    ending_the_command_ends_the_run,
    a_result_is_printed_as_json,
    failures_exit_with_one_and_say_why,
    a_login_is_kept_and_used_and_forgotten,
    sessions_are_listed_and_deleted,
    files_and_directories_are_copied_both_ways,
    everything_is_cleaned_up,
    a_shell_is_at_this_terminal,
);

/// A user of the command line, with a home of its own.
struct User {
    home: TempDir,
    url: String,
}

impl User {
    fn of(server: &Server) -> Self {
        Self {
            home: state_directory(),
            url: format!("http://{}", server.address),
        }
    }

    /// A command without any key.
    fn keyless(&self, arguments: &[&str]) -> Command {
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
    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = self.keyless(arguments);
        command
            .args(["--host", &self.url])
            .env("ISOL8_API_KEY", KEY);
        command
    }

    fn isol8(&self, arguments: &[&str]) -> Output {
        self.command(arguments).output().unwrap()
    }

    /// What a command prints that is to succeed.
    fn prints(&self, arguments: &[&str]) -> String {
        succeeded(arguments, &self.isol8(arguments))
    }

    fn fed(&self, arguments: &[&str], input: &str) -> Output {
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

    fn path(&self, name: &str) -> String {
        self.home.path().join(name).to_str().unwrap().to_owned()
    }
}

fn succeeded(arguments: &[&str], output: &Output) -> String {
    assert!(output.status.success(), "{arguments:?}: {}", stderr(output));
    stdout(output)
}

fn stdout(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned()
}

fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

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
        stderr(&output).contains("memoryLimit"),
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
print('all', flush=True)
try: time.sleep(60)
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
        "API key is not valid",
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

async fn a_login_is_kept_and_used_and_forgotten(server: Server) {
    let user = User::of(&server);
    let kept = user.path(".isol8/login.json");
    let bad = user
        .keyless(&["login", "--host", &user.url, "--key", "wrong"])
        .output()
        .unwrap();
    assert_eq!(bad.status.code(), Some(1));
    assert!(!Path::new(&kept).exists());

    user.prints(&["login"]);
    assert_eq!(
        fs::metadata(&kept).unwrap().permissions().mode() & 0o777,
        0o600
    );
    let arguments = [
        "run",
        "-e",
        "print(1)",
        "--session-id",
        "s",
        "--host",
        &user.url,
    ];
    let output = user.keyless(&arguments).output().unwrap();
    assert_eq!(succeeded(&arguments, &output), "1\n");
    let listed = user.keyless(&["sessions"]).output().unwrap();
    assert!(stdout(&listed).contains("\ns "), "{}", stdout(&listed));
    let here = user.keyless(&["sessions", "--local"]).output().unwrap();
    assert_eq!(stdout(&here), "");
    // The key is its own server's.
    let other = ["sessions", "--host", "http://127.0.0.1:1"];
    let output = user.keyless(&other).output().unwrap();
    assert!(
        stderr(&output).contains("API key required"),
        "{}",
        stderr(&output)
    );

    assert!(user.keyless(&["logout"]).status().unwrap().success());
    assert!(!Path::new(&kept).exists());
    let output = user.keyless(&arguments).output().unwrap();
    assert!(
        stderr(&output).contains("API key required"),
        "{}",
        stderr(&output)
    );
    server.stop();
}

async fn sessions_are_listed_and_deleted(server: Server) {
    let user = User::of(&server);
    for id in ["one", "two"] {
        server.session(id).execute(python("x = 1")).await.unwrap();
    }
    let table = user.prints(&["sessions"]);
    assert!(table.starts_with("ID "), "{table}");
    assert_eq!(table.lines().count(), 3, "{table}");
    assert_eq!(
        user.prints(&["session", "delete", "one"]),
        "one is deleted\n"
    );
    let listed: Value = serde_json::from_str(&user.prints(&["sessions", "--json"])).unwrap();
    assert_eq!(listed["sessions"].as_array().unwrap().len(), 1);
    assert_eq!(listed["sessions"][0]["id"], "two");
    server.stop();
}

async fn files_and_directories_are_copied_both_ways(server: Server) {
    let user = User::of(&server);
    server.session("s").execute(python("x = 1")).await.unwrap();
    fs::create_dir_all(user.path("tree/deep/er")).unwrap();
    let big: Vec<u8> = (0..3_000_000_u32).map(|n| (n % 251) as u8).collect();
    fs::write(user.path("tree/big"), &big).unwrap();
    fs::write(user.path("tree/deep/er/ü n.txt"), "text").unwrap();
    user.prints(&["cp", "tree", "s:/sandbox/all"]);
    user.prints(&["cp", "tree", "s:/sandbox/all/"]);
    let listing = user.prints(&["ls", "s:all"]);
    assert!(
        listing.contains("deep/") && listing.contains("tree/") && listing.contains("3000000"),
        "{listing}"
    );
    let json: Value =
        serde_json::from_str(&user.prints(&["ls", "/sandbox", "--session-id", "s", "--json"]))
            .unwrap();
    assert_eq!(json["entries"][0]["name"], "all");

    user.prints(&["cp", "s:all/tree", "back"]);
    assert_eq!(fs::read(user.path("back/big")).unwrap(), big);
    assert_eq!(
        fs::read_to_string(user.path("back/deep/er/ü n.txt")).unwrap(),
        "text"
    );
    user.prints(&["cp", "s:all/big", "."]);
    assert_eq!(fs::read(user.path("big")).unwrap(), big);
    server.session("t").execute(python("x = 1")).await.unwrap();
    user.prints(&["cp", "s:all/deep", "t:/tmp/there"]);
    assert_eq!(user.prints(&["cp", "t:/tmp/there/er/ü n.txt", "-"]), "text");
    let output = user.fed(&["cp", "-", "t:/sandbox/typed"], "typed");
    assert!(output.status.success(), "{}", stderr(&output));
    assert_eq!(user.prints(&["cp", "t:typed", "-"]), "typed");

    let make =
        "import os; os.mkdir('/sandbox/odd'); os.symlink('/etc/passwd', '/sandbox/odd/link')";
    server.session("t").execute(python(make)).await.unwrap();
    let output = user.isol8(&["cp", "t:odd", "odd"]);
    assert_eq!(output.status.code(), Some(1));
    assert!(
        stderr(&output).contains("left out: /sandbox/odd/link: a link"),
        "{}",
        stderr(&output)
    );
    assert_eq!(fs::read_dir(user.path("odd")).unwrap().count(), 0);
    let output = user.isol8(&["cp", "t:/sandbox/none", "none"]);
    assert_eq!(output.status.code(), Some(1));
    assert!(!Path::new(&user.path("none")).exists());
    let output = user.isol8(&["cp", "one", "other"]);
    assert!(
        stderr(&output).contains("SESSION:PATH"),
        "{}",
        stderr(&output)
    );
    server.stop();
}

async fn everything_is_cleaned_up(server: Server) {
    let user = User::of(&server);
    server.session("s").execute(python("x = 1")).await.unwrap();
    let output = user.isol8(&["cleanup"]);
    assert_eq!(output.status.code(), Some(1));
    assert!(stderr(&output).contains("--force"), "{}", stderr(&output));
    assert_eq!(server.client().sessions().await.unwrap().len(), 1);
    let printed = user.prints(&["cleanup", "--force"]);
    assert!(printed.starts_with("sessions: 1 removed\n"), "{printed}");
    assert!(server.client().sessions().await.unwrap().is_empty());
    server.stop();
}

async fn a_shell_is_at_this_terminal(server: Server) {
    let user = User::of(&server);
    let write = "open('/sandbox/made', 'w').write('here')";
    server.session("s").execute(python(write)).await.unwrap();
    let shell = format!("{ISOL8} shell --host {} --session-id s", user.url);
    // Runs it at a terminal of its own, and ends as it does.
    let mut script = Command::new("script");
    script
        .args(["--quiet", "--return", "--command", &shell, "/dev/null"])
        .env("HOME", user.home.path())
        .env("ISOL8_API_KEY", KEY)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped());
    let mut script = script.spawn().unwrap();
    let mut stdin = script.stdin.take().unwrap();
    stdin
        .write_all(b"tty; echo $(cat made) $((6 * 7)); exit 5\n")
        .unwrap();
    let output = script.wait_with_output().unwrap();
    drop(stdin);
    let shown = stdout(&output);
    assert!(
        shown.contains("/dev/pts/") && shown.contains("here 42"),
        "{shown}"
    );
    assert_eq!(output.status.code(), Some(5), "{shown}");
    server.stop();
}

/// The sessions of `--persistent`, without a server.
fn local_sessions(kind: Kind) {
    let user = User {
        home: state_directory(),
        url: String::new(),
    };
    let isol8 = |arguments: &[&str]| {
        let backend = ["--backend", kind.name()];
        let arguments = [arguments, &backend].concat();
        let output = user.keyless(&arguments).output().unwrap();
        succeeded(&arguments, &output)
    };
    isol8(&[
        "run",
        "--persistent",
        "-e",
        "open('/sandbox/made', 'w').write('here')",
    ]);
    assert!(isol8(&["sessions"]).contains("\npython "));
    assert!(isol8(&["ls", "python:/sandbox"]).contains("made"));
    assert_eq!(isol8(&["cp", "python:made", "-"]), "here");
    fs::write(user.path("given"), "given").unwrap();
    isol8(&["cp", "given", "python:/sandbox/"]);
    let code = "print(open('/sandbox/given').read())";
    assert_eq!(isol8(&["run", "--persistent", "-e", code]), "given\n");
    isol8(&["session", "delete", "python"]);
    assert_eq!(isol8(&["sessions"]), "");
    isol8(&["run", "--persistent", "-e", "x = 1"]);
    assert!(isol8(&["cleanup", "--force"]).starts_with("sessions: 1 removed\n"));
    assert_eq!(isol8(&["sessions", "--json"]), "{\"sessions\":[]}\n");
}

#[test]
fn sessions_of_this_host_are_reached_by_the_same_commands_on_native() {
    local_sessions(Kind::Native);
}

#[test]
fn sessions_of_this_host_are_reached_by_the_same_commands_on_docker() {
    local_sessions(Kind::Docker);
}
