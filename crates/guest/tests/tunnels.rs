//! The network of a run: connections of its programs, which the guest forwards to the host.

#![allow(clippy::unwrap_used)] // a test that cannot go on should end at once

mod support;

use std::time::Duration;

use isol8_backend::{RunHandle, Tunnel, Tunnels};
use isol8_protocol::{MAX_TUNNELS, Program, RunSpec, Runtime, WINDOW};
use support::{Sandbox, TIMEOUT, cell, finish, python, sh};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

/// A program that defines a function to connect to the port in the environment.
const CONNECT: &str = "import os, socket, sys
def connect():
    host, port = os.environ['HTTP_PROXY'].removeprefix('http://').split(':')
    return socket.create_connection((host, int(port)))
";

fn networked(mut spec: RunSpec, source: &str) -> RunSpec {
    if let Program::Script { source: text, .. } | Program::Cell { source: text, .. } =
        &mut spec.program
    {
        *text = format!("{CONNECT}{source}").into_bytes();
    }
    spec.network = true;
    spec
}

fn script(source: &str) -> RunSpec {
    networked(python(""), source)
}

/// Starts a run with network. Returns the run and its connections.
fn start(sandbox: &Sandbox, source: &str) -> (RunHandle, Tunnels) {
    let mut run = sandbox.control.run(script(source)).unwrap();
    let tunnels = run.tunnels().unwrap();
    (run, tunnels)
}

async fn next(tunnels: &mut Tunnels) -> Tunnel {
    let next = tokio::time::timeout(TIMEOUT, tunnels.next()).await;
    next.unwrap().unwrap()
}

/// Sends every byte back.
async fn echo(mut tunnel: Tunnel) {
    let (mut reader, mut writer) = tokio::io::split(&mut tunnel);
    let _ = tokio::io::copy(&mut reader, &mut writer).await;
    let _ = writer.shutdown().await;
}

#[tokio::test]
async fn a_connection_reaches_the_host_and_each_direction_ends_by_itself() {
    let sandbox = Sandbox::start().await;
    let (run, mut tunnels) = start(
        &sandbox,
        "s = connect()
s.sendall(b'question')
s.shutdown(socket.SHUT_WR)
print(s.makefile().read())",
    );
    let answering = async {
        let mut tunnel = next(&mut tunnels).await;
        let mut question = String::new();
        tunnel.read_to_string(&mut question).await.unwrap();
        tunnel.write_all(b"answer to ").await.unwrap();
        tunnel.write_all(question.as_bytes()).await.unwrap();
    };
    let (outcome, ()) = tokio::join!(finish(run), answering);
    assert_eq!(outcome.unwrap().ok(), "answer to question");
    assert!(tunnels.next().await.is_none());
}

#[tokio::test]
async fn the_environment_tells_of_it_and_the_run_s_own_goes_first() {
    let sandbox = Sandbox::start().await;
    let mut spec = sh("env | grep -i proxy | sort");
    spec.network = true;
    spec.env = vec![("https_proxy".to_owned(), "http://mine".to_owned())];
    assert_eq!(
        sandbox.run(spec).await.ok(),
        "HTTP_PROXY=http://127.0.0.1:8118\nNODE_USE_ENV_PROXY=1\nNO_PROXY=localhost,127.0.0.1,127.0.0.0/8,::1,0.0.0.0,sandbox\n\
         http_proxy=http://127.0.0.1:8118\nhttps_proxy=http://mine\nno_proxy=localhost,127.0.0.1,127.0.0.0/8,::1,0.0.0.0,sandbox"
    );
    assert_eq!(sandbox.sh("env | grep -ic proxy || true").await.ok(), "0");
}

#[tokio::test]
async fn a_script_with_network_is_run_by_the_interpreter_that_waits() {
    let sandbox = Sandbox::start().await;
    sandbox.prepare(Runtime::Python).await;
    // An interpreter that was forked from a zygote has frozen the objects of the zygote (`gc.freeze`).
    let source = "import gc; print(gc.get_freeze_count() > 0, 'HTTP_PROXY' in os.environ)";
    let forked = sandbox.run(script(source)).await;
    assert_eq!(forked.ok(), "True True");
    sandbox.prepare(Runtime::Python).await;
    let mut own = script(source);
    own.env = vec![("PYTHONHASHSEED".to_owned(), "1".to_owned())];
    assert_eq!(sandbox.run(own).await.ok(), "False True");
}

#[tokio::test]
async fn in_a_session_it_is_gone_with_its_run() {
    let sandbox = Sandbox::start().await;
    let source = "import subprocess
left = subprocess.Popen(['sleep', '1000'])
s = connect()
s.sendall(b'x')
print(s.recv(1))";
    let mut run = sandbox.control.run(networked(cell(""), source)).unwrap();
    let mut tunnels = run.tunnels().unwrap();
    let (outcome, mut tunnel) = tokio::join!(finish(run), async {
        let mut tunnel = next(&mut tunnels).await;
        tunnel.write_all(b"y").await.unwrap();
        tunnel
    });
    assert_eq!(outcome.unwrap().ok(), "b'y'");
    // The connection that the interpreter still holds is closed on both sides.
    let mut rest = Vec::new();
    let ended = tokio::time::timeout(TIMEOUT, tunnel.read_to_end(&mut rest)).await;
    assert!(ended.unwrap().is_err());
    let source = "import os, socket
print(s.recv(1), [name for name in os.environ if 'PROXY' in name.upper()])
try: socket.create_connection(('127.0.0.1', 8118))
except OSError as error: print(error.errno)";
    // 111 is ECONNREFUSED: no socket listens.
    assert_eq!(sandbox.cell(source).await.ok(), "b'' []\n111");
}

#[tokio::test]
async fn where_the_usual_port_is_taken_programs_are_told_of_another() {
    let sandbox = Sandbox::start().await;
    let squat = "import socket; server = socket.create_server(('0.0.0.0', 8118))";
    sandbox.cell(squat).await.ok();
    let source = "s = connect()\nprint(s.getpeername()[1] == 8118, s.recv(9))";
    let mut run = sandbox.control.run(networked(cell(""), source)).unwrap();
    let mut tunnels = run.tunnels().unwrap();
    let (outcome, ()) = tokio::join!(finish(run), async {
        let mut tunnel = next(&mut tunnels).await;
        tunnel.write_all(b"host").await.unwrap();
    });
    assert_eq!(outcome.unwrap().ok(), "False b'host'");
}

#[tokio::test]
async fn connections_beyond_the_bound_wait_and_none_is_lost() {
    let sandbox = Sandbox::start().await;
    let (run, mut tunnels) = start(
        &sandbox,
        "import threading
def one(number):
    s = connect()
    s.sendall(str(number).encode())
    s.shutdown(socket.SHUT_WR)
    assert s.makefile().read() == str(number)
threads = [threading.Thread(target=one, args=(n,)) for n in range(200)]
for t in threads: t.start()
for t in threads: t.join()
print('all')",
    );
    let serving = async {
        let mut held = Vec::new();
        for _ in 0..MAX_TUNNELS {
            held.push(next(&mut tunnels).await);
        }
        let more = tokio::time::timeout(Duration::from_millis(200), tunnels.next()).await;
        assert!(more.is_err(), "more than the bound at once");
        held.into_iter().for_each(|tunnel| {
            tokio::spawn(echo(tunnel));
        });
        for _ in MAX_TUNNELS..200 {
            tokio::spawn(echo(next(&mut tunnels).await));
        }
    };
    let (outcome, ()) = tokio::join!(finish(run), serving);
    assert_eq!(outcome.unwrap().ok(), "all");
}

#[tokio::test]
async fn a_program_that_does_not_read_delays_only_itself() {
    let sandbox = Sandbox::start().await;
    let (run, mut tunnels) = start(
        &sandbox,
        "deaf = connect()
deaf.sendall(b'deaf')
quick = connect()
for n in range(100):
    quick.sendall(b'x' * 1000)
    got = 0
    while got < 1000: got += len(quick.recv(1000))
print('quick')
got = 0
while piece := deaf.recv(65536): got += len(piece)
print(got)",
    );
    let size = 64 * WINDOW as usize;
    let serving = async {
        let mut deaf = next(&mut tunnels).await;
        let flooding = tokio::spawn(async move {
            let mut name = [0; 4];
            deaf.read_exact(&mut name).await.unwrap();
            deaf.write_all(&vec![7; size]).await.unwrap();
        });
        tokio::spawn(echo(next(&mut tunnels).await));
        flooding.await.unwrap();
    };
    let (outcome, ()) = tokio::join!(finish(run), serving);
    assert_eq!(outcome.unwrap().ok(), format!("quick\n{size}"));
}

#[tokio::test]
async fn much_goes_through_whole_in_both_directions() {
    let sandbox = Sandbox::start().await;
    let (run, mut tunnels) = start(
        &sandbox,
        "import hashlib, threading
piece = bytes(range(251)) * 1000
s = connect()
sent, received = hashlib.sha256(), hashlib.sha256()
def send():
    for n in range(256):
        block = n.to_bytes(1) + piece
        sent.update(block)
        s.sendall(block)
    s.shutdown(socket.SHUT_WR)
t = threading.Thread(target=send)
t.start()
while got := s.recv(1 << 18): received.update(got)
t.join()
print(sent.digest() == received.digest())",
    );
    let (outcome, ()) = tokio::join!(finish(run), async {
        tokio::spawn(echo(next(&mut tunnels).await));
    });
    assert_eq!(outcome.unwrap().ok(), "True");
}

#[tokio::test]
async fn a_program_that_goes_away_ends_its_connection_and_not_its_run() {
    let sandbox = Sandbox::start().await;
    let (run, mut tunnels) = start(
        &sandbox,
        "s = connect()
s.sendall(b'x')
s.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b'\\1\\0\\0\\0\\0\\0\\0\\0')
s.close()
s = connect()
print(s.recv(9))",
    );
    let serving = async {
        let mut tunnel = next(&mut tunnels).await;
        let flood = async {
            loop {
                tunnel.write_all(&[7; 1000]).await?;
            }
        };
        let ended: Result<(), std::io::Error> = tokio::time::timeout(TIMEOUT, flood).await.unwrap();
        assert!(ended.is_err());
        next(&mut tunnels).await.write_all(b"next").await.unwrap();
    };
    let (outcome, ()) = tokio::join!(finish(run), serving);
    assert_eq!(outcome.unwrap().ok(), "b'next'");
}

#[tokio::test]
async fn a_lost_connection_and_a_reset_leave_no_port() {
    let mut sandbox = Sandbox::start().await;
    let (run, mut tunnels) = start(
        &sandbox,
        "s = connect(); s.recv(1); import time; time.sleep(99)",
    );
    let tunnel = next(&mut tunnels).await;
    sandbox.reconnect().await;
    drop((run, tunnels, tunnel));
    let closed = "import socket
try: socket.create_connection(('127.0.0.1', 8118))
except OSError as error: print(error.errno)";
    assert_eq!(sandbox.python(closed).await.ok(), "111");

    let (run, mut tunnels) = start(
        &sandbox,
        "s = connect(); s.recv(1); import time; time.sleep(99)",
    );
    let mut tunnel = next(&mut tunnels).await;
    let (reset, outcome) = tokio::join!(sandbox.control.reset(), finish(run));
    reset.unwrap();
    assert_eq!(outcome.unwrap().code(), 137);
    assert!(tunnel.read_u8().await.is_err());
    assert_eq!(sandbox.python(closed).await.ok(), "111");
}
