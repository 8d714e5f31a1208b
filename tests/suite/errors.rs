//! Bad input: a clear 4xx, and no sandbox touched.

use isol8_client::{ErrorCode, Runtime};
use serde_json::{Value, json};

use crate::harness::{KEY, Server, on_each_backend};

on_each_backend!(
    a_bad_request_names_its_fault,
    a_runtime_that_the_backend_lacks_is_named_with_the_fix,
    keys_are_required_and_checked,
    unknown_routes_and_methods_are_json_errors,
);

async fn send(server: &Server, path: &str, key: Option<&str>, body: String) -> (u16, Value) {
    let url = format!("http://{}{path}", server.address);
    // The client crate sets up what HTTPS needs, which any reqwest client asks for.
    let _ = server.client();
    let mut request = reqwest::Client::new().post(url).body(body);
    if let Some(key) = key {
        request = request.bearer_auth(key);
    }
    let response = request.send().await.unwrap();
    let status = response.status().as_u16();
    (status, response.json().await.unwrap())
}

async fn a_bad_request_names_its_fault(server: Server) {
    let request = |request: Value| json!({"request": request}).to_string();
    let python = |rest: Value| {
        let mut value = json!({"code": "1", "runtime": "python"});
        value
            .as_object_mut()
            .unwrap()
            .extend(rest.as_object().unwrap().clone());
        request(value)
    };
    let cases = [
        ("{".to_owned(), "EOF"),
        (String::new(), "EOF"),
        ("[]".to_owned(), "body"),
        ("{}".to_owned(), "request"),
        ("\u{0}".to_owned(), "expected value"),
        (
            request(json!({"runtime": "python"})),
            "exactly one of code, codeUrl and cmd, found 0",
        ),
        (
            python(json!({"cmd": "ls"})),
            "exactly one of code, codeUrl and cmd, found 2",
        ),
        (
            request(json!({"code": "1", "runtime": "cobol"})),
            "request.runtime: \"cobol\" is not a runtime: python, node",
        ),
        (request(json!({"code": "1"})), "runtime"),
        (python(json!({"timeoutMs": "soon"})), "request.timeoutMs"),
        (python(json!({"timeoutMs": -1})), "request.timeoutMs"),
        (python(json!({"timeoutMs": 1e99})), "request.timeoutMs"),
        (
            python(json!({"fileExtension": "/../x"})),
            "request.fileExtension",
        ),
        (python(json!({"workdir": "/etc"})), "request.workdir"),
        (
            python(json!({"files": {"/etc/passwd": "x"}})),
            "request.files",
        ),
        (python(json!({"env": {"A=B": "x"}})), "request.env"),
        (
            json!({"request": {"code": "1", "runtime": "python"}, "sessionId": "a b"}).to_string(),
            "sessionId: \"a b\" is not a session id",
        ),
        (
            json!({"request": {"code": "1", "runtime": "python"}, "options": {"memoryLimit": "1"}})
                .to_string(),
            "options.memoryLimit",
        ),
        (
            format!("{}{}", "[".repeat(100_000), "]".repeat(100_000)),
            "body",
        ),
    ];
    for (body, expected) in cases {
        let (status, answer) = send(&server, "/execute", Some(KEY), body.clone()).await;
        assert_eq!(status, 400, "{body:.200} gave {answer}");
        assert_eq!(answer["code"], json!("INVALID_REQUEST"));
        let text = answer["error"].as_str().unwrap();
        assert!(text.contains(expected), "{body:.200} gave {text}");
    }
    assert_eq!(server.python("print(1)").await.stdout, "1");
}

async fn a_runtime_that_the_backend_lacks_is_named_with_the_fix(server: Server) {
    // A machine may have any of them, so it is hidden from this server.
    let server = Server::lacking(server.kind, Runtime::Deno);
    let mut request = crate::harness::python("1");
    request.runtime = Runtime::Deno;
    let error = server.client().execute(request).await.unwrap_err();
    assert_eq!(error.code(), Some(ErrorCode::RuntimeUnavailable));
    let text = error.to_string();
    assert!(
        text.contains("deno") && text.contains(server.kind.name()),
        "{text}"
    );
}

async fn keys_are_required_and_checked(server: Server) {
    let body = json!({"request": {"code": "1", "runtime": "python"}}).to_string();
    let (status, answer) = send(&server, "/execute", None, body.clone()).await;
    assert_eq!((status, &answer["code"]), (401, &json!("UNAUTHORIZED")));
    let (status, answer) = send(&server, "/execute", Some("wrong"), body).await;
    assert_eq!((status, &answer["code"]), (403, &json!("FORBIDDEN")));
    let health = reqwest::get(format!("http://{}/health", server.address))
        .await
        .unwrap();
    let health: Value = health.json().await.unwrap();
    assert_eq!(health["status"], json!("ok"));
    assert_eq!(health["backend"], json!(server.kind.name()));
}

async fn unknown_routes_and_methods_are_json_errors(server: Server) {
    let (status, answer) = send(&server, "/nowhere", Some(KEY), String::new()).await;
    assert_eq!((status, &answer["code"]), (404, &json!("NOT_FOUND")));
    let (status, answer) = send(&server, "/health", Some(KEY), String::new()).await;
    assert_eq!(
        (status, &answer["code"]),
        (405, &json!("METHOD_NOT_ALLOWED"))
    );
}
