//! Much at once. A process of its own: its memory is measured.

#![allow(clippy::unwrap_used)] // A failed expectation is the test failing.

use std::time::{Duration, Instant};

use isol8_egress::{Egress, EgressConfig, Filter, RunEgress};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, DuplexStream, duplex};
use tokio::net::TcpListener;

const GIGABYTE: u64 = 1 << 30;

/// Most that the process may grow by.
const MOST_GROWTH: u64 = 32 << 20;

/// A server that sends so many bytes to every client.
async fn origin(bytes: u64) -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            tokio::spawn(async move {
                let mut request = Vec::new();
                while !request.ends_with(b"\r\n\r\n") {
                    request.push(stream.read_u8().await.unwrap());
                }
                let head = format!("HTTP/1.1 200 OK\r\nContent-Length: {bytes}\r\n\r\n");
                stream.write_all(head.as_bytes()).await.unwrap();
                let mut body = tokio::io::repeat(b'x').take(bytes);
                let mut piece = vec![0; 256 << 10];
                loop {
                    match body.read(&mut piece).await.unwrap() {
                        0 => return,
                        count => stream.write_all(&piece[..count]).await.unwrap(),
                    }
                }
            });
        }
    });
    port
}

fn run() -> RunEgress {
    let egress = Egress::new(EgressConfig {
        allowed_cidrs: vec!["127.0.0.0/8".to_owned()],
        ports: isol8_egress::Ports::any(),
        ..EgressConfig::default()
    })
    .unwrap();
    egress.run(egress.policy(&Filter::default()).unwrap(), false)
}

/// Reads everything that is answered; its length.
async fn download(run: &RunEgress, request: String) -> u64 {
    let (mut client, server) = duplex(256 << 10);
    let run = run.clone();
    tokio::spawn(async move { run.serve(server).await });
    client.write_all(request.as_bytes()).await.unwrap();
    let head = read_head(&mut client).await;
    assert!(head.starts_with("HTTP/1.1 200"), "{head}");
    if request.starts_with("CONNECT") {
        client.write_all(b"GET / HTTP/1.1\r\n\r\n").await.unwrap();
        read_head(&mut client).await;
    }
    let mut piece = vec![0; 256 << 10];
    let mut count = 0;
    loop {
        match client.read(&mut piece).await.unwrap() {
            0 => return count,
            more => count += more as u64,
        }
    }
}

async fn read_head(client: &mut DuplexStream) -> String {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(client.read_u8().await.unwrap());
    }
    String::from_utf8(head).unwrap()
}

fn requests(port: u16) -> [String; 2] {
    [
        format!("CONNECT 127.0.0.1:{port} HTTP/1.1\r\n\r\n"),
        format!("GET http://127.0.0.1:{port}/ HTTP/1.1\r\nConnection: close\r\n\r\n"),
    ]
}

/// Bytes of memory that the process holds.
fn memory() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find(|line| line.starts_with("VmRSS:"));
    let kibibytes = line.and_then(|line| line.split_whitespace().nth(1));
    kibibytes.unwrap().parse::<u64>().unwrap() << 10
}

/// The most that the process held while the future ran, beyond what it held before.
async fn growth(work: impl Future<Output = ()>) -> u64 {
    let before = memory();
    let mut most = before;
    let mut work = std::pin::pin!(work);
    let mut ticks = tokio::time::interval(Duration::from_millis(20));
    loop {
        tokio::select! {
            () = &mut work => return most - before,
            _ = ticks.tick() => most = most.max(memory()),
        }
    }
}

/// All in one test, because two would measure each other.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_gigabyte_and_fifty_downloads_at_once_cost_little_memory_and_time() {
    let run = run();
    let port = origin(GIGABYTE).await;
    for request in requests(port) {
        let begun = Instant::now();
        let grown = growth(async {
            assert_eq!(download(&run, request.clone()).await, GIGABYTE);
        });
        let grown = grown.await;
        let seconds = begun.elapsed().as_secs_f64();
        println!(
            "{:.0} MB/s, {} KiB: {request:?}",
            1073.7 / seconds,
            grown >> 10
        );
        assert!(grown < MOST_GROWTH, "{grown} bytes");
        assert!(seconds < 10.0, "{seconds} s"); // 100 MB/s
    }
    let port = origin(4 << 20).await;
    let begun = Instant::now();
    let grown = growth(async {
        let mut downloads = tokio::task::JoinSet::new();
        for request in requests(port).iter().cycle().take(50) {
            let (run, request) = (run.clone(), request.clone());
            downloads.spawn(async move { download(&run, request).await });
        }
        let counts = downloads.join_all().await;
        assert_eq!(counts, [4 << 20; 50]);
    });
    let grown = grown.await;
    println!("50 at once: {:?}, {} KiB", begun.elapsed(), grown >> 10);
    assert!(grown < 4 * MOST_GROWTH, "{grown} bytes");
}
