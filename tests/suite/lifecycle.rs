//! Traces that are left when a server ends, however it ends.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};

use crate::harness::{Kind, Server, eventually, on_each_backend, python, traces, until};

on_each_backend!(
    two_hundred_requests_and_sigterm_leave_nothing,
    a_restart_after_sigkill_removes_what_was_left,
    a_client_that_goes_away_ends_its_run,
    a_run_under_way_at_sigterm_is_answered,
    sandboxes_that_die_while_they_wait_are_replaced,
);

/// A restarted server must have cleaned up within this time.
const SWEPT_WITHIN: Duration = Duration::from_secs(10);

async fn two_hundred_requests_and_sigterm_leave_nothing(server: Server) {
    server
        .session("kept")
        .execute(python("x = 1"))
        .await
        .unwrap();
    let clients = (0..4).map(|_| async {
        for _ in 0..50 {
            assert_eq!(server.python("print(6 * 7)").await.stdout, "42");
        }
    });
    futures::future::join_all(clients).await;
    server.stop();
}

async fn a_restart_after_sigkill_removes_what_was_left(server: Server) {
    let kind = server.kind;
    for _ in 0..4 {
        server.python("1").await;
    }
    let before = server.traces();
    assert!(!before.is_empty());
    let state = server.kill();

    let restarted = Instant::now();
    let server = Server::start_in(kind, state, "");
    until("what was left is removed", || {
        server.traces().is_disjoint(&before)
    });
    assert!(
        restarted.elapsed() < SWEPT_WITHIN,
        "{:?}",
        restarted.elapsed()
    );
    assert_eq!(server.python("print(6 * 7)").await.stdout, "42");
    server.stop();
}

async fn a_client_that_goes_away_ends_its_run(server: Server) {
    let session = server.session("left");
    session
        .execute(python("open('/sandbox/ticks', 'w').close()"))
        .await
        .unwrap();
    let endless = python(
        "import time\nwhile True:\n  open('/sandbox/ticks', 'a').write('.')\n  \
         open('/sandbox/started', 'w').close()\n  time.sleep(0.01)",
    );
    let client = server.session("left");
    let run = tokio::spawn(async move { client.execute(endless).await });
    server.until_file("/sandbox/started").await;
    assert!(!run.is_finished(), "the run ended by itself");
    run.abort();
    assert!(run.await.unwrap_err().is_cancelled());
    // A session runs one request at a time: an answer shows that the run was ended.
    let asked = Instant::now();
    let result = session.execute(python(
        "import os; print(os.path.getsize('/sandbox/ticks') > 0)",
    ));
    assert_eq!(result.await.unwrap().stdout, "True");
    assert!(
        asked.elapsed() < Duration::from_secs(10),
        "{:?}",
        asked.elapsed()
    );
    server.stop();
}

async fn a_run_under_way_at_sigterm_is_answered(server: Server) {
    let session = server.session("last");
    let code = "import time\nopen('/sandbox/started', 'w').close()\ntime.sleep(1)\nprint('done')";
    let run = tokio::spawn(async move { session.execute(python(code)).await });
    server.until_file("/sandbox/started").await;
    tokio::task::spawn_blocking(|| server.stop()).await.unwrap();
    assert_eq!(run.await.unwrap().unwrap().stdout, "done");
}

async fn sandboxes_that_die_while_they_wait_are_replaced(server: Server) {
    server.python("1").await;
    let dead = server.sandboxes();
    assert!(!dead.is_empty());
    server.kill_sandboxes();
    // The kernel tells the server a moment later. A run that starts before is lost with its sandbox.
    eventually("the dead sandboxes are removed", || {
        server.sandboxes().is_disjoint(&dead)
    })
    .await;
    for _ in 0..4 {
        assert_eq!(server.python("print(6 * 7)").await.stdout, "42");
    }
    server.stop();
}

/// The sandboxes of a few runs under a strategy.
async fn sandboxes_used(strategy: &str) -> BTreeSet<String> {
    let server = Server::configured(Kind::Native, &format!("poolStrategy = {strategy:?}"));
    let mut used = BTreeSet::new();
    for _ in 0..8 {
        used.insert(server.python("print(1)").await.container_id);
    }
    server.stop();
    used
}

#[tokio::test]
async fn a_secure_pool_uses_no_sandbox_twice_and_a_fast_one_does() {
    assert_eq!(sandboxes_used("secure").await.len(), 8);
    assert!(sandboxes_used("fast").await.len() < 8);
}

#[tokio::test]
async fn two_servers_on_one_state_directory_leave_each_other_alone() {
    let first = Server::start(Kind::Native);
    first
        .session("kept")
        .execute(python("x = 41"))
        .await
        .unwrap();
    let state = tempfile::TempDir::new().unwrap();
    // A link, so that each test owns what it removes.
    let shared = state.path().join("shared");
    std::os::unix::fs::symlink(first.state(), &shared).unwrap();
    let second = std::process::Command::new(crate::harness::ISOL8)
        .args([
            "run",
            "--backend",
            "native",
            "-e",
            "print(6 * 7)",
            "-r",
            "python",
        ])
        .env("ISOL8_STATE_DIR", &shared)
        .output()
        .unwrap();
    assert_eq!(String::from_utf8_lossy(&second.stdout), "42\n");
    let kept = first
        .session("kept")
        .execute(python("print(x + 1)"))
        .await
        .unwrap();
    assert_eq!(kept.stdout, "42");
    first.stop();
}

#[tokio::test]
async fn a_killed_native_server_is_cleaned_up_after_at_once() {
    let server = Server::start(Kind::Native);
    server.python("1").await;
    let state = server.kill();
    until("the spawner has removed everything", || {
        traces(Kind::Native, state.path()) == BTreeSet::new()
    });
}

#[tokio::test]
async fn a_killed_native_server_and_spawner_are_cleaned_up_after_by_the_next_start() {
    let server = Server::start(Kind::Native);
    server.python("1").await;
    let before = server.traces();
    let spawner = server.spawner();
    kill(spawner, Signal::SIGSTOP).unwrap();
    let state = server.kill();
    kill(spawner, Signal::SIGKILL).unwrap();
    assert!(!traces(Kind::Native, state.path()).is_empty());

    let server = Server::start_in(Kind::Native, state, "");
    until("what was left is removed", || {
        server.traces().is_disjoint(&before)
    });
    server.stop();
}

#[tokio::test]
async fn a_spawner_that_dies_is_replaced_and_its_sandboxes_are_still_removed() {
    let server = Server::start(Kind::Native);
    let session = server.session("kept");
    session.execute(python("x = 41")).await.unwrap();
    kill(server.spawner(), Signal::SIGKILL).unwrap();
    for _ in 0..4 {
        let result = server.client().execute(python("print(6 * 7)")).await;
        // The request that finds the spawner dead may get an error.
        if let Ok(result) = result {
            assert_eq!(result.stdout, "42");
        }
    }
    assert_eq!(server.python("print(6 * 7)").await.stdout, "42");
    assert_eq!(
        session
            .execute(python("print(x + 1)"))
            .await
            .unwrap()
            .stdout,
        "42"
    );
    server.stop();
}

#[tokio::test]
async fn the_spawner_keeps_its_lock_while_it_makes_sandboxes() {
    let server = Server::start(Kind::Native);
    server.session("one").execute(python("1")).await.unwrap();
    server.session("two").execute(python("1")).await.unwrap();
    let locks = std::fs::read_to_string("/proc/locks").unwrap();
    let spawner = server.spawner().to_string();
    let held = locks
        .lines()
        .any(|line| line.contains("POSIX") && line.split_whitespace().any(|word| word == spawner));
    assert!(held, "{spawner} holds none of {locks}");
    server.stop();
}
