//! Answers that the test suites of the TypeScript isol8 look for.

use isol8_client::Runtime;
use serde_json::{Value, json};

use crate::harness::{KEY, Server, bash, on_each_backend, python};
use crate::stream::socket::Socket;

on_each_backend!(
    options_that_loosen_nothing_are_accepted,
    errors_have_the_words_that_clients_look_for,
    a_websocket_names_what_it_does_not_understand,
    every_alias_of_a_runtime_runs,
);

async fn ask(
    server: &Server,
    method: &str,
    path: &str,
    key: Option<&str>,
    body: &Value,
) -> (u16, Value) {
    // The client crate sets up what HTTPS needs, which any reqwest client asks for.
    let _ = server.client();
    let url = format!("http://{}{path}", server.address);
    let mut request = reqwest::Client::new().request(method.parse().unwrap(), url);
    if let Some(key) = key {
        request = request.bearer_auth(key);
    }
    let answer = request.json(body).send().await.unwrap();
    (answer.status().as_u16(), answer.json().await.unwrap())
}

async fn options_that_loosen_nothing_are_accepted(server: Server) {
    let request = json!({"runtime": "bash", "code": "echo ok"});
    for options in [
        json!({"readonlyRootFs": true}),
        json!({"security": {}}),
        json!({"security": null}),
        json!({"security": {"seccomp": "strict"}}),
        json!({"persist": false}),
        json!({"mode": "ephemeral", "poolStrategy": "fast", "audit": {"enabled": false}}),
    ] {
        let body = json!({"request": request, "options": options});
        let (status, answer) = ask(&server, "POST", "/execute", Some(KEY), &body).await;
        assert_eq!(
            (status, &answer["stdout"]),
            (200, &json!("ok")),
            "{options}: {answer}"
        );
        assert_eq!(answer.get("warnings"), None, "{options}");
    }
    for (options, member) in [
        (json!({"readonlyRootFs": false}), "options.readonlyRootFs"),
        (
            json!({"security": {"seccomp": "unconfined"}}),
            "options.security",
        ),
        (
            json!({"security": {"seccomp": "custom"}}),
            "options.security",
        ),
        (json!({"persist": true}), "options.persist"),
    ] {
        let body = json!({"request": request, "options": options});
        let (status, answer) = ask(&server, "POST", "/execute", Some(KEY), &body).await;
        let text = answer["error"].as_str().unwrap();
        assert!(
            status == 400 && text.starts_with(member),
            "{options}: {answer}"
        );
    }
    server.stop();
}

async fn errors_have_the_words_that_clients_look_for(server: Server) {
    let session = server.session("bound");
    session.execute(python("1")).await.unwrap();
    let error = session.execute(bash("echo")).await.unwrap_err();
    let error = error.to_string();
    assert!(error.contains("Cannot switch runtime"), "{error}");

    let body = json!({"request": {"runtime": "python", "code": "1"}});
    let (status, answer) = ask(&server, "POST", "/execute", Some("wrong"), &body).await;
    let text = answer["error"].as_str().unwrap();
    assert!(
        status == 403 && text.contains("Invalid API key"),
        "{answer}"
    );

    for (method, path) in [
        ("POST", "/auth/keys"),
        ("GET", "/auth/keys"),
        ("DELETE", "/auth/keys/some-id"),
        ("POST", "/auth/login"),
    ] {
        let body = json!({"name": "nope"});
        let (status, answer) = ask(&server, method, path, Some(KEY), &body).await;
        let text = answer["error"].as_str().unwrap();
        let expected = "DB-backed auth is not enabled";
        assert!(status == 400 && text.contains(expected), "{path}: {answer}");
        let (status, _) = ask(&server, method, path, None, &body).await;
        assert_eq!(status, 401, "{path}");
        let (status, _) = ask(&server, method, path, Some("wrong"), &body).await;
        assert_eq!(status, 403, "{path}");
    }
    server.stop();
}

async fn a_websocket_names_what_it_does_not_understand(server: Server) {
    let mut socket = Socket::open(&server).await;
    socket.send_text("this is not json").await;
    let text = socket.refused().await;
    assert!(text.contains("Invalid JSON"), "{text}");
    assert_eq!(socket.next().await.unwrap_err().0, 1003);

    let mut socket = Socket::open(&server).await;
    for message in [
        json!({"type": "unknown-type", "data": "test"}),
        json!({"data": 1}),
    ] {
        socket.send(message).await;
        let text = socket.refused().await;
        assert!(text.contains("Unknown message type"), "{text}");
    }
    server.stop();
}

async fn every_alias_of_a_runtime_runs(server: Server) {
    for (alias, runtime) in Runtime::aliases() {
        let code = match runtime {
            Runtime::Python => "print('ok')",
            Runtime::Bash => "echo ok",
            Runtime::Node | Runtime::Bun | Runtime::Deno => "console.log('ok')",
        };
        let body = json!({"request": {"runtime": alias, "code": code}});
        let (status, answer) = ask(&server, "POST", "/execute", Some(KEY), &body).await;
        let told = (status, &answer["stdout"], &answer["runtime"]);
        let expected = (200, &json!("ok"), &json!(runtime.name()));
        assert_eq!(told, expected, "{alias}: {answer}");
    }
    server.stop();
}
