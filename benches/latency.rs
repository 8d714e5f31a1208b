//! The latency of a request: `cargo bench --bench latency`, all of it or the named parts: `cargo bench --bench latency
//! -- node bun`.
//!
//! Prints the median and the 95th percentile of one small program over HTTP with keep-alive, on each backend:
//! ephemeral, in a session, as a session's first request, and ephemeral without a pool; each beside a bare start of the
//! same interpreter on the host, and a whole `isol8 run` of the native backend. Requests that take a sandbox are paced,
//! so that the pool can refill, as it can in service that is not overloaded. The memory of idle native sandboxes is
//! printed too: pages of their own, and pages that others use as well. The benchmark needs root, the interpreters, and
//! Docker with its images, as the black-box suite does.

#![allow(clippy::unwrap_used, clippy::expect_used)] // A benchmark that cannot measure stops.

#[allow(dead_code, unused_imports, unused_macros)] // The suite uses all of it.
#[path = "../tests/suite/harness.rs"]
mod harness;
mod times;

use std::collections::BTreeSet;
use std::fs;
use std::process::Command;
use std::time::{Duration, Instant};

use harness::{ISOL8, Kind, Server, sandboxed_processes, state_directory};
use isol8_client::{ExecutionRequest, RemoteIsol8, Runtime};
use times::Times;

const RUNS: usize = 100;

/// The percentile of slow requests that is printed.
const PERCENTILE: usize = 95;

/// Requests before those that are timed.
const WARM_UP: usize = 5;

/// Between two sandboxes that are made anew: longer than either backend takes for one.
const PACE_OF_NEW: Duration = Duration::from_millis(300);

/// The programs that are timed. Each prints `1`.
const PROGRAMS: [Program; 7] = [
    Program {
        name: "python",
        runtime: Runtime::Python,
        code: "print(1)",
        extension: ".py",
        interpreter: &["python3"],
        preload: "",
        pace: Duration::from_millis(10),
    },
    Program {
        name: "numpy",
        runtime: Runtime::Python,
        code: "import numpy; print(1)",
        extension: ".py",
        interpreter: &["python3"],
        preload: "numpy",
        pace: Duration::from_millis(10),
    },
    Program {
        name: "bash",
        runtime: Runtime::Bash,
        code: "echo 1",
        extension: ".sh",
        interpreter: &["bash"],
        preload: "",
        pace: Duration::from_millis(10),
    },
    Program {
        name: "node, CommonJS",
        runtime: Runtime::Node,
        code: "console.log(1)",
        extension: ".cjs",
        interpreter: &["node"],
        preload: "",
        pace: Duration::from_millis(100),
    },
    Program {
        name: "node, ESM",
        runtime: Runtime::Node,
        code: "console.log(1)",
        extension: ".mjs",
        interpreter: &["node"],
        preload: "",
        pace: Duration::from_millis(100),
    },
    Program {
        name: "bun",
        runtime: Runtime::Bun,
        code: "console.log(1)",
        extension: ".ts",
        interpreter: &["bun", "run"],
        preload: "",
        pace: Duration::from_millis(60),
    },
    Program {
        name: "deno",
        runtime: Runtime::Deno,
        code: "console.log(1)",
        extension: ".mts",
        interpreter: &["deno", "run", "--allow-all"],
        preload: "",
        pace: Duration::from_millis(300),
    },
];

fn main() {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    // Cargo adds options of its own.
    let named: Vec<String> = std::env::args()
        .skip(1)
        .filter(|name| !name.starts_with('-'))
        .collect();
    let is_named = |program: &&Program| {
        named.is_empty() || named.iter().any(|name| program.name.starts_with(name))
    };
    for program in PROGRAMS.iter().filter(is_named) {
        let bare = program.bare_starts();
        println!("{:<42} {bare}", format!("bare {}", program.name));
        let command = program.commands();
        println!(
            "{:<42} {command}",
            format!("native {}, isol8 run", program.name)
        );
        for kind in [Kind::Native, Kind::Docker] {
            runtime.block_on(measure(kind, program, bare.median));
        }
    }
}

struct Program {
    name: &'static str,
    runtime: Runtime,
    code: &'static str,
    extension: &'static str,
    interpreter: &'static [&'static str],
    preload: &'static str,
    /// Between two ephemeral requests: longer than it takes until the sandbox is clean and an
    /// interpreter there again.
    pace: Duration,
}

impl Program {
    fn bare_starts(&self) -> Times {
        let directory = tempfile::tempdir().unwrap();
        let script = directory.path().join(format!("main{}", self.extension));
        fs::write(&script, self.code).unwrap();
        let start = || {
            let start = Instant::now();
            let output = Command::new(self.interpreter[0])
                .env("PATH", "/usr/local/bin:/usr/bin:/bin")
                .args(&self.interpreter[1..])
                .arg(&script)
                .output()
                .unwrap();
            assert_eq!(output.stdout, b"1\n");
            start.elapsed()
        };
        Times::of((0..RUNS).map(|_| start()).collect(), PERCENTILE)
    }

    /// Whole processes of `isol8 run` on the native backend, without a server.
    fn commands(&self) -> Times {
        let state = state_directory();
        let run = || {
            let start = Instant::now();
            let output = Command::new(ISOL8)
                .args(["run", "--backend", "native", "-e", self.code])
                .args(["-r", self.runtime.name()])
                .env("ISOL8_STATE_DIR", state.path())
                .output()
                .unwrap();
            assert_eq!(output.stdout, b"1\n");
            start.elapsed()
        };
        Times::of((0..RUNS).map(|_| run()).collect(), PERCENTILE)
    }

    /// With a pool that keeps this many clean sandboxes, or none at all.
    fn server(&self, kind: Kind, clean: usize) -> Server {
        let dirty = if clean == 0 { 0 } else { 4 };
        let image = match (kind, self.preload) {
            (Kind::Docker, "numpy") => "image = \"isol8-test:python-numpy\"\n",
            _ => "",
        };
        let preload = match self.preload {
            "" => String::new(),
            module => format!("preload = [\"{module}\"]\n"),
        };
        let runtime = self.runtime;
        let config = format!(
            "[runtimes.{runtime}]\npoolSize = {{ clean = {clean}, dirty = {dirty} }}\n{image}{preload}"
        );
        Server::configured(kind, &config)
    }

    async fn run(&self, client: &RemoteIsol8) -> Duration {
        let mut request = ExecutionRequest::new(self.runtime);
        request.code = Some(self.code.to_owned());
        request.file_extension = Some(self.extension.to_owned());
        let start = Instant::now();
        let result = client.execute(request).await.unwrap();
        let took = start.elapsed();
        assert_eq!(result.stdout, "1", "{}", result.stderr);
        took
    }
}

async fn measure(kind: Kind, program: &Program, bare: Duration) {
    let show = |name: &str, times: Times| {
        let ratio = times.median.as_secs_f64() / bare.as_secs_f64();
        let name = format!("{} {} {name}", kind.name(), program.name);
        println!("{name:<42} {times}  ratio to bare {ratio:.2}");
    };
    let server = program.server(kind, 2);
    if kind == Kind::Native {
        tokio::time::sleep(Duration::from_secs(2)).await;
        show_memory(&server);
    }
    show(
        "ephemeral",
        time(program, &server.client(), program.pace).await,
    );
    let session = server.session("latency");
    show("session", time(program, &session, Duration::ZERO).await);
    show("session, first request", time_first(program, &server).await);
    server.stop();
    let server = program.server(kind, 0);
    show(
        "ephemeral, no pool",
        time(program, &server.client(), Duration::ZERO).await,
    );
    server.stop();
}

/// Prints the memory of each process in the idle sandboxes of a native server.
fn show_memory(server: &Server) {
    // A process is in one cgroup for each controller.
    let processes = sandboxed_processes(server.kind, server.state());
    for process in BTreeSet::from_iter(processes) {
        let rollup = fs::read_to_string(format!("/proc/{process}/smaps_rollup"));
        let name = fs::read_to_string(format!("/proc/{process}/comm"));
        // The process may have ended meanwhile.
        let (Ok(rollup), Ok(name)) = (rollup, name) else {
            continue;
        };
        let sum = |kind: &str| -> u64 {
            let lines = rollup.lines().filter(|line| line.starts_with(kind));
            lines
                .filter_map(|line| line.split_whitespace().nth(1)?.parse::<u64>().ok())
                .sum()
        };
        println!(
            "  waiting: {:<15} private {:6} kB, shared {:6} kB",
            name.trim(),
            sum("Private_"),
            sum("Shared_")
        );
    }
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
    Times::of(times, PERCENTILE)
}

/// Times the first request of each of many sessions.
async fn time_first(program: &Program, server: &Server) -> Times {
    let client = server.client();
    let mut times = Vec::new();
    for run in 0..RUNS {
        tokio::time::sleep(PACE_OF_NEW).await;
        // The same connections as before.
        let session = client
            .clone()
            .with_session(format!("first-{run}").parse().unwrap());
        times.push(program.run(&session).await);
        session.stop().await.unwrap();
    }
    Times::of(times, PERCENTILE)
}
