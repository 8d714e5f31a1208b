//! The server's description of itself, and the page that shows it.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::process::Command;
use std::time::{Duration, Instant};

use regex::Regex;
use reqwest::header::{ALLOW, CONTENT_SECURITY_POLICY, CONTENT_TYPE};
use reqwest::{Method, Response, StatusCode};
use serde_json::Value;

use crate::harness::{KEY, Kind, PATIENCE, Server, on_each_backend, python};

on_each_backend!(the_server_does_what_its_document_says);

/// Where `scripts/install-dependencies` puts what is used here.
const TOOLS: &str = "/usr/local/lib/isol8-tests";

const SETTINGS: &str = concat!(
    env!("CARGO_MANIFEST_DIR"),
    "/tests/compat/schemathesis.toml"
);

async fn ask(server: &Server, method: Method, path: &str) -> Response {
    let _ = server.client();
    let url = format!("http://{}{path}", server.address);
    let request = reqwest::Client::new().request(method, url);
    request.send().await.unwrap()
}

async fn document(server: &Server) -> Value {
    let answer = ask(server, Method::GET, "/openapi.json").await;
    answer.json().await.unwrap()
}

/// The methods of each path of the document, in capitals.
fn operations(document: &Value) -> BTreeMap<String, BTreeSet<String>> {
    let paths = document["paths"].as_object().unwrap().iter();
    let operations = paths.map(|(path, item)| {
        let methods = item.as_object().unwrap().keys();
        (
            path.clone(),
            methods.map(|name| name.to_uppercase()).collect(),
        )
    });
    operations.collect()
}

/// Runs one of the tools, and fails with what it says where it fails.
async fn passes(arguments: Vec<String>) {
    let mut tool = Command::new("/usr/bin/python3");
    tool.args(&arguments).env("PYTHONPATH", TOOLS);
    // They leave files where they run.
    let directory = tempfile::tempdir().unwrap();
    tool.current_dir(&directory);
    let output = tokio::task::spawn_blocking(move || tool.output().unwrap());
    let output = output.await.unwrap();
    assert!(
        output.status.success(),
        "{arguments:?}\n{}{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
}

async fn the_server_does_what_its_document_says(server: Server) {
    // What the document's examples name.
    let session = server.session("demo");
    session.execute(python("1")).await.unwrap();
    session.put_file("/sandbox/data.csv", "a,b").await.unwrap();
    let ready = async || ask(&server, Method::GET, "/ready").await.status() == StatusCode::OK;
    let deadline = Instant::now() + PATIENCE;
    while !ready().await {
        assert!(Instant::now() < deadline, "the server is never ready");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    // What ends sessions comes last, so that the rest finds that one, and with it what makes many.
    let last = ["cleanup", "createSession", "deleteSession"];
    for filter in ["--exclude-operation-id", "--include-operation-id"] {
        let url = format!("http://{}/openapi.json", server.address);
        let mut arguments = vec![
            "-m",
            "schemathesis.cli",
            "--config-file",
            SETTINGS,
            "run",
            &url,
        ];
        let key = format!("Authorization: Bearer {KEY}");
        arguments.extend(["--header", &key]);
        arguments.extend(last.into_iter().flat_map(|id| [filter, id]));
        passes(arguments.into_iter().map(str::to_owned).collect()).await;
    }
    assert_eq!(server.python("print(6 * 7)").await.stdout, "42");
    server.stop();
}

#[tokio::test]
async fn the_document_is_valid() {
    let server = Server::start(Kind::Native);
    let document = document(&server).await;
    assert!(document["openapi"].as_str().unwrap().starts_with("3.1."));
    let file = server.state().join("openapi.json");
    fs::write(&file, document.to_string()).unwrap();
    let file = file.to_str().unwrap().to_owned();
    passes(vec![
        "-m".to_owned(),
        "openapi_spec_validator".to_owned(),
        file,
    ])
    .await;
    server.stop();
}

#[tokio::test]
async fn what_is_described_is_served_and_nothing_else() {
    let server = Server::start(Kind::Native);
    let document = document(&server).await;
    for (path, methods) in operations(&document) {
        let url = path
            .replace("{id}", "demo")
            .replace("{path}", "sandbox/data.csv");
        for method in &methods {
            let operation = &document["paths"][&path][method.to_lowercase()];
            let method = method.parse().unwrap();
            // Without a key, so that nothing is done.
            let answer = ask(&server, method, &url).await;
            let status = answer.status().as_u16();
            let expected = match operation.get("security") {
                Some(_) => &[401][..],
                // Of /ready, while sandboxes are being made.
                None => &[200, 503],
            };
            assert!(expected.contains(&status), "{path}: {status}");
            let described = operation["responses"].as_object().unwrap();
            assert!(described.contains_key(&status.to_string()), "{path}");
        }
        let answer = ask(&server, Method::PATCH, &url).await;
        assert_eq!(answer.status(), StatusCode::METHOD_NOT_ALLOWED, "{path}");
        let allowed = answer.headers()[ALLOW].to_str().unwrap().split(", ");
        assert_eq!(allowed.map(str::to_owned).collect::<BTreeSet<_>>(), methods);
    }
    let answer = ask(&server, Method::GET, "/execute/no-such").await;
    assert_eq!(answer.status(), StatusCode::NOT_FOUND);
    server.stop();
}

#[tokio::test]
async fn the_page_needs_nothing_from_elsewhere() {
    let server = Server::start(Kind::Native);
    let page = ask(&server, Method::GET, "/docs").await;
    let policy = page.headers()[CONTENT_SECURITY_POLICY].to_str().unwrap();
    assert!(policy.starts_with("default-src 'none'; "), "{policy}");
    assert!(!policy.contains("unsafe"), "{policy}");
    let html = page.text().await.unwrap();
    // What the policy forbids would not work.
    for inline in ["<style", " style=", "javascript:", " onclick="] {
        assert!(!html.contains(inline), "{inline}");
    }
    assert!(!Regex::new("<script[^>]*>[^<]").unwrap().is_match(&html));
    let linked = Regex::new("(?:src|href)=\"([^\"]+)\"").unwrap();
    let parts: BTreeSet<_> = linked
        .captures_iter(&html)
        .map(|found| found[1].to_owned())
        .collect();
    let expected = ["docs.css", "docs.js", "openapi.json"];
    assert_eq!(parts, expected.map(str::to_owned).into());
    let mut texts = vec![html];
    for (part, kind) in
        expected
            .into_iter()
            .zip(["text/css", "text/javascript", "application/json"])
    {
        let answer = ask(&server, Method::GET, &format!("/{part}")).await;
        assert_eq!(answer.status(), StatusCode::OK, "{part}");
        let content_type = answer.headers()[CONTENT_TYPE].to_str().unwrap();
        assert!(content_type.starts_with(kind), "{part}: {content_type}");
        texts.push(answer.text().await.unwrap());
    }
    let host = Regex::new("(?i)[a-z]+://|\\burl\\(|@import|[\"']//").unwrap();
    for text in &texts {
        assert!(!host.is_match(text), "{:?}", host.find(text));
        assert!(!text.contains(KEY));
    }
    server.stop();
}
