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

/// Directory in which `scripts/install-dependencies` puts the tools that are used here.
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

/// Runs one of the tools, and fails with its output if the tool fails.
async fn passes(arguments: Vec<String>) {
    let mut tool = Command::new("/usr/bin/python3");
    tool.args(&arguments).env("PYTHONPATH", TOOLS);
    // The tools leave files in their working directory.
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
    // The session that the document's examples name.
    let session = server.session("demo");
    session.execute(python("1")).await.unwrap();
    session.put_file("/sandbox/data.csv", "a,b").await.unwrap();
    let ready = async || ask(&server, Method::GET, "/ready").await.status() == StatusCode::OK;
    let deadline = Instant::now() + PATIENCE;
    while !ready().await {
        assert!(Instant::now() < deadline, "the server is never ready");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    // Operations that end sessions come last, so that the rest finds that session, and with them the one that makes
    // many.
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
                // For /ready, while sandboxes are being made.
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
async fn the_servers_address_leads_to_the_page() {
    let server = Server::start(Kind::Native);
    let answer = ask(&server, Method::GET, "/").await;
    assert_eq!(answer.url().path(), "/docs");
    assert_eq!(answer.status(), StatusCode::OK);
    assert!(!operations(&document(&server).await).contains_key("/"));
    server.stop();
}

/// Writes the samples of every operation into files, as the page makes them: `NAME.sh`, `NAME.py` and `NAME.mjs`.
const WRITE_SAMPLES: &str = r#"
import { readFileSync, writeFileSync } from "node:fs";
import { samples } from "./docs-samples.mjs";
const [base, library] = process.argv.slice(2);
const { paths } = JSON.parse(readFileSync("openapi.json", "utf8"));
const run = { json: { request: { runtime: "bash", code: `echo "it's" 42` }, options: { timeoutMs: 9000 } } };
const examples = { "{id}": "demo", "{path}": "sandbox/data.csv" };
for (const [path, methods] of Object.entries(paths)) {
    for (const [method, operation] of Object.entries(methods)) {
        const { operationId } = operation;
        const query = { listFiles: "?path=%2Fsandbox", readFile: "?sessionId=demo&path=%2Fsandbox%2Fdata.csv" };
        const content = operation.requestBody?.content;
        const body = content && (content["application/json"] ? { json: content["application/json"].example } : { file: "data.csv" });
        const isRun = path.startsWith("/execute");
        const made = samples({
            operation: operationId,
            method: method.toUpperCase(),
            url: base + path.replace(/\{\w+\}/g, (name) => examples[name]) + (query[operationId] ?? ""),
            base,
            needsKey: Boolean(operation.security),
            isStream: operationId === "stream",
            id: "demo",
            path: operationId === "listFiles" ? "/sandbox" : "/sandbox/data.csv",
            body: isRun ? run : body,
        });
        const endings = { curl: "sh", Python: "py", TypeScript: "mjs" };
        for (const [name, text] of Object.entries(made)) {
            writeFileSync(`${operationId}.${endings[name]}`, text.replace("isol8-client", library));
        }
    }
}
"#;

/// Runs the samples, each by itself, and prints the names of those that fail, with what they printed.
const RUN_SAMPLES: &str = r#"
run() {
    case $1 in
        *.sh) sed 's/^curl /curl --fail --silent --show-error /' "$1" | bash ;;
        *.py) "$PYTHON" "$1" ;;
        *) node "$1" ;;
    esac
}
# What ends sessions comes last.
for sample in $(ls *.sh *.py *.mjs | grep -v docs-samples | grep -v write.mjs | sort -t. -k1,1 | grep -v -e deleteSession -e cleanup)     deleteSession.{sh,py,mjs} cleanup.{sh,py,mjs}; do
    if ! output=$(run "$sample" 2>&1); then
        printf '%s failed: %s\n%s\n' "$sample" "$output" "$(cat "$sample")"
    fi
    case $sample in
        execute.* | stream.* | websocket.*) [[ $output == *"it's 42"* ]] || printf '%s: %s\n' "$sample" "$output" ;;
    esac
done
"#;

#[tokio::test(flavor = "multi_thread")]
async fn the_samples_of_every_operation_run() {
    let clients = concat!(env!("CARGO_MANIFEST_DIR"), "/clients");
    let server = Server::start(Kind::Native);
    let session = server.session("demo");
    session.execute(python("1")).await.unwrap();
    session.put_file("/sandbox/data.csv", "a,b").await.unwrap();
    let directory = tempfile::tempdir().unwrap();
    let write = |name: &str, text: &str| fs::write(directory.path().join(name), text).unwrap();
    let samples = ask(&server, Method::GET, "/docs-samples.js").await;
    write("docs-samples.mjs", &samples.text().await.unwrap());
    write("openapi.json", &document(&server).await.to_string());
    write("data.csv", "a,b");
    write("write.mjs", WRITE_SAMPLES);

    let run = |program: &str, arguments: &[&str]| {
        let mut command = Command::new(program);
        command.args(arguments).current_dir(&directory);
        command.env("ISOL8_API_KEY", KEY);
        command.env("PYTHON", format!("{clients}/python/.venv/bin/python"));
        command.env("PYTHONPATH", format!("{clients}/python/src"));
        let output = command.output().unwrap();
        let text = [output.stdout, output.stderr].concat();
        String::from_utf8_lossy(&text).into_owned()
    };
    let library = directory.path().join("client");
    let compiler = format!("{clients}/typescript/node_modules/typescript/bin/tsc");
    let project = format!("{clients}/typescript");
    let library = library.to_str().unwrap();
    let compiled = run(
        "node",
        &[&compiler, "--project", &project, "--outDir", library],
    );
    assert_eq!(compiled, "");
    write("client/package.json", r#"{"type": "module"}"#);
    std::os::unix::fs::symlink(
        format!("{clients}/typescript/node_modules"),
        directory.path().join("client/node_modules"),
    )
    .unwrap();
    let base = format!("http://{}", server.address);
    let written = run(
        "node",
        &["write.mjs", &base, &format!("{library}/index.js")],
    );
    assert_eq!(written, "");
    let failed = tokio::task::block_in_place(|| run("bash", &["-c", RUN_SAMPLES]));
    assert_eq!(failed, "");
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
    // Attributes that the policy forbids would not work.
    for inline in ["<style", " style=", "javascript:", " onclick="] {
        assert!(!html.contains(inline), "{inline}");
    }
    assert!(!Regex::new("<script[^>]*>[^<]").unwrap().is_match(&html));
    let linked = Regex::new("(?:src|href)=\"([^\"]+)\"").unwrap();
    let parts: BTreeSet<_> = linked
        .captures_iter(&html)
        .map(|found| found[1].to_owned())
        .collect();
    let kinds = BTreeMap::from([
        ("docs-samples.js", "text/javascript"),
        ("docs.css", "text/css"),
        ("docs.js", "text/javascript"),
        ("openapi.json", "application/json"),
    ]);
    assert_eq!(parts, kinds.keys().map(|part| (*part).to_owned()).collect());
    let described = operations(&document(&server).await);
    let mut texts = vec![html];
    for (part, kind) in kinds {
        let answer = ask(&server, Method::GET, &format!("/{part}")).await;
        assert_eq!(answer.status(), StatusCode::OK, "{part}");
        let content_type = answer.headers()[CONTENT_TYPE].to_str().unwrap();
        assert!(content_type.starts_with(kind), "{part}: {content_type}");
        texts.push(answer.text().await.unwrap());
        let is_asset = part.starts_with("docs");
        assert_ne!(
            described.contains_key(&format!("/{part}")),
            is_asset,
            "{part}"
        );
    }
    let host = Regex::new("(?i)[a-z]+://|\\burl\\(|@import|[\"']//").unwrap();
    for text in &texts {
        assert!(!host.is_match(text), "{:?}", host.find(text));
        assert!(!text.contains(KEY));
    }
    server.stop();
}
