//! Measures the guest: the time until it accepts connections, its memory, and the time of runs.
//!
//! `cargo bench -p isol8-guest`, run as root, measures the guest that cargo built for the benchmark.

#![allow(clippy::unwrap_used)] // a measurement that cannot go on should end at once
#![allow(clippy::expect_used)] // as above

#[path = "../tests/support/mod.rs"]
mod support;

use std::os::unix::net::UnixStream;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use isol8_protocol::Runtime;
use nix::sched::CloneFlags;
use support::{Sandbox, cell, command, finish, python};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

fn report(what: &str, mut times: Vec<Duration>) {
    times.sort();
    let at = |percent: usize| times[(times.len() - 1) * percent / 100].as_secs_f64() * 1000.0;
    println!("{what:<44} p50 {:8.3} ms   p95 {:8.3} ms", at(50), at(95));
}

/// Returns the time from the start of the process, as PID 1 of a new namespace, to its first connection.
fn start_once() -> Duration {
    let directory = tempfile::tempdir().unwrap();
    let socket = directory.path().join("socket");
    let own = std::fs::File::open("/proc/self/ns/pid").unwrap();
    nix::sched::unshare(CloneFlags::CLONE_NEWPID).expect("run this as root");
    let begin = Instant::now();
    let mut process = Command::new(env!("CARGO_BIN_EXE_isol8-guest"))
        .arg("--socket")
        .arg(&socket)
        .stdin(Stdio::null())
        .spawn()
        .unwrap();
    nix::sched::setns(own, CloneFlags::CLONE_NEWPID).unwrap();
    while UnixStream::connect(&socket).is_err() {
        std::thread::yield_now();
    }
    let took = begin.elapsed();
    process.kill().unwrap();
    process.wait().unwrap();
    took
}

/// Reports the throughput of one connection of a program, in MB/s. `source` is the code that uses the connection's
/// socket `s`.
async fn through_tunnel(sandbox: &Sandbox, what: &str, source: &str) {
    const SIZE: usize = 1 << 30;
    let begin =
        format!("import socket\ns = socket.create_connection(('127.0.0.1', 8118))\n{source}");
    let mut spec = python(&begin);
    spec.network = true;
    let mut run = sandbox.control.run(spec).unwrap();
    let mut tunnels = run.tunnels().unwrap();
    let carrying = async {
        let mut tunnel = tunnels.next().await.unwrap();
        let begin = Instant::now();
        let mut piece = vec![0; 1 << 16];
        if what.contains("down") {
            for _ in 0..SIZE / piece.len() {
                tunnel.write_all(&piece).await.unwrap();
            }
        } else {
            while tunnel.read(&mut piece).await.unwrap() > 0 {}
        }
        begin.elapsed()
    };
    let (outcome, took) = tokio::join!(finish(run), carrying);
    outcome.unwrap().ok();
    let rate = SIZE as f64 / took.as_secs_f64() / 1e6;
    println!("{what:<44} {rate:.0} MB/s");
}

fn private_kib(pid: i32) -> u64 {
    let rollup = std::fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).unwrap();
    let lines = rollup.lines().filter(|line| line.starts_with("Private_"));
    lines
        .filter_map(|line| line.split_whitespace().nth(1)?.parse::<u64>().ok())
        .sum()
}

#[tokio::main(flavor = "current_thread")]
async fn main() {
    let size = std::fs::metadata(env!("CARGO_BIN_EXE_isol8-guest"))
        .unwrap()
        .len();
    println!("{:<44} {size} bytes", "binary");
    report(
        "start to accepting",
        (0..20).map(|_| start_once()).collect(),
    );

    let sandbox = Sandbox::start().await;
    println!(
        "{:<44} {} KiB",
        "private memory, idle",
        private_kib(sandbox.guest())
    );

    let down = "space = bytearray(1 << 20)\nwhile s.recv_into(space): pass";
    through_tunnel(&sandbox, "down through one tunnel", down).await;
    let up =
        "for _ in range(1 << 10): s.sendall(bytes(1 << 20))\ns.shutdown(socket.SHUT_WR)\ns.recv(1)";
    through_tunnel(&sandbox, "up through one tunnel", up).await;

    let mut times = Vec::new();
    for _ in 0..200 {
        let begin = Instant::now();
        finish(sandbox.control.run(command(&["/bin/true"])).unwrap())
            .await
            .unwrap();
        times.push(begin.elapsed());
    }
    report("command", times);

    let mut times = Vec::new();
    for _ in 0..100 {
        sandbox.prepare(Runtime::Python).await;
        // The guest does its own work between requests in this time, so it is not measured.
        tokio::time::sleep(Duration::from_millis(20)).await;
        let begin = Instant::now();
        let run = sandbox.control.run(python("print(1)")).unwrap();
        finish(run).await.unwrap().ok();
        times.push(begin.elapsed());
    }
    report("python script, spare waiting", times);

    let mut times = Vec::new();
    for _ in 0..50 {
        let begin = Instant::now();
        let run = sandbox.control.run(python("print(1)")).unwrap();
        finish(run).await.unwrap().ok();
        times.push(begin.elapsed());
    }
    report("python script, started afresh", times);

    sandbox.cell("pass").await.ok();
    let mut times = Vec::new();
    for _ in 0..500 {
        let begin = Instant::now();
        finish(sandbox.control.run(cell("1+1")).unwrap())
            .await
            .unwrap()
            .ok();
        times.push(begin.elapsed());
    }
    report("python cell 1+1", times);

    let mut times = Vec::new();
    for _ in 0..100 {
        sandbox
            .python("open('/sandbox/x', 'w').write('x')")
            .await
            .ok();
        let begin = Instant::now();
        sandbox.control.reset().await.unwrap();
        times.push(begin.elapsed());
    }
    report("reset after a script, spare booting included", times);
    println!(
        "{:<44} {} KiB",
        "private memory, after all this",
        private_kib(sandbox.guest())
    );
}
