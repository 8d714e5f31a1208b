//! How many runs a second, by the number of callers: `cargo bench --bench throughput`, or of some rows only with
//! `-- native-secure …`.
//!
//! Callers run `print(n)` without a session, each as soon as its last answer came, for 10 seconds (or
//! `THROUGHPUT_SECONDS`) after a warm-up, with the default configuration: on each backend with
//! `poolStrategy = "fast"`, and on native with `"secure"`. Every answer is checked. Needs what the black-box suite
//! needs: root, and Docker with its images.

#![allow(clippy::unwrap_used, clippy::expect_used)] // A benchmark that cannot measure stops.

#[allow(dead_code, unused_imports, unused_macros)] // The suite uses all of it.
#[path = "../tests/suite/harness.rs"]
mod harness;

use std::fmt;
use std::time::{Duration, Instant};

use futures::future::join_all;
use harness::{Kind, Server, python};
use isol8_client::RemoteIsol8;

const CALLERS: [usize; 4] = [1, 4, 16, 64];

const WARM_UP: Duration = Duration::from_secs(3);

fn main() {
    let seconds = std::env::var("THROUGHPUT_SECONDS").map_or(10, |text| text.parse().unwrap());
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
        let config = format!("poolStrategy = {strategy:?}\n");
        let server = Server::configured(kind, &config);
        for callers in CALLERS {
            let row = runtime.block_on(measure(&server, callers, length));
            println!("{name:<14} {callers:>3} callers {row}");
        }
        server.stop();
    }
}

/// Results of all callers.
struct Row {
    /// Runs a second.
    rate: f64,
    /// Durations of single runs, in order.
    times: Vec<Duration>,
}

impl fmt::Display for Row {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let at = |hundredth: usize| self.times[(self.times.len() - 1) * hundredth / 100];
        let (median, slow) = (at(50).as_secs_f64() * 1e3, at(99).as_secs_f64() * 1e3);
        let rate = self.rate;
        write!(
            f,
            "{rate:7.1} runs/s  p50 {median:7.1} ms  p99 {slow:7.1} ms"
        )
    }
}

async fn measure(server: &Server, callers: usize, length: Duration) -> Row {
    let clients: Vec<_> = (0..callers).map(|_| server.client()).collect();
    let all_run_until = |end| join_all(clients.iter().map(move |client| run_until(client, end)));
    all_run_until(Instant::now() + WARM_UP).await;
    let start = Instant::now();
    let mut times = all_run_until(start + length).await.concat();
    // As many as the benchmark counts fit a float.
    #[allow(clippy::cast_precision_loss)]
    let rate = times.len() as f64 / start.elapsed().as_secs_f64();
    times.sort_unstable();
    Row { rate, times }
}

async fn run_until(client: &RemoteIsol8, end: Instant) -> Vec<Duration> {
    let mut times = Vec::new();
    while Instant::now() < end {
        let number = times.len();
        let start = Instant::now();
        let result = client.execute(python(&format!("print({number})"))).await;
        let result = result.unwrap();
        assert_eq!(
            (result.stdout, result.exit_code),
            (number.to_string(), 0),
            "{}",
            result.stderr
        );
        times.push(start.elapsed());
    }
    times
}
