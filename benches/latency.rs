//! What one request costs: `cargo bench --bench latency`.
//!
//! Prints the median and the 95th percentile of `print(1)` over HTTP with keep-alive, ephemeral
//! and in a session, on each backend, beside a bare start of the same interpreter on the host. The
//! requests are paced, so that the pool can refill, as it can in service that is not overloaded.
//! Needs what the black-box suite needs: root, and Docker with its images.

#![allow(clippy::unwrap_used, clippy::expect_used)] // A benchmark that cannot measure stops.

#[allow(dead_code, unused_imports, unused_macros)] // The suite uses all of it.
#[path = "../tests/suite/harness.rs"]
mod harness;

use std::process::Command;
use std::time::{Duration, Instant};

use harness::{Kind, Server, python};
use isol8_client::RemoteIsol8;

const RUNS: usize = 100;

/// Between two ephemeral requests; longer than either backend takes to make a sandbox clean.
const PACE: Duration = Duration::from_millis(60);

fn main() {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    let bare = Times::of((0..RUNS).map(|_| bare_start()).collect());
    println!("{:<28} {bare}", "bare python3 -c 'print(1)'");
    for kind in [Kind::Native, Kind::Docker] {
        runtime.block_on(measure(kind, bare.median));
    }
}

async fn measure(kind: Kind, bare: Duration) {
    let server = Server::start(kind);
    let ephemeral = time(&server.client(), PACE).await;
    let persistent = time(&server.session("latency"), Duration::ZERO).await;
    let backend = kind.name();
    for (name, times) in [("ephemeral", ephemeral), ("persistent", persistent)] {
        let ratio = times.median.as_secs_f64() / bare.as_secs_f64();
        println!(
            "{:<28} {times}  ratio to bare {ratio:.2}",
            format!("{backend} {name}")
        );
    }
    server.stop();
}

/// Times requests of one client, after a few that warm everything up.
async fn time(client: &RemoteIsol8, pace: Duration) -> Times {
    let mut times = Vec::new();
    for run in 0..RUNS + 5 {
        tokio::time::sleep(pace).await;
        let start = Instant::now();
        let result = client.execute(python("print(1)")).await.unwrap();
        let took = start.elapsed();
        assert_eq!(result.stdout, "1", "{}", result.stderr);
        if run >= 5 {
            times.push(took);
        }
    }
    Times::of(times)
}

fn bare_start() -> Duration {
    let start = Instant::now();
    let output = Command::new("/usr/bin/python3")
        .args(["-c", "print(1)"])
        .output()
        .unwrap();
    assert_eq!(output.stdout, b"1\n");
    start.elapsed()
}

struct Times {
    median: Duration,
    p95: Duration,
}

impl Times {
    fn of(mut times: Vec<Duration>) -> Self {
        times.sort();
        Self {
            median: times[times.len() / 2],
            p95: times[times.len() * 95 / 100],
        }
    }
}

impl std::fmt::Display for Times {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let ms = |time: Duration| time.as_secs_f64() * 1e3;
        write!(
            f,
            "p50 {:7.2} ms  p95 {:7.2} ms",
            ms(self.median),
            ms(self.p95)
        )
    }
}
