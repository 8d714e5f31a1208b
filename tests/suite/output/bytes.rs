//! Output and input as bytes: trimmed only where that is not refused, in base64 where text cannot carry them.

use isol8_client::{Encoding, EventKind, ExecutionRequest, RemoteIsol8, RunStream};
use serde_json::{Value, json};

use super::{BYTES, WRITTEN, programs};
use crate::harness::{KEY, Server, bash, on_each_backend, python};

on_each_backend!(
    output_that_is_no_text_comes_in_base64_on_request,
    only_what_is_asked_for_is_trimmed,
    input_that_is_no_text_arrives,
    what_is_not_base64_is_refused_with_its_member,
);

/// Everything that a run wrote to one stream.
async fn written(mut run: RunStream, kind: EventKind) -> Vec<u8> {
    let mut written = Vec::new();
    while let Some(event) = run.next().await {
        let event = event.unwrap();
        if event.kind == kind {
            written.extend_from_slice(&event.encoding.decode(&event.data).unwrap());
        }
    }
    written
}

fn both(server: &Server, request: &ExecutionRequest) -> [RemoteIsol8; 2] {
    let session = format!("session-{}", request.runtime);
    [server.client(), server.session(&session)]
}

async fn output_that_is_no_text_comes_in_base64_on_request(server: Server) {
    for request in programs(&BYTES) {
        for client in both(&server, &request) {
            let mut request = request.clone();
            let shown = client.execute(request.clone()).await.unwrap();
            assert_eq!(shown.stdout, "\u{fffd}\0\u{fffd}", "{request:?}");
            assert_eq!(shown.stdout_encoding, Encoding::Utf8);

            request.output_encoding = Encoding::Base64;
            let exact = client.execute(request.clone()).await.unwrap();
            assert_eq!(exact.stdout_encoding, Encoding::Base64, "{request:?}");
            let bytes = exact.stdout_encoding.decode(&exact.stdout).unwrap();
            assert_eq!(bytes, WRITTEN, "{request:?}");
            assert_eq!(exact.stderr_encoding, Encoding::Utf8);

            let run = client.execute_stream(request.clone()).await.unwrap();
            assert_eq!(written(run, EventKind::Stdout).await, WRITTEN);
        }
    }
    // A mebibyte of every byte, in whatever pieces it comes.
    let mut flood = python(
        "import sys\nfor stream in sys.stdout, sys.stderr: stream.buffer.write(bytes(range(256)) * 4096)",
    );
    flood.output_encoding = Encoding::Base64;
    let every: Vec<u8> = (0..=255).collect::<Vec<u8>>().repeat(4096);
    for kind in [EventKind::Stdout, EventKind::Stderr] {
        let run = server.client().execute_stream(flood.clone()).await.unwrap();
        assert!(written(run, kind).await == every, "{kind:?}");
    }
    let result = server.client().execute(flood).await.unwrap();
    assert!(result.stderr_encoding.decode(&result.stderr).unwrap() == every);
    // Text stays text.
    let mut text = bash("echo é");
    text.output_encoding = Encoding::Base64;
    let result = server.client().execute(text).await.unwrap();
    assert_eq!(
        (result.stdout.as_str(), result.stdout_encoding),
        ("é", Encoding::Utf8)
    );
    server.stop();
}

async fn only_what_is_asked_for_is_trimmed(server: Server) {
    let mut request = bash("printf ' a \\n\\n'; printf ' b\\t\\n' >&2");
    for (trim, stdout, stderr) in [(true, " a", " b"), (false, " a \n\n", " b\t\n")] {
        for client in both(&server, &request) {
            request.trim = trim;
            let result = client.execute(request.clone()).await.unwrap();
            assert_eq!(
                (result.stdout.as_str(), result.stderr.as_str()),
                (stdout, stderr)
            );
            let run = client.execute_stream(request.clone()).await.unwrap();
            assert_eq!(written(run, EventKind::Stdout).await, b" a \n\n");
        }
    }
    server.stop();
}

async fn input_that_is_no_text_arrives(server: Server) {
    let mut request = python("import sys; print(sys.stdin.buffer.read())");
    for client in both(&server, &request) {
        request.stdin = Some("/wAK".to_owned());
        request.stdin_encoding = Encoding::Base64;
        let result = client.execute(request.clone()).await.unwrap();
        assert_eq!(result.stdout, r"b'\xff\x00\n'");
        request.stdin = None;
        let mut run = client.execute_stream(request.clone()).await.unwrap();
        let input = run.take_input().unwrap();
        input.stdin_bytes(b"\xff\x00").await.unwrap();
        input.stdin_bytes("é".as_bytes()).await.unwrap();
        drop(input);
        let printed = written(run, EventKind::Stdout).await;
        assert_eq!(printed, b"b'\\xff\\x00\\xc3\\xa9'\n");
    }
    server.stop();
}

async fn what_is_not_base64_is_refused_with_its_member(server: Server) {
    let request = json!({"runtime": "bash", "code": ":", "stdin": "?", "stdinEncoding": "base64"});
    let url = format!("http://{}/execute", server.address);
    let post = reqwest::Client::new().post(url).bearer_auth(KEY);
    let answer = post.json(&json!({ "request": request })).send().await;
    let answer: Value = answer.unwrap().json().await.unwrap();
    let error = answer["error"].as_str().unwrap();
    assert!(error.starts_with("request.stdin: not base64"), "{error}");
    server.stop();
}
