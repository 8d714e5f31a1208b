//! Sessions over HTTP.

use isol8_client::ErrorCode;

use crate::harness::{Server, bash, on_each_backend, python};

on_each_backend!(
    a_file_written_in_one_request_is_read_in_the_next,
    a_session_keeps_variables_between_requests,
    bash_sessions_keep_their_files,
    an_interpreter_that_ends_is_said_and_files_survive,
    a_timeout_keeps_the_interpreter_where_it_can,
    a_session_is_bound_to_its_runtime,
    sessions_are_listed_and_deleted,
    requests_of_one_session_run_one_at_a_time,
);

async fn a_file_written_in_one_request_is_read_in_the_next(server: Server) {
    let session = server.session("files");
    session
        .execute(python("open('/sandbox/note', 'w').write('kept')"))
        .await
        .unwrap();
    let read = session
        .execute(python("print(open('/sandbox/note').read())"))
        .await
        .unwrap();
    assert_eq!(read.stdout, "kept");
    server.stop();
}

async fn a_session_keeps_variables_between_requests(server: Server) {
    let session = server.session("variables");
    let first = session
        .execute(python("import math\nx = 41"))
        .await
        .unwrap();
    assert_eq!(first.exit_code, 0, "{}", first.stderr);
    let second = session
        .execute(python("print(x + 1, math.floor(1.5))"))
        .await
        .unwrap();
    assert_eq!((second.stdout.as_str(), second.state_lost), ("42 1", false));
    let other = server
        .session("other")
        .execute(python("print(x)"))
        .await
        .unwrap();
    assert!(other.stderr.contains("NameError"), "{}", other.stderr);
}

async fn bash_sessions_keep_their_files(server: Server) {
    let session = server.session("shell");
    session.execute(bash("echo kept > note")).await.unwrap();
    let read = session.execute(bash("cat note")).await.unwrap();
    assert_eq!(read.stdout, "kept");
}

async fn an_interpreter_that_ends_is_said_and_files_survive(server: Server) {
    let session = server.session("dies");
    session
        .execute(python("x = 1\nopen('/sandbox/note', 'w').write('kept')"))
        .await
        .unwrap();
    let exit = session
        .execute(python("import sys; sys.exit(3)"))
        .await
        .unwrap();
    assert_eq!((exit.exit_code, exit.state_lost), (3, false));
    let died = session
        .execute(python("import os; os._exit(5)"))
        .await
        .unwrap();
    assert_eq!((died.exit_code, died.state_lost), (5, true));
    let after = session
        .execute(python(
            "print(open('/sandbox/note').read(), 'x' in globals())",
        ))
        .await
        .unwrap();
    assert_eq!(
        (after.stdout.as_str(), after.state_lost),
        ("kept False", false)
    );
}

async fn a_timeout_keeps_the_interpreter_where_it_can(server: Server) {
    let session = server.session("timeout");
    session.execute(python("x = 41")).await.unwrap();
    let mut endless = python("while True: pass");
    endless.timeout_ms = Some(300);
    let result = session.execute(endless).await.unwrap();
    assert_eq!(
        (result.exit_code, result.timed_out, result.state_lost),
        (137, true, false)
    );
    let after = session.execute(python("print(x + 1)")).await.unwrap();
    assert_eq!(after.stdout, "42");

    let mut stubborn = python("import time\nwhile True:\n  try: time.sleep(1)\n  except: pass");
    stubborn.timeout_ms = Some(300);
    let result = session.execute(stubborn).await.unwrap();
    assert_eq!(
        (result.exit_code, result.timed_out, result.state_lost),
        (137, true, true)
    );
    assert!(result.stderr.ends_with("--- EXECUTION TIMED OUT ---"));
    let after = session
        .execute(python("print('x' in globals())"))
        .await
        .unwrap();
    assert_eq!(after.stdout, "False");
}

async fn a_session_is_bound_to_its_runtime(server: Server) {
    let session = server.session("bound");
    session.execute(python("1")).await.unwrap();
    let error = session.execute(bash("echo")).await.unwrap_err();
    assert_eq!(error.code(), Some(ErrorCode::RuntimeMismatch));
    let text = error.to_string();
    assert!(text.contains("python") && text.contains("bash"), "{text}");
}

async fn sessions_are_listed_and_deleted(server: Server) {
    let session = server.session("listed");
    session.execute(python("1")).await.unwrap();
    let sessions = server.client().sessions().await.unwrap();
    assert_eq!(sessions.len(), 1);
    assert_eq!(sessions[0].id.as_str(), "listed");
    assert!(!sessions[0].is_active);
    assert!(sessions[0].last_accessed_at >= sessions[0].created_at);
    for _ in 0..2 {
        session.stop().await.unwrap();
        assert_eq!(server.client().sessions().await.unwrap(), []);
    }
    let fresh = session
        .execute(python("import os; print(os.listdir('/sandbox'))"))
        .await;
    assert_eq!(fresh.unwrap().stdout, "[]");
}

async fn requests_of_one_session_run_one_at_a_time(server: Server) {
    let session = server.session("queue");
    session.execute(python("n = 0")).await.unwrap();
    let step = "import time\nseen = n\ntime.sleep(0.02)\nn = seen + 1";
    let runs = (0..8).map(|_| session.execute(python(step)));
    for result in futures::future::join_all(runs).await {
        assert_eq!(result.unwrap().exit_code, 0);
    }
    assert_eq!(
        session.execute(python("print(n)")).await.unwrap().stdout,
        "8"
    );
}
