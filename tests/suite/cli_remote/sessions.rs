//! Logins, and what there is beside runs: sessions and their files.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;

use serde_json::Value;

use super::user::{User, stderr, stdout, succeeded};
use crate::harness::{Kind, Server, on_each_backend, python, state_directory};

on_each_backend!(
    a_login_is_kept_and_used_and_forgotten,
    sessions_are_listed_and_deleted,
    files_and_directories_are_copied_both_ways,
    everything_is_cleaned_up,
);

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
