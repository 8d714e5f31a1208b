//! Sessions that outlive their server.

use std::collections::BTreeSet;
use std::time::Duration;

use isol8_client::{ClientError, ErrorCode, Options};
use nix::sys::signal::{Signal, kill};

use crate::harness::{Kind, Server, command, on_each_backend, python, traces, until};

on_each_backend!(
    fifty_sessions_outlive_a_killed_server,
    a_run_that_was_under_way_is_ended_and_reported_lost_once,
    a_deleted_session_does_not_come_back,
    sessions_are_kept_at_sigterm_where_the_configuration_says_so,
);

const SESSIONS: usize = 50;

fn name(number: usize) -> String {
    format!("session-{number}")
}

async fn fifty_sessions_outlive_a_killed_server(server: Server) {
    let kind = server.kind;
    let sessions = (0..SESSIONS).map(|number| {
        let session = server.session(&name(number));
        async move {
            let code = format!("x = {number}; open('/sandbox/file', 'w').write(str(x))");
            let result = session.execute(python(&code)).await.unwrap();
            assert_eq!(result.exit_code, 0, "{}", result.stderr);
        }
    });
    futures::future::join_all(sessions).await;
    let before = server.client().sessions().await.unwrap();
    // Also what is not a session's, and must not be kept.
    server.python("print(1)").await;

    let mut state = server.kill();
    for _ in 0..2 {
        let server = Server::start_in(kind, state, "");
        let after = server.client().sessions().await.unwrap();
        assert_eq!(after.len(), SESSIONS);
        for (before, after) in before.iter().zip(&after) {
            assert_eq!(before.id, after.id);
            assert_eq!(before.container_id, after.container_id);
            assert_eq!(before.created_at, after.created_at);
        }
        let checks = (0..SESSIONS).map(|number| {
            let session = server.session(&name(number));
            async move {
                let code = "print(x, open('/sandbox/file').read())";
                let result = session.execute(python(code)).await.unwrap();
                assert_eq!(result.stdout, format!("{number} {number}"));
                assert!(!result.state_lost);
            }
        });
        futures::future::join_all(checks).await;
        assert_eq!(server.python("print(6 * 7)").await.stdout, "42");
        state = server.kill();
    }
    let server = Server::start_in(kind, state, "");
    // Their limits can still be changed, and their use be told.
    let options = Options {
        memory_limit: Some("300m".parse().unwrap()),
        ..Options::default()
    };
    let session = server.session(&name(7));
    let result = session.execute_with(python("print(x)"), options).await;
    assert_eq!(result.unwrap().stdout, "7");
    server.stop();
}

#[tokio::test]
async fn a_server_waits_for_the_spawner_of_the_one_before() {
    let server = Server::start(Kind::Native);
    server.session("s").execute(python("x = 41")).await.unwrap();
    let spawner = server.spawner();
    // As one that has much to remove: it does not listen yet when the next server looks for it.
    kill(spawner, Signal::SIGSTOP).unwrap();
    let state = server.kill();
    let going_on = std::thread::spawn(move || {
        std::thread::sleep(Duration::from_secs(1));
        kill(spawner, Signal::SIGCONT).unwrap();
    });
    let server = Server::start_in(Kind::Native, state, "");
    going_on.join().unwrap();
    // The spawner was not replaced.
    kill(spawner, None).unwrap();
    let result = server.session("s").execute(python("print(x + 1)")).await;
    assert_eq!(result.unwrap().stdout, "42");
    server.stop();
}

async fn a_run_that_was_under_way_is_ended_and_reported_lost_once(server: Server) {
    let kind = server.kind;
    for id in ["idle", "busy", "beside"] {
        let result = server.session(id).execute(python("x = 41")).await;
        result.unwrap();
    }
    let endless = "import time\nopen('/sandbox/busy', 'w').close()\ntime.sleep(600)";
    let busy = server.session("busy");
    let cut = tokio::spawn(async move { busy.execute(python(endless)).await });
    let beside = server.session("beside");
    let also_cut = tokio::spawn(async move {
        beside
            .execute(command("touch /sandbox/beside; sleep 600"))
            .await
    });
    server.until_file("/sandbox/busy").await;
    server.until_file("/sandbox/beside").await;
    let state = server.kill();
    assert!(cut.await.unwrap().is_err() && also_cut.await.unwrap().is_err());

    let server = Server::start_in(kind, state, "");
    let listed = server.client().sessions().await.unwrap();
    let listed: Vec<_> = listed
        .iter()
        .map(|session| session.id.to_string())
        .collect();
    assert_eq!(listed, ["idle"]);
    for id in ["busy", "beside"] {
        let session = server.session(id);
        let lost = session.execute(python("print(x)")).await.unwrap_err();
        match lost {
            ClientError::Api { status, code, .. } => {
                assert_eq!((status, code), (410, Some(ErrorCode::SessionLost)));
            }
            other => panic!("{id}: {other}"),
        }
        let anew = session.execute(python("print('x' in dir())")).await;
        assert_eq!(anew.unwrap().stdout, "False");
    }
    let kept = server.session("idle").execute(python("print(x + 1)")).await;
    assert_eq!(kept.unwrap().stdout, "42");
    server.stop();
}

async fn a_deleted_session_does_not_come_back(server: Server) {
    let kind = server.kind;
    for id in ["kept", "deleted"] {
        let result = server.session(id).execute(python("x = 41")).await;
        result.unwrap();
    }
    let deleted = "deleted".parse().unwrap();
    server.client().delete_session(&deleted).await.unwrap();
    let state = server.kill();
    let server = Server::start_in(kind, state, "");
    let listed = server.client().sessions().await.unwrap();
    assert_eq!(listed.len(), 1);
    let session = server.session("deleted");
    let anew = session.execute(python("print('x' in dir())")).await;
    assert_eq!(anew.unwrap().stdout, "False");
    server.stop();
}

async fn sessions_are_kept_at_sigterm_where_the_configuration_says_so(server: Server) {
    let kind = server.kind;
    drop(server);
    let keep = "[shutdown]\nkeepSessions = true\n";
    let server = Server::configured(kind, keep);
    server.session("s").execute(python("x = 41")).await.unwrap();
    server.python("print(1)").await;
    let state = server.terminate();
    let server = Server::start_in(kind, state, "");
    let kept = server.session("s").execute(python("print(x + 1)")).await;
    assert_eq!(kept.unwrap().stdout, "42");
    server.stop();
}

#[tokio::test]
async fn a_spawner_that_waits_in_vain_removes_everything() {
    let server = Server::configured(Kind::Native, "[shutdown]\nadoptableMs = 1000\n");
    server.session("s").execute(python("x = 1")).await.unwrap();
    server.python("print(1)").await;
    let state = server.kill();
    until("the spawner has removed everything", || {
        traces(Kind::Native, state.path()) == BTreeSet::new()
    });
}

#[tokio::test]
async fn native_sessions_outlive_the_spawner_too() {
    let server = Server::start(Kind::Native);
    server.session("s").execute(python("x = 41")).await.unwrap();
    server.python("print(1)").await;
    let spawner = server.spawner();
    kill(spawner, Signal::SIGSTOP).unwrap();
    let state = server.kill();
    kill(spawner, Signal::SIGKILL).unwrap();

    let server = Server::start_in(Kind::Native, state, "");
    let kept = server.session("s").execute(python("print(x + 1)")).await;
    assert_eq!(kept.unwrap().stdout, "42");
    let listed = server.client().sessions().await.unwrap();
    assert_eq!(listed.len(), 1);
    server.stop();
}

#[tokio::test]
async fn a_command_leaves_the_sessions_of_a_killed_server_alone() {
    let server = Server::start(Kind::Native);
    server.session("s").execute(python("x = 41")).await.unwrap();
    let state = server.kill();
    let ran = std::process::Command::new(crate::harness::ISOL8)
        .args(["run", "--backend", "native", "-e", "print(6 * 7)"])
        .env("ISOL8_STATE_DIR", state.path())
        .output()
        .unwrap();
    assert_eq!(String::from_utf8_lossy(&ran.stdout), "42\n");
    let server = Server::start_in(Kind::Native, state, "");
    let kept = server.session("s").execute(python("print(x + 1)")).await;
    assert_eq!(kept.unwrap().stdout, "42");
    server.stop();
}
