//! The limits of the configuration on one request, and on the time that its client may take.

use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::harness::{KEY, Kind, PATIENCE, Server, python};

async fn refused(server: &Server, request: Value) -> String {
    let mut body = json!({"request": {"runtime": "python", "code": "1"}});
    let members = request.as_object().unwrap().clone();
    body["request"].as_object_mut().unwrap().extend(members);
    let _ = server.client();
    let answer = reqwest::Client::new()
        .post(format!("http://{}/execute", server.address))
        .bearer_auth(KEY)
        .json(&body)
        .send();
    let answer = answer.await.unwrap();
    let status = answer.status().as_u16();
    let answer: Value = answer.json().await.unwrap();
    assert_eq!((status, &answer["code"]), (400, &json!("INVALID_REQUEST")));
    answer["error"].as_str().unwrap().to_owned()
}

#[tokio::test]
async fn a_request_that_brings_too_much_is_told_what_and_how_much() {
    let limits = "[limits]\nfiles = 1\npathLength = 16\nvariables = 2\n\
                  variableSize = 10\nenvironmentSize = 12\n";
    let server = Server::configured(Kind::Native, limits);
    let cases = [
        (
            json!({"files": {"/tmp/a": "", "/tmp/b": ""}}),
            "request.files: expected at most 1 entries, there are more at line 1 column ",
        ),
        (
            json!({"files": {"/sandbox/longer.txt": ""}}),
            "request.files: \"/sandbox/longer.txt\" has 19 bytes, expected at most 16",
        ),
        (
            json!({"outputPaths": ["/sandbox/longer.txt"]}),
            "request.outputPaths[0]: \"/sandbox/longer.txt\" has 19 bytes, expected at most 16",
        ),
        (
            json!({"workdir": "a/quite/long/directory"}),
            "request.workdir: \"a/quite/long/directory\" has 22 bytes, expected at most 16",
        ),
        (
            json!({"env": {"A": "", "B": "", "C": ""}}),
            "request.env: expected at most 2 variables, there are more at line 1 column ",
        ),
        (
            json!({"env": {"A": "1234567890"}}),
            "request.env: \"A\" and its value have 11 bytes, expected at most 10",
        ),
        (
            json!({"env": {"A": "123456", "B": "123456"}}),
            "request.env: 14 bytes of names and values, expected at most 12",
        ),
    ];
    for (request, expected) in cases {
        let text = refused(&server, request).await;
        assert!(text.starts_with(expected), "{text}");
    }
    let session = server.session("s");
    session.execute(python("1")).await.unwrap();
    let written = session.put_file("/sandbox/longer.txt", "x").await;
    let text = written.unwrap_err().to_string();
    assert!(
        text.contains("path: \"/sandbox/longer.txt\" has 19 bytes"),
        "{text}"
    );
    session.put_file("/sandbox/short", "x").await.unwrap();
    server.stop();
}

/// Returns the server's answer, read until it closes the connection, and the time that it took.
fn talk(server: &Server, sent: &str) -> (String, Duration) {
    let begun = Instant::now();
    let mut stream = TcpStream::connect(&server.address).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    stream.write_all(sent.as_bytes()).unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    (answer, begun.elapsed())
}

#[tokio::test]
async fn a_client_that_sends_too_slowly_is_let_go() {
    let config = "[server]\nheaderTimeoutMs = 1500\nbodyTimeoutMs = 700\nkeepAliveMs = 1000\n";
    let server = Server::configured(Kind::Native, config);
    // By their defaults these would be 10, 60 and 75 s. How early they may be is not told: the clock that
    // the times are counted from ticks twice a second.
    let soon = Duration::from_secs(8);

    let (answer, after) = talk(&server, "POST /execute HTTP/1.1\r\nHost: x\r\n");
    assert!(answer.starts_with("HTTP/1.1 408 "), "{answer}");
    assert!(after < soon, "{after:?}");

    let head = format!(
        "POST /execute HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {KEY}\r\nContent-Length: 9\r\n\r\n{{"
    );
    let (answer, after) = talk(&server, &head);
    assert!(answer.starts_with("HTTP/1.1 408 "), "{answer}");
    assert!(
        answer.contains("body did not arrive within 700 ms"),
        "{answer}"
    );
    assert!(answer.contains("\"code\":\"REQUEST_TIMEOUT\""), "{answer}");
    assert!(after < soon, "{after:?}");

    let (answer, after) = talk(&server, "GET /health HTTP/1.1\r\nHost: x\r\n\r\n");
    assert!(answer.starts_with("HTTP/1.1 200 "), "{answer}");
    assert!(after < soon, "{after:?}");
    server.stop();
}
