//! How many runs a second: `cargo bench --bench throughput`, or of some only with `-- native-secure …`.
//!
//! Eight clients run `print(n)` without a session, each as soon as its last answer came and for 30
//! seconds (or `THROUGHPUT_SECONDS`), on each backend with `poolStrategy = "fast"`, and on native with
//! `"secure"`. Every answer is checked. Needs what the black-box suite needs: root, and Docker with its images.

#![allow(clippy::unwrap_used, clippy::expect_used)] // A benchmark that cannot measure stops.

#[allow(dead_code, unused_imports, unused_macros)] // The suite uses all of it.
#[path = "../tests/suite/harness.rs"]
mod harness;

use std::time::{Duration, Instant};

use futures::future::join_all;
use harness::{Kind, Server, python};
use isol8_client::RemoteIsol8;

const CLIENTS: usize = 8;

/// A sandbox for each client, and one to take its place while it is made clean.
const POOL: &str = "[runtimes.python]\npoolSize = { clean = 8, dirty = 8 }\n";

fn main() {
    let seconds = std::env::var("THROUGHPUT_SECONDS").map_or(30, |text| text.parse().unwrap());
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    let length = Duration::from_secs(seconds);
    let named: Vec<String> = std::env::args()
        .skip(1)
        .filter(|name| !name.starts_with('-'))
        .collect();
    for (kind, strategy) in [
        (Kind::Native, "fast"),
        (Kind::Docker, "fast"),
        (Kind::Native, "secure"),
    ] {
        let name = format!("{}-{strategy}", kind.name());
        if !named.is_empty() && !named.contains(&name) {
            continue;
        }
        let rate = runtime.block_on(measure(kind, strategy, length));
        println!("{name:<16} {rate:7.1} runs/s with {CLIENTS} clients");
    }
}

async fn measure(kind: Kind, strategy: &str, length: Duration) -> f64 {
    let config = format!("poolStrategy = {strategy:?}\n{POOL}");
    let server = Server::configured(kind, &config);
    let clients: Vec<_> = (0..CLIENTS).map(|_| server.client()).collect();
    let warm_up = Instant::now() + Duration::from_secs(3);
    join_all(clients.iter().map(|client| run_until(client, warm_up))).await;
    let start = Instant::now();
    let runs = join_all(
        clients
            .iter()
            .map(|client| run_until(client, start + length)),
    )
    .await;
    let rate = f64::from(runs.iter().sum::<u32>()) / start.elapsed().as_secs_f64();
    server.stop();
    rate
}

async fn run_until(client: &RemoteIsol8, end: Instant) -> u32 {
    let mut runs = 0;
    while Instant::now() < end {
        let result = client.execute(python(&format!("print({runs})"))).await;
        let result = result.unwrap();
        assert_eq!(
            (result.stdout, result.exit_code),
            (runs.to_string(), 0),
            "{}",
            result.stderr
        );
        runs += 1;
    }
    runs
}
