//! How fast files move: `cargo bench --bench files`.
//!
//! Prints, for each backend and a session of Python, the median rate of 256 MB through the raw routes with
//! what the server's memory grew by meanwhile, and the median and 90th percentile of the time that 10 MB
//! take through `POST /file` and `GET /file`, base64 in JSON. Each is done 9 (or `FILE_RUNS`) times.
//! Needs what the black-box suite needs: root, the interpreters, and Docker with its images.

#![allow(clippy::unwrap_used, clippy::expect_used)] // A benchmark that cannot measure stops.

#[allow(dead_code, unused_imports, unused_macros)] // The suite uses all of it.
#[path = "../tests/suite/harness.rs"]
mod harness;
mod times;

use std::fs;
use std::time::{Duration, Instant};

use actix_web::web::Bytes;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use futures::future::LocalBoxFuture;
use harness::{KEY, Kind, Server, python};
use reqwest::{Client, RequestBuilder};
use serde_json::{Value, json};
use times::Times;

/// The percentile of slow requests that is printed.
const PERCENTILE: usize = 90;

/// Bytes through the raw routes.
const RAW: usize = 256 << 20;

/// Bytes through the routes with JSON.
const ENCODED: usize = 10_000_000;

/// `/sandbox` holds the raw file twice while it is replaced.
const CONFIG: &str = "[defaults]\nsandboxSize = \"1g\"\nmemoryLimit = \"1g\"\n";

const SESSION: &str = "files";

fn main() {
    let runs = std::env::var("FILE_RUNS").map_or(9, |text| text.parse().unwrap());
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    for kind in [Kind::Native, Kind::Docker] {
        runtime.block_on(measure(kind, runs));
    }
}

async fn measure(kind: Kind, runs: usize) {
    let server = Server::configured(kind, CONFIG);
    let made = server.session(SESSION).execute(python("print(1)")).await;
    assert_eq!(made.unwrap().stdout, "1");
    let http = Client::new();
    for (name, direction) in [("PUT", upload as Transfer), ("GET", download)] {
        fs::write(format!("/proc/{}/clear_refs", server.pid()), "5").unwrap();
        let before = server.memory("VmHWM");
        let times = repeated(runs, &server, &http, direction).await;
        let grown = (server.memory("VmHWM") - before) as f64 / 1e6;
        let rate = RAW as f64 / 1e6 / times.median.as_secs_f64();
        let name = format!("{} {name}, 256 MB raw", kind.name());
        println!("{name:<36} {rate:7.0} MB/s  server grew by {grown:.1} MB");
    }
    for (name, direction) in [("POST", post as Transfer), ("GET", get)] {
        let times = repeated(runs, &server, &http, direction).await;
        let name = format!("{} {name}, 10 MB in JSON", kind.name());
        println!("{name:<36} {times}");
    }
    server.stop();
}

type Transfer = fn(Client, String) -> LocalBoxFuture<'static, Duration>;

async fn repeated(runs: usize, server: &Server, http: &Client, transfer: Transfer) -> Times {
    let base = format!("http://{}", server.address);
    let mut times = Vec::new();
    // The first makes the connection and the file.
    for run in 0..=runs {
        let took = transfer(http.clone(), base.clone()).await;
        if run > 0 {
            times.push(took);
        }
    }
    Times::of(times, PERCENTILE)
}

fn raw_url(base: &str) -> String {
    format!("{base}/session/{SESSION}/files/sandbox/raw")
}

fn upload(http: Client, base: String) -> LocalBoxFuture<'static, Duration> {
    Box::pin(async move {
        let body = Bytes::from(vec![7_u8; RAW]);
        let start = Instant::now();
        sent(http.put(raw_url(&base)).body(body)).await;
        start.elapsed()
    })
}

fn download(http: Client, base: String) -> LocalBoxFuture<'static, Duration> {
    Box::pin(async move {
        let start = Instant::now();
        let mut response = sent(http.get(raw_url(&base))).await;
        let mut received = 0;
        while let Some(chunk) = response.chunk().await.unwrap() {
            received += chunk.len();
        }
        assert_eq!(received, RAW);
        start.elapsed()
    })
}

fn post(http: Client, base: String) -> LocalBoxFuture<'static, Duration> {
    Box::pin(async move {
        let content = STANDARD.encode(vec![7_u8; ENCODED]);
        let body = json!({"sessionId": SESSION, "path": "/sandbox/encoded", "content": content});
        let body = body.to_string();
        let start = Instant::now();
        sent(http.post(format!("{base}/file")).body(body)).await;
        start.elapsed()
    })
}

fn get(http: Client, base: String) -> LocalBoxFuture<'static, Duration> {
    Box::pin(async move {
        let url = format!("{base}/file?sessionId={SESSION}&path=/sandbox/encoded");
        let start = Instant::now();
        let body = sent(http.get(url)).await.bytes().await.unwrap();
        let took = start.elapsed();
        let file: Value = serde_json::from_slice(&body).unwrap();
        let content = STANDARD.decode(file["content"].as_str().unwrap()).unwrap();
        assert_eq!(content.len(), ENCODED);
        took
    })
}

async fn sent(request: RequestBuilder) -> reqwest::Response {
    let response = request.bearer_auth(KEY).send().await.unwrap();
    response.error_for_status().unwrap()
}
