//! How soon a program is heard: `cargo bench --bench stream`.
//!
//! Prints the median and the 99th percentile of the time from a request to the first byte of a program that prints at
//! once, of 500 (or `STREAM_RUNS`), on each backend with a warm pool: as server-sent events, over a WebSocket from the
//! `execute` message and from the handshake, and at a terminal, whose interpreter is started afresh. The test
//! `a_slow_client_slows_its_run_and_costs_no_memory` measures the cost of a slow reader. The benchmark needs root, the
//! interpreters, and Docker with its images, as the black-box suite does.

#![allow(clippy::unwrap_used, clippy::expect_used)] // A benchmark that cannot measure stops.

#[allow(dead_code, unused_imports, unused_macros)] // The suite uses all of it.
#[path = "../tests/suite/harness.rs"]
mod harness;
#[allow(dead_code)] // As above.
#[path = "../tests/suite/stream/socket.rs"]
mod socket;
mod times;

use std::time::{Duration, Instant};

use harness::{KEY, Kind, Server};
use isol8_api::{EventKind, StreamEvent};
use serde_json::{Value, json};
use socket::Socket;
use times::Times;

/// The percentile of slow requests that is printed.
const PERCENTILE: usize = 99;

/// Requests before those that are timed.
const WARM_UP: usize = 10;

/// Between two requests: longer than it takes until the sandbox is clean and an interpreter there again.
const PACE: Duration = Duration::from_millis(20);

/// Runtimes, and what prints `1` in them.
const PROGRAMS: [(&str, &str); 2] = [("python", "print(1)"), ("bash", "echo 1")];

/// How a program is followed.
#[derive(Clone, Copy)]
enum Way {
    Events,
    WebSocket,
    Handshake,
    Terminal,
}

impl Way {
    const ALL: [Self; 4] = [
        Self::Events,
        Self::WebSocket,
        Self::Handshake,
        Self::Terminal,
    ];

    fn name(self) -> &'static str {
        match self {
            Self::Events => "server-sent events",
            Self::WebSocket => "WebSocket",
            Self::Handshake => "WebSocket with handshake",
            Self::Terminal => "WebSocket, at a terminal",
        }
    }
}

fn main() {
    let runs = std::env::var("STREAM_RUNS").map_or(500, |text| text.parse().unwrap());
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    for kind in [Kind::Native, Kind::Docker] {
        for (name, code) in PROGRAMS {
            runtime.block_on(measure(kind, name, code, runs));
        }
    }
}

async fn measure(kind: Kind, runtime: &str, code: &str, runs: usize) {
    let config = format!("[runtimes.{runtime}]\npoolSize = {{ clean = 2, dirty = 4 }}\n");
    let server = Server::configured(kind, &config);
    // Chooses the TLS provider, as it does for the suite's clients.
    drop(server.client());
    let http = reqwest::Client::new();
    let request = json!({"runtime": runtime, "code": code});
    for way in Way::ALL {
        let mut times = Vec::new();
        for run in 0..runs + WARM_UP {
            tokio::time::sleep(PACE).await;
            let took = match way {
                Way::Events => events(&server, &http, &request).await,
                _ => web_socket(&server, &request, way).await,
            };
            if run >= WARM_UP {
                times.push(took);
            }
        }
        let name = format!("{} {runtime}, {}", kind.name(), way.name());
        println!("{name:<42} first byte {}", Times::of(times, PERCENTILE));
    }
    server.stop();
}

/// Over a connection that is kept.
async fn events(server: &Server, http: &reqwest::Client, request: &Value) -> Duration {
    let url = format!("http://{}/execute/stream", server.address);
    let body = json!({"request": request}).to_string();
    let start = Instant::now();
    let sending = http.post(url).bearer_auth(KEY).body(body).send();
    let mut response = sending.await.unwrap();
    let first = response.chunk().await.unwrap().unwrap();
    let took = start.elapsed();
    assert!(first.starts_with(b"data: {\"type\":\"stdout\",\"data\":\"1\\n"));
    while response.chunk().await.unwrap().is_some() {}
    took
}

async fn web_socket(server: &Server, request: &Value, way: Way) -> Duration {
    let is_terminal = matches!(way, Way::Terminal);
    let mut message = json!({"type": "execute", "request": request});
    message["request"]["tty"] = json!(is_terminal);
    let connected = Instant::now();
    let mut socket = Socket::open(server).await;
    let asked = Instant::now();
    socket.send(message).await;
    let first = socket.next().await.unwrap();
    let heard = Instant::now();
    let shown = if is_terminal { "1\r\n" } else { "1\n" };
    assert_eq!(
        (first.kind, first.data.as_str()),
        (EventKind::Stdout, shown)
    );
    let rest: Vec<StreamEvent> = socket.rest().await;
    assert_eq!(rest.last().unwrap().data, "0");
    match way {
        Way::Handshake => heard - connected,
        _ => heard - asked,
    }
}
