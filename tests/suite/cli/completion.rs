//! The completions of a shell: values, files and sessions, through the script of `isol8 completions`.

use std::collections::BTreeSet;
use std::fs;
use std::process::Command;

use crate::cli_remote::user::{User, stderr, succeeded};
use crate::harness::{ISOL8, KEY, Kind, Server, python};

/// Has bash complete the last of these words, as it does for a person who types TAB.
fn completed(user: &User, words: &[&str]) -> BTreeSet<String> {
    let script = r#"
source <("$0" completions bash)
COMP_WORDS=(isol8 "$@")
COMP_CWORD=$#
COMP_TYPE=9
_clap_complete_isol8 isol8 "${@: -1}"
printf '%s\n' "${COMPREPLY[@]}""#;
    let mut bash = Command::new("bash");
    bash.args(["-c", script, ISOL8]).args(words);
    bash.env("HOME", user.home.path())
        .env("ISOL8_STATE_DIR", user.home.path().join("state"))
        .env_remove("ISOL8_API_KEY")
        .current_dir(user.home.path());
    let output = bash.output().unwrap();
    assert_eq!(stderr(&output), "", "{words:?}");
    let lines = succeeded(words, &output);
    lines.lines().map(|line| line.trim().to_owned()).collect()
}

fn expects(user: &User, words: &[&str], expected: &[&str]) {
    let found = completed(user, words);
    for word in expected {
        assert!(found.contains(*word), "{words:?}: no {word} in {found:?}");
    }
}

#[test]
fn commands_flags_values_files_and_sessions_of_this_host_are_completed() {
    let user = User::here();
    fs::write(user.path("script.py"), "").unwrap();
    fs::create_dir(user.path("project")).unwrap();
    let run = ["run", "--persistent", "-r", "bash", "-e", "true"];
    let run = user
        .keyless(&run)
        .env("ISOL8_BACKEND", Kind::Native.name())
        .output();
    succeeded(&["run"], &run.unwrap());
    let all = ["python", "node", "bun", "deno", "bash"];
    for (words, expected) in [
        (&["ses"][..], &["sessions", "session"][..]),
        (&["run", "--pers"], &["--persistent", "--persist"]),
        (&["run", "-r", ""], &all),
        (&["shell", "--runtime", "p"], &["python"]),
        (&["build", "--base", ""], &all),
        (&["run", "--net", ""], &["none", "filtered", "host"]),
        (&["serve", "--backend", ""], &["auto", "docker", "native"]),
        (&["run", "scr"], &["script.py"]),
        (&["run", "--files", "pro"], &["project/"]),
        (&["cp", "scr"], &["script.py"]),
        (&["completions", ""], &["bash", "zsh", "fish"]),
        (&["session", "delete", ""], &["bash"]),
        (&["shell", "--session-id", "b"], &["bash"]),
        (&["ls", "b"], &["bash:/sandbox/"]),
        (&["cp", "b"], &["bash:/sandbox/"]),
    ] {
        expects(&user, words, expected);
    }
    let cleanup = ["cleanup", "--force", "--backend", "native"];
    succeeded(&cleanup, &user.keyless(&cleanup).output().unwrap());
}

#[tokio::test]
async fn sessions_of_the_logins_server_are_completed_and_a_server_that_is_down_is_no_fault() {
    let server = Server::start(Kind::Native);
    let user = User::of(&server);
    let session = server.session("on-the-server");
    session.execute(python("x = 1")).await.unwrap();
    let login = ["login", "--host", &user.url, "--key", KEY];
    succeeded(&login, &user.keyless(&login).output().unwrap());
    expects(&user, &["session", "delete", "on"], &["on-the-server"]);
    server.stop();
    assert_eq!(
        completed(&user, &["session", "delete", "on"]),
        BTreeSet::from([String::new()])
    );
}

#[test]
fn every_shell_has_a_script() {
    let user = User::here();
    for shell in ["bash", "elvish", "fish", "powershell", "zsh"] {
        let arguments = ["completions", shell];
        let script = succeeded(&arguments, &user.keyless(&arguments).output().unwrap());
        assert!(script.contains("ISOL8_COMPLETE"), "{shell}: {script}");
    }
}
