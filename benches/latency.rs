//! What one request costs: `cargo bench --bench latency`.
//!
//! Prints the median and the 95th percentile of one small program over HTTP with keep-alive, on each
//! backend: ephemeral, in a session, as a session's first request, and ephemeral without a pool; each
//! beside a bare start of the same interpreter on the host. Requests that take a sandbox are paced, so
//! that the pool can refill, as it can in service that is not overloaded.
//! Needs what the black-box suite needs: root, and Docker with its images.

#![allow(clippy::unwrap_used, clippy::expect_used)] // A benchmark that cannot measure stops.

#[allow(dead_code, unused_imports, unused_macros)] // The suite uses all of it.
#[path = "../tests/suite/harness.rs"]
mod harness;

use std::process::Command;
use std::time::{Duration, Instant};

use harness::{Kind, Server, bash, python};
use isol8_client::{ExecutionRequest, RemoteIsol8};

const RUNS: usize = 100;

/// Requests before those that are timed.
const WARM_UP: usize = 5;

/// Between two ephemeral requests; longer than either backend takes to make a sandbox clean.
const PACE: Duration = Duration::from_millis(60);

/// Every sandbox is made when it is asked for.
const NO_POOL: &str = "[runtimes.python]\npoolSize = { clean = 0, dirty = 0 }\n\
                       [runtimes.bash]\npoolSize = { clean = 0, dirty = 0 }\n";

fn main() {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    let programs = [
        Program::new("python", "python3", python("print(1)")),
        Program::new("bash", "bash", bash("echo 1")),
    ];
    for program in programs {
        let bare = Times::of((0..RUNS).map(|_| program.bare_start()).collect());
        println!("{:<36} {bare}", format!("bare {}", program.interpreter));
        for kind in [Kind::Native, Kind::Docker] {
            runtime.block_on(measure(kind, &program, bare.median));
        }
    }
}

/// What is timed; it prints `1`.
struct Program {
    runtime: &'static str,
    interpreter: &'static str,
    request: ExecutionRequest,
}

impl Program {
    fn new(runtime: &'static str, interpreter: &'static str, request: ExecutionRequest) -> Self {
        Self {
            runtime,
            interpreter,
            request,
        }
    }

    fn bare_start(&self) -> Duration {
        let code = self.request.code.as_ref().unwrap();
        let start = Instant::now();
        let output = Command::new(self.interpreter)
            .env("PATH", "/usr/local/bin:/usr/bin:/bin")
            .args(["-c", code])
            .output()
            .unwrap();
        assert_eq!(output.stdout, b"1\n");
        start.elapsed()
    }

    async fn run(&self, client: &RemoteIsol8) -> Duration {
        let start = Instant::now();
        let result = client.execute(self.request.clone()).await.unwrap();
        let took = start.elapsed();
        assert_eq!(result.stdout, "1", "{}", result.stderr);
        took
    }
}

async fn measure(kind: Kind, program: &Program, bare: Duration) {
    let show = |name: &str, times: Times| {
        let ratio = times.median.as_secs_f64() / bare.as_secs_f64();
        let name = format!("{} {} {name}", kind.name(), program.runtime);
        println!("{name:<36} {times}  ratio to bare {ratio:.2}");
    };
    let server = Server::start(kind);
    show("ephemeral", time(program, &server.client(), PACE).await);
    let session = server.session("latency");
    show("session", time(program, &session, Duration::ZERO).await);
    show("session, first request", time_first(program, &server).await);
    server.stop();
    let server = Server::configured(kind, NO_POOL);
    show(
        "ephemeral, no pool",
        time(program, &server.client(), PACE).await,
    );
    server.stop();
}

/// Times requests of one client, after a few that warm everything up.
async fn time(program: &Program, client: &RemoteIsol8, pace: Duration) -> Times {
    let mut times = Vec::new();
    for run in 0..RUNS + WARM_UP {
        tokio::time::sleep(pace).await;
        let took = program.run(client).await;
        if run >= WARM_UP {
            times.push(took);
        }
    }
    Times::of(times)
}

/// Times the first request of each of many sessions.
async fn time_first(program: &Program, server: &Server) -> Times {
    let client = server.client();
    let mut times = Vec::new();
    for run in 0..RUNS {
        tokio::time::sleep(PACE).await;
        // The same connections as before.
        let session = client
            .clone()
            .with_session(format!("first-{run}").parse().unwrap());
        times.push(program.run(&session).await);
        session.stop().await.unwrap();
    }
    Times::of(times)
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
