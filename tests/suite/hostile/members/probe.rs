//! How long others wait meanwhile.

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::TcpStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crate::harness::{KEY, PATIENCE, Server, until};

/// A thread of its own that asks the same again and again, and remembers the longest wait.
pub(super) struct Probe {
    pub(super) name: &'static str,
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

#[derive(Default)]
struct Shared {
    count: AtomicU64,
    longest_us: AtomicU64,
    stop: AtomicBool,
}

impl Probe {
    /// Asks for `/health`.
    pub(super) fn of_health(server: &Server) -> Self {
        let request = "GET /health HTTP/1.1\r\nHost: isol8\r\n\r\n".to_owned();
        Self::start("/health", server, request, Duration::from_millis(5))
    }

    /// Runs something trivial.
    pub(super) fn of_runs(server: &Server) -> Self {
        let body = r#"{"request":{"runtime":"bash","code":":"}}"#;
        let length = body.len();
        let request = format!(
            "POST /execute HTTP/1.1\r\nHost: isol8\r\nAuthorization: Bearer {KEY}\r\n\
             Content-Length: {length}\r\n\r\n{body}"
        );
        Self::start("a run", server, request, Duration::from_millis(20))
    }

    fn start(name: &'static str, server: &Server, request: String, pause: Duration) -> Self {
        let shared = Arc::<Shared>::default();
        let address = server.address.clone();
        let thread = std::thread::spawn({
            let shared = Arc::clone(&shared);
            move || {
                let mut connection = BufReader::new(TcpStream::connect(address).unwrap());
                let timeout = Some(PATIENCE);
                connection.get_ref().set_read_timeout(timeout).unwrap();
                while !shared.stop.load(Ordering::Relaxed) {
                    let asked = Instant::now();
                    ask(&mut connection, &request);
                    let took = u64::try_from(asked.elapsed().as_micros()).unwrap();
                    shared.longest_us.fetch_max(took, Ordering::Relaxed);
                    shared.count.fetch_add(1, Ordering::Release);
                    std::thread::sleep(pause);
                }
            }
        });
        Self {
            name,
            shared,
            thread: Some(thread),
        }
    }

    /// Returns the longest wait since the last call. A wait that began since then and is not over yet counts.
    pub(super) fn longest(&self) -> Duration {
        self.wait_for(1);
        Duration::from_micros(self.shared.longest_us.swap(0, Ordering::Relaxed))
    }

    /// Waits for so many further answers.
    pub(super) fn wait_for(&self, answers: u64) {
        let count = || self.shared.count.load(Ordering::Acquire);
        let enough = count() + answers;
        until("the probe has its answer", || count() >= enough);
    }
}

impl Drop for Probe {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::Relaxed);
        let ended = self.thread.take().unwrap().join();
        if !std::thread::panicking() {
            ended.unwrap();
        }
    }
}

fn ask(connection: &mut BufReader<TcpStream>, request: &str) {
    connection.get_mut().write_all(request.as_bytes()).unwrap();
    let mut length = 0;
    let mut status = String::new();
    connection.read_line(&mut status).unwrap();
    assert!(status.starts_with("HTTP/1.1 200 "), "{status}");
    loop {
        let mut line = String::new();
        connection.read_line(&mut line).unwrap();
        let line = line.trim_end().to_ascii_lowercase();
        if let Some(value) = line.strip_prefix("content-length: ") {
            length = value.parse().unwrap();
        }
        if line.is_empty() {
            break;
        }
    }
    connection.read_exact(&mut vec![0; length]).unwrap();
}
