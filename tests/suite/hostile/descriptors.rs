//! Idle and half-open connections at a low limit on open files.

use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::time::{Duration, Instant};

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

use crate::harness::{Kind, Server, until};

const HEALTH: &str = "GET /health HTTP/1.1\r\nHost: x\r\n\r\n";

/// Files that the server may open: a shell's usual limit.
const FILES: u64 = 1024;

/// Connections that are opened: more than the server takes.
const CONNECTIONS: usize = 600;

/// Files that the server may open for its sandboxes meanwhile.
const SPARE: usize = 60;

/// Behaviour of each connection, and how many bytes of an answer it reads.
const KINDS: [(&str, &str, bool); 4] = [
    ("nothing is sent", "", false),
    (
        "a head breaks off",
        "GET /health HTTP/1.1\r\nHost: x\r\n",
        false,
    ),
    ("a second head breaks off", HEALTH, true),
    ("an answer is read and no more is asked", HEALTH, true),
];

fn raise_own_limit() {
    let limit = getrlimit(Resource::Nofile);
    let current = limit.maximum.map_or(1 << 16, |hard| hard.min(1 << 16));
    let raised = Rlimit {
        current: Some(current),
        ..limit
    };
    setrlimit(Resource::Nofile, raised).unwrap();
}

#[tokio::test]
async fn connections_that_do_nothing_stop_no_run() {
    raise_own_limit();
    let server = Server::limited(Kind::Native, &format!("-n {FILES}"), "");
    assert_eq!(server.python("print(6 * 7)").await.stdout, "42");
    let started = Instant::now();
    server.python("print(6 * 7)").await;
    let usual = started.elapsed();
    let before = server.open_files();
    for (what, sent, is_answered) in KINDS {
        let mut opened = Vec::new();
        for index in 0..CONNECTIONS {
            let mut stream = TcpStream::connect(&server.address).unwrap();
            stream.write_all(sent.as_bytes()).unwrap();
            if is_answered {
                assert!(stream.read(&mut [0; 4096]).unwrap() > 0, "{what}");
            }
            if what.starts_with("a second") {
                stream.write_all(b"GET /hea").unwrap();
            }
            opened.push(stream);
            if index == 200 {
                // A descriptor each, and some for the runs before.
                let each = server.open_files().saturating_sub(before);
                assert!(each < 300, "{each} files for 200 connections: {what}");
            }
        }
        let started = Instant::now();
        assert_eq!(server.python("print(6 * 7)").await.stdout, "42");
        let mut stream = TcpStream::connect(&server.address).unwrap();
        stream.write_all(HEALTH.as_bytes()).unwrap();
        assert!(stream.read(&mut [0; 4096]).unwrap() > 0, "{what}");
        let took = started.elapsed();
        let most = Duration::from_secs(3) + usual * 10;
        assert!(took < most, "{took:?} instead of {usual:?}: {what}");
        let open = server.open_files();
        assert!(open < 700, "{open} files of {FILES} are open: {what}");
        drop(opened);
        until("connections that ended are closed", || {
            server.open_files() < before + SPARE
        });
    }
    assert!(!server.log().contains("Too many open files"));
    server.stop();
}

#[tokio::test]
async fn the_limit_on_open_files_is_raised_as_far_as_it_may_be() {
    let server = Server::limited(Kind::Native, "-S -n 512", "");
    let limits = std::fs::read_to_string(format!("/proc/{}/limits", server.pid())).unwrap();
    let line = limits
        .lines()
        .find(|line| line.starts_with("Max open files"));
    let numbers: Vec<u64> = line
        .unwrap()
        .split_whitespace()
        .filter_map(|word| word.parse().ok())
        .collect();
    assert_eq!(numbers[0], numbers[1].min(1 << 20), "{numbers:?}");
    assert!(numbers[0] > 512, "{numbers:?}");
    server.stop();
}
