//! Sessions over HTTP.

use isol8_client::{CreateSession, ErrorCode, FileContent, Options, Runtime};
use serde_json::{Value, json};

use crate::harness::{KEY, Kind, Server, bash, on_each_backend, python};

/// Sends a request that no client library sends.
async fn ask(server: &Server, method: &str, path: &str, body: &str) -> (u16, Value) {
    // The client crate sets up what HTTPS needs, which any reqwest client asks for.
    let _ = server.client();
    let url = format!("http://{}{path}", server.address);
    let request = reqwest::Client::new().request(method.parse().unwrap(), url);
    let answer = request.bearer_auth(KEY).body(body.to_owned()).send();
    let answer = answer.await.unwrap();
    (answer.status().as_u16(), answer.json().await.unwrap())
}

on_each_backend!(
    a_file_written_in_one_request_is_read_in_the_next,
    a_session_keeps_variables_between_requests,
    bash_sessions_keep_their_files,
    an_interpreter_that_ends_is_said_and_files_survive,
    a_timeout_keeps_the_interpreter_where_it_can,
    a_session_is_bound_to_its_runtime,
    sessions_are_listed_and_deleted,
    requests_of_one_session_run_one_at_a_time,
    a_session_is_made_before_anything_runs_in_it,
    settings_of_a_session_hold_for_its_requests,
    an_upload_makes_a_session_whose_runtime_it_names,
    a_file_has_no_path_of_a_directory,
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

async fn a_session_is_made_before_anything_runs_in_it(server: Server) {
    let mut new = CreateSession::new(Runtime::Python);
    let content = FileContent(b"ready".to_vec());
    new.files.insert("/sandbox/d/note".to_owned(), content);
    let session = server.session("made");
    let made = session.create_session(new.clone()).await.unwrap();
    assert_eq!((made.id.as_str(), made.runtime), ("made", Runtime::Python));
    assert!(made.expires_at.is_some() && !made.container_id.is_empty());
    let sessions = server.client().sessions().await.unwrap();
    assert_eq!(sessions, std::slice::from_ref(&made));
    session.put_file("/sandbox/d/more", "x").await.unwrap();
    let code = "import os; print(open('d/note').read(), sorted(os.listdir('d')))";
    let result = session.execute(python(code)).await.unwrap();
    assert_eq!(result.stdout, "ready ['more', 'note']");
    assert_eq!(result.container_id, made.container_id);

    let again = session.create_session(new).await.unwrap_err();
    assert_eq!(again.code(), Some(ErrorCode::SessionExists));
    let unnamed = CreateSession::new(Runtime::Bash);
    let chosen = server.client().create_session(unnamed).await.unwrap();
    let session = server.client().with_session(chosen.id);
    assert_eq!(session.execute(bash("echo ok")).await.unwrap().stdout, "ok");

    // A session whose files do not fit does not exist afterwards.
    let body = json!({"id": "full", "runtime": "js", "files": {"/tmp/x": "x".repeat(3 << 20)},
        "options": {"tmpSize": "1m"}});
    let (status, answer) = ask(&server, "POST", "/sessions", &body.to_string()).await;
    assert_eq!(
        (status, &answer["code"]),
        (400, &json!("INVALID_REQUEST")),
        "{answer}"
    );
    assert_eq!(server.client().sessions().await.unwrap().len(), 2);
    server.stop();
}

async fn settings_of_a_session_hold_for_its_requests(server: Server) {
    let session = server.session("settings");
    let mut new = CreateSession::new(Runtime::Bash);
    new.env.insert("A".to_owned(), "session".to_owned());
    new.env.insert("B".to_owned(), "session".to_owned());
    new.options = Some(Options {
        memory_limit: Some("96m".parse().unwrap()),
        sandbox_size: Some("8m".parse().unwrap()),
        ..Options::default()
    });
    session.create_session(new).await.unwrap();
    let mut request = bash("echo $A $B; df -B1M --output=size /sandbox | tail -1 | tr -d ' '");
    request.env.insert("B".to_owned(), "request".to_owned());
    let told = async |request| session.execute(request).await.unwrap().stdout;
    let expected = "session request\n8";
    assert_eq!(told(request.clone()).await, expected);
    assert_eq!(told(bash("echo $A $B")).await, "session session");
    // The limit is the session's, also where a request that names another came between.
    let hungry = "head -c 160m /dev/zero | tail | wc -c";
    let unhindered = Options {
        memory_limit: Some("512m".parse().unwrap()),
        ..Options::default()
    };
    let fits = session
        .execute_with(bash(hungry), unhindered)
        .await
        .unwrap();
    assert!(!fits.oom_killed && fits.stdout == "167772160", "{fits:?}");
    let killed = session.execute(bash(hungry)).await.unwrap();
    assert!(killed.oom_killed, "{killed:?}");
    server.stop();
}

async fn an_upload_makes_a_session_whose_runtime_it_names(server: Server) {
    for (id, method, path, body, expected) in [
        (
            "none",
            "PUT",
            "/session/none/files/sandbox/x",
            "content",
            404,
        ),
        (
            "put",
            "PUT",
            "/session/put/files/sandbox/x?runtime=bash",
            "content",
            200,
        ),
        (
            "put",
            "PUT",
            "/session/put/files/sandbox/y?runtime=sh",
            "content",
            200,
        ),
        (
            "put",
            "PUT",
            "/session/put/files/sandbox/x?runtime=node",
            "content",
            409,
        ),
        (
            "put",
            "PUT",
            "/session/put/files/sandbox/x?runtime=cobol",
            "content",
            400,
        ),
        (
            "post",
            "POST",
            "/file?runtime=python",
            r#"{"sessionId": "post", "path": "/tmp/x", "content": "eA=="}"#,
            200,
        ),
    ] {
        let (status, answer) = ask(&server, method, path, body).await;
        assert_eq!(status, expected, "{id} {path}: {answer}");
        if status == 404 {
            let text = answer["error"].as_str().unwrap();
            assert!(
                text.starts_with("Session not found") && text.contains("?runtime="),
                "{text}"
            );
        }
    }
    let read = server.session("put").execute(bash("cat x; ls")).await;
    assert_eq!(read.unwrap().stdout, "contentx\ny");
    let session = server.session("post");
    let read = session.execute(python("print(open('/tmp/x').read())"));
    assert_eq!(read.await.unwrap().stdout, "x");
    server.stop();
}

async fn a_file_has_no_path_of_a_directory(server: Server) {
    let session = server.session("paths");
    session.execute(bash("mkdir d")).await.unwrap();
    for path in ["d/", "d//", "new/", "d/.", "d/x/.."] {
        let urls = [
            ("PUT", format!("/session/paths/files/sandbox/{path}"), String::new()),
            ("GET", format!("/session/paths/files/sandbox/{path}"), String::new()),
            ("GET", format!("/file?sessionId=paths&path=/sandbox/{path}"), String::new()),
            ("POST", "/file".to_owned(),
                json!({"sessionId": "paths", "path": format!("/sandbox/{path}"), "content": ""}).to_string()),
            ("POST", "/execute".to_owned(),
                json!({"request": {"runtime": "bash", "code": ":", "files": {format!("/sandbox/{path}"): ""}}}).to_string()),
        ];
        for (method, url, body) in urls {
            // A client may resolve dots in a path before it sends it.
            if url.starts_with("/session") && path.contains('.') {
                continue;
            }
            let (status, answer) = ask(&server, method, &url, &body).await;
            assert_eq!(
                (status, &answer["code"]),
                (400, &json!("INVALID_REQUEST")),
                "{method} {url}: {answer}"
            );
        }
    }
    assert_eq!(session.execute(bash("ls -F")).await.unwrap().stdout, "d/");
    server.stop();
}

#[tokio::test]
async fn settings_of_a_session_are_there_after_a_restart() {
    let server = Server::start(Kind::Native);
    let mut new = CreateSession::new(Runtime::Python);
    new.env.insert("A".to_owned(), "kept".to_owned());
    server.session("s").create_session(new).await.unwrap();
    let state = server.kill();
    let server = Server::start_in(Kind::Native, state, "");
    let code = "import os; print(os.environ.get('A'))";
    let result = server.session("s").execute(python(code)).await.unwrap();
    assert_eq!(result.stdout, "kept");
    server.stop();
}
