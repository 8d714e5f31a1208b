//! WebSocket frames are refused by their declared length.

use std::io::{ErrorKind, Read as _, Write as _};
use std::net::TcpStream;
use std::time::{Duration, Instant};

use serde_json::json;

use crate::harness::{KEY, Kind, PATIENCE, Server};

const TEXT: u8 = 0x81;
const FIRST_FRAGMENT: u8 = 0x01;
const CONTINUATION: u8 = 0x80;
const BINARY: u8 = 0x82;
const PING: u8 = 0x89;
const PONG: u8 = 0x8a;
const CLOSE: u8 = 0x88;

/// Kinds of frames, and what comes before each.
const FRAMES: [(&str, u8, Option<u8>); 7] = [
    ("text", TEXT, None),
    ("binary", BINARY, None),
    ("first fragment", FIRST_FRAGMENT, None),
    ("continuation", CONTINUATION, Some(FIRST_FRAGMENT)),
    ("ping", PING, None),
    ("pong", PONG, None),
    ("close", CLOSE, None),
];

/// Largest message before a run, and during one.
const LIMITS: [(u64, bool); 2] = [(4 << 20, false), (1 << 20, true)];

const CONFIG: &str = "[server]\nmaxBodySize = \"4m\"\nmaxWebSocketMessage = \"1m\"\n";

/// Bytes that are sent of the declared payload, if they are taken.
const FLOOD: usize = 24 << 20;

/// A frame's header, with a mask that changes nothing.
fn header(first: u8, length: u64) -> Vec<u8> {
    let mut header = vec![first, 0xff];
    header.extend(length.to_be_bytes());
    header.extend([0; 4]);
    header
}

fn open(server: &Server) -> TcpStream {
    let mut stream = TcpStream::connect(&server.address).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    let upgrade = format!(
        "GET /execute/ws HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {KEY}\r\n\
         Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n\
         Sec-WebSocket-Key: x3JJHMbDL1EzLkh9GBhXDw==\r\n\r\n"
    );
    stream.write_all(upgrade.as_bytes()).unwrap();
    let mut answer = Vec::new();
    while !answer.ends_with(b"\r\n\r\n") {
        let mut byte = [0];
        stream.read_exact(&mut byte).unwrap();
        answer.push(byte[0]);
    }
    assert!(answer.starts_with(b"HTTP/1.1 101 "));
    stream
}

/// Reads a frame of the server's: its opcode and its payload.
fn read_frame(stream: &mut TcpStream) -> (u8, Vec<u8>) {
    let mut head = [0; 2];
    stream.read_exact(&mut head).unwrap();
    let length = match head[1] {
        126 => {
            let mut length = [0; 2];
            stream.read_exact(&mut length).unwrap();
            usize::from(u16::from_be_bytes(length))
        }
        length => usize::from(length),
    };
    let mut payload = vec![0; length];
    stream.read_exact(&mut payload).unwrap();
    (head[0] & 0x0f, payload)
}

/// The code with which the server closes, after whatever else it says.
fn close_code(stream: &mut TcpStream) -> u16 {
    loop {
        if let (0x8, payload) = read_frame(stream) {
            return u16::from_be_bytes(payload[..2].try_into().unwrap());
        }
    }
}

/// A WebSocket over which a program runs, where one is to.
fn opened(server: &Server, is_running: bool) -> TcpStream {
    let mut stream = open(server);
    if is_running {
        let request = json!({"runtime": "bash", "code": "echo ready; sleep 60"});
        let execute = json!({"type": "execute", "request": request}).to_string();
        stream
            .write_all(&header(TEXT, execute.len() as u64))
            .unwrap();
        stream.write_all(execute.as_bytes()).unwrap();
        let (_, ready) = read_frame(&mut stream);
        assert!(String::from_utf8_lossy(&ready).contains("ready"));
    }
    stream
}

#[tokio::test]
async fn a_frame_is_refused_by_the_length_that_it_declares() {
    let server = Server::configured(Kind::Native, CONFIG);
    server.python("1").await;
    for (limit, is_running) in LIMITS {
        for (name, first, before) in FRAMES {
            for length in [limit + 1, 1 << 33, (1 << 63) - 1, u64::MAX] {
                let mut stream = opened(&server, is_running);
                if let Some(before) = before {
                    stream.write_all(&header(before, 1)).unwrap();
                    stream.write_all(b"x").unwrap();
                }
                let sent = Instant::now();
                stream.write_all(&header(first, length)).unwrap();
                stream.write_all(b"x").unwrap();
                let code = close_code(&mut stream);
                assert_eq!(code, 1009, "{name} of {length}, limit {limit}");
                assert!(sent.elapsed() < Duration::from_secs(8), "{name}");
            }
        }
    }
    server.stop();
}

#[tokio::test]
async fn fragments_are_refused_by_what_they_are_together() {
    let server = Server::configured(Kind::Native, CONFIG);
    for (limit, is_running) in LIMITS {
        let mut stream = opened(&server, is_running);
        stream.write_all(&header(FIRST_FRAGMENT, limit)).unwrap();
        stream
            .write_all(&vec![b' '; usize::try_from(limit).unwrap()])
            .unwrap();
        stream.write_all(&header(CONTINUATION, 1)).unwrap();
        assert_eq!(close_code(&mut stream), 1009);
    }
    server.stop();
}

#[tokio::test]
async fn what_follows_a_refused_header_costs_no_memory() {
    let server = Server::configured(Kind::Native, CONFIG);
    server.python("1").await;
    drop(opened(&server, true));
    let before = server.memory("VmRSS");
    for (_, is_running) in LIMITS {
        for (name, first, _) in FRAMES {
            let mut stream = opened(&server, is_running);
            stream.set_write_timeout(Some(PATIENCE)).unwrap();
            stream.write_all(&header(first, 1 << 33)).unwrap();
            let piece = vec![0xff; 1 << 16];
            let mut sent = 0;
            while sent < FLOOD {
                match stream.write(&piece) {
                    Ok(bytes) => sent += bytes,
                    Err(error) => {
                        // Closed.
                        assert_ne!(error.kind(), ErrorKind::WouldBlock, "{name}");
                        break;
                    }
                }
            }
        }
    }
    let grown = server.memory("VmHWM").saturating_sub(before);
    assert!(grown < 8 << 20, "{grown} bytes");
    server.stop();
}
