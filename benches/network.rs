//! The cost of a network: `cargo bench --bench network`, all of it or the requests of the named runtimes: `cargo bench
//! --bench network -- node`.
//!
//! Prints, on each backend with a warm pool, what `network: "filtered"` adds to a request whose program does
//! not use it: the median and the 95th percentile of requests without and with it, in turns, and the
//! difference of the medians. Then how fast 1 GB comes through: of a server on this machine, over plain HTTP
//! and within a tunnel, read by Python in a sandbox, which throws it away.
//! Needs what the black-box suite needs: root, the interpreters, and Docker with its images.

#![allow(clippy::unwrap_used, clippy::expect_used)] // A benchmark that cannot measure stops.

#[allow(dead_code, unused_imports, unused_macros)] // The suite uses all of it.
#[path = "../tests/suite/harness.rs"]
mod harness;
mod times;

use std::time::{Duration, Instant};

use harness::{Kind, Server, source};
use isol8_api::{NetworkMode, Options};
use isol8_client::{RemoteIsol8, Runtime};
use times::Times;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};

const RUNS: usize = 200;

/// The percentile of slow requests that is printed.
const PERCENTILE: usize = 95;

/// Pairs of requests before those that are timed.
const WARM_UP: usize = 10;

/// The size of the download, in bytes.
const SIZE: u64 = 1_000_000_000;

/// Programs that print `1`, and the time between two: longer than it takes until an interpreter waits again.
const PROGRAMS: [(Runtime, &str, Duration); 3] = [
    (Runtime::Python, "print(1)", Duration::from_millis(15)),
    (Runtime::Bash, "echo 1", Duration::from_millis(15)),
    (Runtime::Node, "console.log(1)", Duration::from_millis(150)),
];

fn main() {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .enable_all()
        .build()
        .unwrap();
    // Cargo adds options of its own.
    let named: Vec<String> = std::env::args()
        .skip(1)
        .filter(|name| !name.starts_with('-'))
        .collect();
    for kind in [Kind::Native, Kind::Docker] {
        runtime.block_on(measure(kind, &named));
    }
}

async fn measure(kind: Kind, named: &[String]) {
    let config = "poolSize = { clean = 2, dirty = 4 }\n[network]\nallowedCidrs = [\"127.0.0.0/8\"]\nports = [\"*\"]\n";
    let server = Server::configured(kind, config);
    for (runtime, code, pace) in PROGRAMS {
        if !named.is_empty() && !named.contains(&runtime.to_string()) {
            continue;
        }
        let (mut without, mut with) = (Vec::new(), Vec::new());
        for turn in 0..RUNS + WARM_UP {
            // The order alternates, so that neither always follows the other.
            for network in [turn % 2 == 0, turn % 2 == 1] {
                tokio::time::sleep(pace).await;
                let took = one(&server.client(), runtime, code, network).await;
                if turn >= WARM_UP {
                    if network { &mut with } else { &mut without }.push(took);
                }
            }
        }
        let (without, with) = (Times::of(without, PERCENTILE), Times::of(with, PERCENTILE));
        let more = (with.median.as_secs_f64() - without.median.as_secs_f64()) * 1e3;
        println!(
            "{:<42} {without}",
            format!("{} {runtime}, no network", kind.name())
        );
        println!(
            "{:<42} {with}",
            format!("{} {runtime}, filtered, unused", kind.name())
        );
        println!("{:<42} {more:+.2} ms", "    more at the median");
    }
    if !named.is_empty() {
        server.stop();
        return;
    }
    let port = serve().await;
    for (name, code) in [("HTTP", PLAIN), ("a tunnel", TUNNEL)] {
        let code = code
            .replace("PORT", &port.to_string())
            .replace("SIZE", &SIZE.to_string());
        let mut request = source(Runtime::Python, code);
        request.timeout_ms = Some(300_000);
        let result = server
            .client()
            .execute_with(request, filtered())
            .await
            .unwrap();
        let seconds: f64 = result
            .stdout
            .trim()
            .parse()
            .unwrap_or_else(|_| panic!("{result:?}"));
        let rate = SIZE as f64 / 1e6 / seconds;
        println!(
            "{:<42} {rate:7.0} MB/s",
            format!("{} 1 GB over {name}", kind.name())
        );
    }
    server.stop();
}

fn filtered() -> Options {
    Options {
        network: Some(NetworkMode::Filtered),
        ..Options::default()
    }
}

async fn one(client: &RemoteIsol8, runtime: Runtime, code: &str, network: bool) -> Duration {
    let options = if network {
        filtered()
    } else {
        Options::default()
    };
    let start = Instant::now();
    let result = client
        .execute_with(source(runtime, code), options)
        .await
        .unwrap();
    let took = start.elapsed();
    assert_eq!(result.stdout.trim(), "1", "{}", result.stderr);
    took
}

/// Prints how many seconds it took.
const PLAIN: &str = "import os, socket, time
_, port = os.environ['http_proxy'].rsplit(':', 1)
s = socket.create_connection(('127.0.0.1', int(port)))
buffer, got, start = bytearray(1 << 18), 0, time.monotonic()
s.sendall(b'GET http://127.0.0.2:PORT/ HTTP/1.1\\r\\nHost: x\\r\\nConnection: close\\r\\n\\r\\n')
while n := s.recv_into(buffer): got += n
assert got >= SIZE, got
print(time.monotonic() - start)";

const TUNNEL: &str = "import os, socket, time
_, port = os.environ['http_proxy'].rsplit(':', 1)
s = socket.create_connection(('127.0.0.1', int(port)))
s.sendall(b'CONNECT 127.0.0.2:PORT HTTP/1.1\\r\\nHost: 127.0.0.2:PORT\\r\\n\\r\\n')
assert s.recv(1 << 16).startswith(b'HTTP/1.1 200'), 'refused'
buffer, got, start = bytearray(1 << 18), 0, time.monotonic()
s.sendall(b'GET / HTTP/1.1\\r\\nHost: x\\r\\nConnection: close\\r\\n\\r\\n')
while n := s.recv_into(buffer): got += n
assert got >= SIZE, got
print(time.monotonic() - start)";

/// A web server with one large thing; its port.
async fn serve() -> u16 {
    let listener = TcpListener::bind("127.0.0.2:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            tokio::spawn(async move { answer(stream).await.ok() });
        }
    });
    port
}

async fn answer(mut stream: TcpStream) -> std::io::Result<()> {
    let mut head = vec![0; 4096];
    let _ = stream.read(&mut head).await?;
    let head = format!("HTTP/1.1 200 OK\r\nContent-Length: {SIZE}\r\nConnection: close\r\n\r\n");
    stream.write_all(head.as_bytes()).await?;
    let piece = vec![b'x'; 1 << 18];
    let mut left = SIZE;
    while left > 0 {
        let size = left.min(piece.len() as u64);
        stream
            .write_all(&piece[..usize::try_from(size).unwrap()])
            .await?;
        left -= size;
    }
    stream.shutdown().await
}
