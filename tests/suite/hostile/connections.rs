//! Every route under pipelined, unread, slow and half-open requests.

use std::collections::BTreeSet;
use std::io::{Read as _, Write as _};
use std::net::{Shutdown, TcpStream};
use std::os::fd::AsFd as _;
use std::time::{Duration, Instant};

use isol8_api::{EventKind, StreamEvent};
use nix::sys::socket::{setsockopt, sockopt};
use serde_json::{Value, json};

use crate::harness::{KEY, Kind, PATIENCE, Server, until};
use crate::stream::socket::Socket;

/// Method, path, and a body that the route refuses or finds nothing for. Each operation of `/openapi.json` is here.
const ROUTES: [(&str, &str, &str); 23] = [
    ("GET", "/health", ""),
    ("HEAD", "/health", ""),
    ("GET", "/ready", ""),
    ("GET", "/openapi.json", ""),
    ("GET", "/", ""),
    ("GET", "/docs", ""),
    ("GET", "/docs.js", ""),
    ("GET", "/docs-samples.js", ""),
    ("GET", "/docs.css", ""),
    ("POST", "/execute", "{}"),
    ("POST", "/execute/stream", "{}"),
    ("GET", "/execute/ws", ""),
    ("POST", "/file", "{}"),
    ("GET", "/file", ""),
    ("GET", "/session/{id}/files", ""),
    ("PUT", "/session/{id}/files/{path}", "content"),
    ("GET", "/session/{id}/files/{path}", ""),
    ("GET", "/sessions", ""),
    ("POST", "/sessions", "{}"),
    ("POST", "/auth/keys", "{}"),
    ("DELETE", "/session/{id}", ""),
    ("POST", "/cleanup", "{\"images\": 7}"),
    ("GET", "/nowhere", ""),
];

/// Memory that one connection may cost the server: the bound of its input, its output and their requests.
const MOST_OF_ONE: u64 = 2 << 20;

/// Bytes of requests on one connection: twice what actix-http would read ahead.
const FLOOD: usize = 256 << 10;

/// As [`FLOOD`], where answers are so large that the server has soon nowhere to put them.
const LARGE_FLOOD: usize = 2 << 20;

const ORIGIN: &str = "https://app.example.com";

/// A connection that takes little of what it does not read.
fn connect(server: &Server) -> TcpStream {
    let stream = TcpStream::connect(&server.address).unwrap();
    setsockopt(&stream.as_fd(), sockopt::RcvBuf, &4096).unwrap();
    stream
}

/// Sends the same request again and again, and reads nothing, until the server takes no more.
fn flood(server: &Server, request: &str) -> TcpStream {
    let mut stream = connect(server);
    let timeout = Duration::from_millis(100);
    stream.set_write_timeout(Some(timeout)).unwrap();
    let piece = request.repeat(1 + 65536 / request.len());
    let most = match request.contains(" /openapi") || request.contains(" /docs") {
        true => LARGE_FLOOD,
        false => FLOOD,
    };
    let mut sent = 0;
    while sent < most {
        match stream.write(piece.as_bytes()) {
            Ok(bytes) => sent += bytes,
            // Taken no more, or the connection is closed already.
            Err(_) => break,
        }
    }
    stream
}

fn request(method: &str, path: &str, headers: &str, body: &str) -> String {
    let path = path.replace("{id}", "s").replace("{path}", "sandbox/x");
    let length = body.len();
    format!(
        "{method} {path} HTTP/1.1\r\nHost: x\r\n{headers}Content-Length: {length}\r\n\r\n{body}"
    )
}

/// Every request that the server has an answer to without a sandbox.
fn requests() -> Vec<String> {
    let authorized = format!("Authorization: Bearer {KEY}\r\n");
    let mut requests = Vec::new();
    for (method, path, body) in ROUTES {
        requests.push(request(method, path, "", body));
        requests.push(request(method, path, &authorized, body));
    }
    let preflight = format!("Origin: {ORIGIN}\r\nAccess-Control-Request-Method: POST\r\n");
    requests.push(request("OPTIONS", "/execute", &preflight, ""));
    requests.push(request("HEAD", "/openapi.json", "", ""));
    requests.push(request("PATCH", "/execute", "", "{}"));
    requests.push(request(
        "POST",
        "/execute",
        "Expect: 100-continue\r\n",
        "{}",
    ));
    requests.push("GET /health HTTP/1.1\r\n\r\n".to_owned());
    let chunked = "POST /execute HTTP/1.1\r\nTransfer-Encoding: chunked\r\n";
    requests.push(format!("{chunked}\r\n2\r\n{{}}\r\n0\r\n\r\n"));
    requests.push(format!("{chunked}{authorized}\r\n2\r\n{{}}\r\n0\r\n\r\n"));
    requests
}

async fn assert_every_operation_is_in_the_table(server: &Server) {
    let _ = server.client();
    let url = format!("http://{}/openapi.json", server.address);
    let document: Value = reqwest::get(url).await.unwrap().json().await.unwrap();
    let known: BTreeSet<_> = ROUTES
        .iter()
        .map(|(method, path, _)| (method.to_lowercase(), (*path).to_owned()))
        .collect();
    for (path, item) in document["paths"].as_object().unwrap() {
        for method in item.as_object().unwrap().keys() {
            let operation = (method.clone(), path.clone());
            assert!(known.contains(&operation), "{operation:?} is not in ROUTES");
        }
    }
}

/// Waits until the server has nothing to do.
fn wait_until_idle(server: &Server) {
    until("the server is idle", || {
        let before = server.processor_time();
        std::thread::sleep(Duration::from_millis(200));
        server.processor_time() - before <= Duration::from_millis(40)
    });
}

#[tokio::test]
async fn answers_that_are_not_read_cost_no_memory_on_any_route() {
    let config = format!(
        "[server]\nstallTimeoutMs = 4000\nheaderTimeoutMs = 2000\nkeepAliveMs = 2000\n\
         corsOrigins = [\"{ORIGIN}\"]"
    );
    let server = Server::configured(Kind::Native, &config);
    assert_every_operation_is_in_the_table(&server).await;
    assert_eq!(server.python("print(6 * 7)").await.stdout, "42");
    let before = server.open_files();
    let first = server.memory("VmHWM");
    let mut blocked = Vec::new();
    for request in requests() {
        let peak = server.memory("VmHWM");
        blocked.push(flood(&server, &request));
        let grown = server.memory("VmHWM") - peak;
        assert!(grown < MOST_OF_ONE, "{grown} bytes for {request}");
    }
    let count = blocked.len() as u64;
    // A blocked connection costs no time either, and no other client's run.
    assert_eq!(server.python("print(6 * 7)").await.stdout, "42");
    // The kernel may still have something for a client that takes nothing; the server has not.
    until("every connection is closed", || {
        server.open_files() < before + 10
    });
    // All of it together, while it was at work; what is left is less.
    let most = server.memory("VmHWM") - first;
    assert!(
        most < count * MOST_OF_ONE / 2,
        "{most} for {count} connections"
    );
    server.stop();
}

#[tokio::test]
async fn a_blocked_connection_costs_no_time() {
    let server = Server::configured(Kind::Native, "");
    server.python("1").await;
    let openapi = request("GET", "/openapi.json", "", "");
    let _blocked: Vec<_> = (0..4).map(|_| flood(&server, &openapi)).collect();
    // A request that takes its time, and more behind it than is read ahead.
    let authorized = format!("Authorization: Bearer {KEY}\r\n");
    let body = json!({"request": {"runtime": "bash", "cmd": "sleep 100"}}).to_string();
    let mut busy = connect(&server);
    busy.set_write_timeout(Some(Duration::from_millis(100)))
        .unwrap();
    busy.write_all(request("POST", "/execute", &authorized, &body).as_bytes())
        .unwrap();
    let _ = busy.write_all(openapi.repeat(20_000).as_bytes());
    wait_until_idle(&server);
    let before = server.processor_time();
    std::thread::sleep(Duration::from_secs(1));
    let used = server.processor_time() - before;
    assert!(used < Duration::from_millis(150), "{used:?} in a second");
    drop(busy);
    server.stop();
}

/// Beginnings of requests that are not finished; `true` where a whole request and its answer come first.
const STANDSTILLS: [(&str, bool); 8] = [
    ("", false),
    ("GET /health HTTP/1.1\r\nHost: x\r\n", false),
    ("GET /hea", true),
    ("\r\n", true),
    (
        "POST /execute HTTP/1.1\r\nContent-Length: 9\r\n\r\n{",
        false,
    ),
    (
        "POST /execute HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n2\r\n{",
        false,
    ),
    (
        "POST /execute HTTP/1.1\r\nAUTHContent-Length: 9\r\n\r\n{",
        true,
    ),
    (
        "POST /execute HTTP/1.1\r\nAUTHTransfer-Encoding: chunked\r\n\r\n2\r\n{",
        true,
    ),
];

#[tokio::test]
async fn a_connection_that_stands_still_is_closed() {
    let config = "[server]\nheaderTimeoutMs = 1500\nbodyTimeoutMs = 1500\nkeepAliveMs = 1500\n";
    let server = Server::configured(Kind::Native, config);
    let opened: Vec<_> = STANDSTILLS
        .iter()
        .map(|(sent, is_second)| {
            let mut stream = TcpStream::connect(&server.address).unwrap();
            stream.set_read_timeout(Some(PATIENCE)).unwrap();
            if *is_second {
                let health = request("GET", "/health", "", "");
                stream.write_all(health.as_bytes()).unwrap();
                assert!(stream.read(&mut [0; 4096]).unwrap() > 0);
            }
            let authorization = format!("Authorization: Bearer {KEY}\r\n");
            let sent = sent.replace("AUTH", &authorization);
            stream.write_all(sent.as_bytes()).unwrap();
            (stream, sent)
        })
        .collect();
    assert_eq!(server.python("print(6 * 7)").await.stdout, "42");
    let started = Instant::now();
    for (mut stream, sent) in opened {
        let mut answer = Vec::new();
        // Reset or closed.
        let ended = stream.read_to_end(&mut answer);
        let waited = ended
            .err()
            .filter(|error| error.kind() == std::io::ErrorKind::WouldBlock);
        assert!(waited.is_none(), "not closed after {sent:?}");
    }
    assert!(
        started.elapsed() < Duration::from_secs(20),
        "{:?}",
        started.elapsed()
    );
    server.stop();
}

/// Input that is not HTTP, or breaks off.
const MALFORMED: [&str; 9] = [
    "GARBAGE\r\n\r\n",
    "\x16\x03\x01\x02\x00\x01\x00\x01\u{7f}",
    "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    "GET / HTTP/1.1\r\nBad Header\r\n\r\n",
    "GET / HTTP/1.1\r\nContent-Length: -1\r\n\r\n",
    "POST /execute HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\nZZ\r\n",
    "POST /execute HTTP/1.1\r\nContent-Length: 10\r\n\r\nx",
    "GET /hea",
    "GET /execute/ws HTTP/1.1\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n\u{1}\u{1}",
];

#[tokio::test]
async fn a_client_without_a_key_writes_no_errors_to_the_log() {
    let server = Server::configured(Kind::Native, "");
    let long = format!("GET /{} HTTP/1.1\r\n\r\n", "a".repeat(200_000));
    for malformed in MALFORMED.into_iter().chain([long.as_str()]) {
        for is_reset in [false, true] {
            let mut stream = TcpStream::connect(&server.address).unwrap();
            // A server that has seen enough closes before it has read all.
            let _ = stream.write_all(malformed.as_bytes());
            if !is_reset {
                let _ = stream.shutdown(Shutdown::Write);
                let _ = stream.read_to_end(&mut Vec::new());
            }
        }
    }
    assert_eq!(server.python("print(6 * 7)").await.stdout, "42");
    let log = server.log();
    for level in ["[ERROR]", "[WARN]"] {
        assert!(!log.contains(level), "{log}");
    }
    server.stop();
}

/// Opens a stream of a program that writes without end, and reads none of it.
fn unread_stream(server: &Server) -> TcpStream {
    let authorized = format!("Authorization: Bearer {KEY}\r\n");
    let body = json!({
        "request": {"runtime": "bash", "code": "yes", "timeoutMs": 2000},
        "options": {"maxOutputSize": 64 << 20},
    });
    let request = request("POST", "/execute/stream", &authorized, &body.to_string());
    let mut stream = TcpStream::connect(&server.address).unwrap();
    stream.write_all(request.as_bytes()).unwrap();
    stream
}

#[tokio::test]
async fn a_slow_client_keeps_no_turn_when_its_run_is_over() {
    let config = "maxConcurrent = 2\nmaxWaitMs = 60000\n";
    let server = Server::configured(Kind::Native, config);
    server.python("1").await;
    for is_socket in [false, true] {
        let (mut streams, mut sockets) = (Vec::new(), Vec::new());
        for _ in 0..2 {
            if is_socket {
                let mut socket = Socket::open(&server).await;
                let request = json!({"runtime": "bash", "code": "yes", "timeoutMs": 2000});
                let options = json!({"maxOutputSize": 64 << 20});
                let execute = json!({"type": "execute", "request": request, "options": options});
                socket.send(execute).await;
                assert_eq!(socket.next().await.unwrap().kind, EventKind::Stdout);
                sockets.push(socket);
            } else {
                streams.push(unread_stream(&server));
            }
        }
        // Both turns are taken, or will be before this one's.
        let started = Instant::now();
        assert_eq!(server.python("print(6 * 7)").await.stdout, "42");
        let waited = started.elapsed();
        assert!(waited < Duration::from_secs(25), "{waited:?}");
        for mut stream in streams {
            let exit = last_event(&mut stream);
            assert_eq!((exit.kind, exit.data.as_str()), (EventKind::Exit, "137"));
            assert!(exit.ending.timed_out);
        }
        for mut socket in sockets {
            assert_eq!(socket.rest().await.last().unwrap().data, "137");
        }
    }
    server.stop();
}

/// Reads a stream of server-sent events to its end.
fn last_event(stream: &mut TcpStream) -> StreamEvent {
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    let mut tail = Vec::new();
    let mut piece = vec![0; 1 << 16];
    while !tail.ends_with(b"\r\n0\r\n\r\n") {
        let read = stream.read(&mut piece).unwrap();
        assert!(
            read > 0,
            "broke off after {}",
            String::from_utf8_lossy(&tail)
        );
        tail.extend_from_slice(&piece[..read]);
        let kept = tail.len().saturating_sub(4096);
        tail.drain(..kept);
    }
    let text = String::from_utf8_lossy(&tail);
    let mut events = text.lines().filter_map(|line| line.strip_prefix("data: "));
    serde_json::from_str(events.next_back().unwrap()).unwrap()
}
