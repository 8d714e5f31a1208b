//! The statements of `docs/troubleshooting.md` about each trouble are true.

use std::time::Duration;

use isol8_client::{ClientError, ErrorCode};

use crate::harness::{KEY, PATIENCE, Server, bash, command, on_each_backend, python};

const PAGE: &str = include_str!("../../docs/troubleshooting.md");

/// Sessions end soon after their last use, and are looked for often.
const SHORT: &str = "[cleanup]\nmaxContainerAgeMs = 300\npruneIntervalMs = 50\n";

on_each_backend!(
    state_needs_a_session,
    file_operations_need_a_session,
    a_session_keeps_its_runtime,
);

mod pruned {
    super::on_each_backend!(with crate::troubleshooting::SHORT; a_session_that_disappeared_is_explained_by_the_two_keys);

    use super::a_session_that_disappeared_is_explained_by_the_two_keys;
}

async fn state_needs_a_session(server: Server) {
    server.python("x = 41").await;
    let without = server.python("print(x + 1)").await;
    assert_eq!(without.exit_code, 1);
    assert!(
        without
            .stderr
            .contains("NameError: name 'x' is not defined")
    );
    let session = server.session("kept");
    session.execute(python("x = 41")).await.unwrap();
    let with = session.execute(python("print(x + 1)")).await.unwrap();
    assert_eq!(with.stdout, "42");
    server.stop();
}

async fn file_operations_need_a_session(server: Server) {
    let expected = "File operations require a sessionId";
    assert!(PAGE.contains(expected));
    // The client refuses by itself, and the server refuses other clients.
    let error = server.client().get_file("/sandbox/a").await.unwrap_err();
    assert!(matches!(error, ClientError::NoSession), "{error}");
    assert!(error.to_string().starts_with(expected), "{error}");
    let url = format!("http://{}/file?path=/sandbox/a", server.address);
    let request = reqwest::Client::new().get(url);
    let answer = request.bearer_auth(KEY).send().await.unwrap();
    assert_eq!(answer.status(), 400);
    assert!(answer.text().await.unwrap().contains(expected));
    server.stop();
}

async fn a_session_that_disappeared_is_explained_by_the_two_keys(server: Server) {
    let session = server.session("idle");
    session.execute(python("x = 41")).await.unwrap();
    let files = server.session("files");
    files.execute(python("1")).await.unwrap();
    let gone = async {
        let client = server.client();
        while !client.sessions().await.unwrap().is_empty() {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    let gone = tokio::time::timeout(PATIENCE, gone).await;
    assert!(gone.is_ok(), "the session is still there");
    let run = session.execute(python("print(x)")).await.unwrap_err();
    let read = files.get_file("/sandbox/a").await.unwrap_err();
    for error in [run, read] {
        assert_eq!(error.code(), Some(ErrorCode::SessionLost), "{error}");
        let text = error.to_string();
        for key in ["cleanup.autoPrune", "cleanup.maxContainerAgeMs"] {
            assert!(text.contains(key) && PAGE.contains(key), "{text}");
        }
    }
    server.stop();
}

async fn a_session_keeps_its_runtime(server: Server) {
    let session = server.session("bound");
    session.execute(python("1")).await.unwrap();
    let error = session.execute(bash("echo")).await.unwrap_err();
    assert_eq!(error.code(), Some(ErrorCode::RuntimeMismatch));
    let text = error.to_string();
    assert!(text.contains("python") && text.contains("bash"), "{text}");
    // As the page says: a shell command from any runtime, and another session for the other one.
    let beside = session.execute(command("echo 42")).await.unwrap();
    assert_eq!(beside.stdout, "42");
    let other = server.session("other").execute(bash("echo 42")).await;
    assert_eq!(other.unwrap().stdout, "42");
    server.stop();
}
