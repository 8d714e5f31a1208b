//! The server's work around a run: names for requests, retries, readiness, clean-up, limits.

use std::time::Duration;

use isol8_client::{ClientError, ErrorCode};
use reqwest::header::HeaderMap;
use serde_json::{Value, json};

use crate::harness::{KEY, Kind, Server, on_each_backend, python};

on_each_backend!(
    a_retry_with_the_same_key_gets_the_first_result,
    a_key_holds_while_its_run_goes_on_and_its_client_goes_away,
    errors_are_not_kept_for_a_key,
    every_answer_carries_the_requests_name,
    members_that_are_not_known_are_warned_of_or_refused,
    a_server_says_when_it_is_ready,
    a_cleanup_ends_every_session,
    sessions_say_when_they_expire,
);

fn http(server: &Server) -> reqwest::Client {
    // The client crate sets up what HTTPS needs, which any reqwest client asks for.
    let _ = server.client();
    reqwest::Client::new()
}

fn url(server: &Server, path: &str) -> String {
    format!("http://{}{path}", server.address)
}

fn body(code: &str) -> Value {
    json!({"request": {"runtime": "python", "code": code}})
}

async fn execute(
    server: &Server,
    body: &Value,
    headers: &[(&str, &str)],
) -> (u16, HeaderMap, Value) {
    let mut request = http(server).post(url(server, "/execute"));
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    let response = request.bearer_auth(KEY).json(body).send().await.unwrap();
    let (status, headers) = (response.status().as_u16(), response.headers().clone());
    (status, headers, response.json().await.unwrap())
}

async fn a_retry_with_the_same_key_gets_the_first_result(server: Server) {
    let request = body("import uuid; print(uuid.uuid4())");
    let key = [("Idempotency-Key", "a-1")];
    let (_, _, first) = execute(&server, &request, &key).await;
    let (status, _, again) = execute(&server, &request, &key).await;
    assert_eq!((status, &first), (200, &again));
    let (_, _, other) = execute(&server, &request, &[("Idempotency-Key", "a-2")]).await;
    assert_ne!(first["stdout"], other["stdout"]);

    let (status, _, refused) = execute(&server, &body("print(2)"), &key).await;
    assert_eq!((status, &refused["code"]), (400, &json!("INVALID_REQUEST")));
    let text = refused["error"].as_str().unwrap();
    assert!(text.contains("Idempotency-Key: \"a-1\""), "{text}");
    let long = "k".repeat(256);
    let (status, _, _) = execute(&server, &request, &[("Idempotency-Key", &long)]).await;
    assert_eq!(status, 400);
    server.stop();
}

async fn a_key_holds_while_its_run_goes_on_and_its_client_goes_away(server: Server) {
    let request = body("import time, uuid; time.sleep(1); print(uuid.uuid4())");
    let key = [("Idempotency-Key", "slow")];
    let impatient = execute(&server, &request, &key);
    let gone = tokio::time::timeout(Duration::from_millis(300), impatient).await;
    assert!(gone.is_err(), "it did not take a second");
    let tries = (0..4).map(|_| execute(&server, &request, &key));
    let answers = futures::future::join_all(tries).await;
    let ids: Vec<_> = answers
        .iter()
        .map(|(_, _, result)| &result["executionId"])
        .collect();
    assert!(
        ids[0].is_string() && ids.iter().all(|id| *id == ids[0]),
        "{ids:?}"
    );
    server.stop();
}

async fn errors_are_not_kept_for_a_key(server: Server) {
    let mut request = body("print(1)");
    request["request"]["setupScript"] = json!("test -e /sandbox/no-such");
    request["sessionId"] = json!("s");
    let key = [("Idempotency-Key", "fails")];
    let (status, _, _) = execute(&server, &request, &key).await;
    assert_eq!(status, 400);
    let session = server.session("s");
    let made = session.execute(python("open('/sandbox/no-such', 'w')"));
    made.await.unwrap();
    let (status, _, result) = execute(&server, &request, &key).await;
    assert_eq!((status, &result["stdout"]), (200, &json!("1")));
    server.stop();
}

async fn every_answer_carries_the_requests_name(server: Server) {
    let name = |headers: &HeaderMap| headers["x-request-id"].to_str().unwrap().to_owned();
    let (_, headers, _) = execute(&server, &body("1"), &[("X-Request-Id", "mine-7")]).await;
    assert_eq!(name(&headers), "mine-7");
    let long = "x".repeat(129);
    let (_, headers, _) = execute(&server, &body("1"), &[("X-Request-Id", &long)]).await;
    assert_eq!(name(&headers).len(), 36, "a new one");
    let nowhere = http(&server).get(url(&server, "/nowhere")).send().await;
    assert_eq!(name(nowhere.unwrap().headers()).len(), 36);
    server.stop();
}

/// Warnings of an answer's result, and of its header.
fn warnings(headers: &HeaderMap, result: &Value) -> (Vec<String>, String) {
    let told = result["warnings"].as_array().map_or_else(Vec::new, |told| {
        let texts = told.iter().map(|text| text.as_str().unwrap().to_owned());
        texts.collect()
    });
    let header = headers.get("x-isol8-warning");
    let header = header.map_or("", |text| text.to_str().unwrap());
    (told, header.to_owned())
}

async fn members_that_are_not_known_are_warned_of_or_refused(server: Server) {
    let mut request = body("print(1)");
    request["request"]["timeoutMS"] = json!(5);
    request["request"]["agentFlags"] = json!("--fast");
    request["request"]["packages"] = json!(["emoji"]);
    request["language"] = json!("python");
    request["options"] = json!({"mode": "ephemeral", "audit": {}, "allowNetwork": true});
    let (status, headers, result) = execute(&server, &request, &[]).await;
    assert_eq!(status, 200);
    let (mut told, header) = warnings(&headers, &result);
    assert_eq!(told.join("; "), header);
    told.sort_unstable();
    let expected = [
        "language is not known, did you mean request.runtime?",
        "options.allowNetwork is not known, did you mean options.network?",
        "request.packages is not known, did you mean request.installPackages?",
        "request.timeoutMS is not known, did you mean timeoutMs?",
    ];
    assert_eq!(told, expected);

    // A stream tells in its exit, and every way refuses where the client is strict.
    let stream = |path: &str| {
        let sending = http(&server).post(url(&server, path)).bearer_auth(KEY);
        sending.json(&request).send()
    };
    let events = stream("/execute/stream")
        .await
        .unwrap()
        .text()
        .await
        .unwrap();
    let exit = events.trim().lines().last().unwrap();
    assert!(
        exit.contains("\"warnings\":[") && exit.contains("allowNetwork"),
        "{exit}"
    );
    for path in ["/execute?strict=1", "/execute/stream?strict=true"] {
        let answer = stream(path).await.unwrap();
        assert_eq!(answer.status(), 400, "{path}");
        let refused: Value = answer.json().await.unwrap();
        let text = refused["error"].as_str().unwrap();
        assert!(
            text.contains("allowNetwork") && text.contains("language"),
            "{text}"
        );
        assert!(!text.contains("agentFlags"), "{text}");
    }
    assert_eq!(
        stream("/execute?strict=perhaps").await.unwrap().status(),
        400
    );
    assert_eq!(stream("/execute?strict=0").await.unwrap().status(), 200);

    let (_, headers, result) = execute(&server, &body("print(1)"), &[]).await;
    assert_eq!(warnings(&headers, &result), (Vec::new(), String::new()));
    server.stop();
}

async fn a_server_says_when_it_is_ready(server: Server) {
    let deadline = std::time::Instant::now() + crate::harness::PATIENCE;
    loop {
        let answer = http(&server)
            .get(url(&server, "/ready"))
            .send()
            .await
            .unwrap();
        let status = answer.status().as_u16();
        let ready: Value = answer.json().await.unwrap();
        if status == 200 {
            assert_eq!(ready, json!({"ready": true}));
            break;
        }
        assert_eq!((status, &ready["ready"]), (503, &json!(false)));
        assert!(std::time::Instant::now() < deadline);
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    server.stop();
}

async fn a_cleanup_ends_every_session(server: Server) {
    for id in ["a", "b"] {
        server.session(id).execute(python("x = 1")).await.unwrap();
    }
    let cleanup = || http(&server).post(url(&server, "/cleanup"));
    assert_eq!(cleanup().send().await.unwrap().status(), 401);
    let answer = cleanup().bearer_auth(KEY).json(&json!({"images": false}));
    let answer: Value = answer.send().await.unwrap().json().await.unwrap();
    let none = json!({"removed": 0, "failed": 0, "errors": []});
    assert_eq!(answer["sessions"]["removed"], 2);
    assert_eq!(
        (&answer["ok"], &answer["containers"]),
        (&json!(true), &none)
    );
    assert!(answer.get("images").is_none());
    assert!(server.client().sessions().await.unwrap().is_empty());
    let answer: Value = cleanup()
        .bearer_auth(KEY)
        .send()
        .await
        .unwrap()
        .json()
        .await
        .unwrap();
    assert_eq!(answer["sessions"], none);
    assert_eq!(answer["images"]["failed"], 0);
    assert_eq!(server.python("print(6 * 7)").await.stdout, "42");
    server.stop();
}

async fn sessions_say_when_they_expire(server: Server) {
    server.session("s").execute(python("1")).await.unwrap();
    let sessions = server.client().sessions().await.unwrap();
    let expected = sessions[0].last_accessed_at + 3_600_000;
    assert_eq!(sessions[0].expires_at, Some(expected));
    server.stop();
}

#[tokio::test]
async fn a_tenant_may_have_only_so_many_sessions() {
    let server = Server::configured(Kind::Native, "[sessions]\nmaxPerTenant = 1\n");
    server.session("a").execute(python("1")).await.unwrap();
    match server.session("b").execute(python("1")).await {
        Err(ClientError::Api { status, code, .. }) => {
            assert_eq!((status, code), (429, Some(ErrorCode::TooManyRequests)));
        }
        other => panic!("{other:?}"),
    }
    let deleted = "a".parse().unwrap();
    server.client().delete_session(&deleted).await.unwrap();
    server.session("b").execute(python("1")).await.unwrap();
    server.stop();
}

#[tokio::test]
async fn pages_of_named_origins_may_call_and_no_others() {
    let server = Server::configured(
        Kind::Native,
        "[server]\ncorsOrigins = [\"https://app.example.com\"]\n",
    );
    let allowed = |origin: &'static str| {
        let request = http(&server).get(url(&server, "/health"));
        let request = request.header("Origin", origin);
        async move {
            let headers = request.send().await.unwrap().headers().clone();
            headers.contains_key("access-control-allow-origin")
        }
    };
    assert!(allowed("https://app.example.com").await);
    assert!(!allowed("https://evil.example.com").await);
    server.stop();
    let server = Server::start(Kind::Native);
    let request = http(&server).get(url(&server, "/health"));
    let answer = request
        .header("Origin", "https://app.example.com")
        .send()
        .await
        .unwrap();
    assert!(!answer.headers().contains_key("access-control-allow-origin"));
    server.stop();
}
