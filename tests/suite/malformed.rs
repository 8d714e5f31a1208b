//! A thousand invalid requests: each is refused or its connection closed, nothing is run, and the next answer is
//! normal.

use std::io::{Read as _, Write as _};
use std::net::{Shutdown, TcpStream};
use std::time::Duration;

use crate::harness::{KEY, Server, on_each_backend};

on_each_backend!(a_thousand_malformed_requests_harm_nothing);

/// Number of requests of each kind.
const ROUNDS: usize = 50;

/// The server closes a connection that says nothing later than this.
const PATIENCE: Duration = Duration::from_secs(20);

/// The bytes that are sent, and whether the sending direction is closed after them.
struct Malformed {
    bytes: Vec<u8>,
    half_closed: bool,
}

fn post(body: &[u8]) -> Malformed {
    framed(body, body.len(), "application/json")
}

fn framed(body: &[u8], length: usize, content_type: &str) -> Malformed {
    let head = format!(
        "POST /execute HTTP/1.1\r\nHost: isol8\r\nAuthorization: Bearer {KEY}\r\n\
         Content-Type: {content_type}\r\nContent-Length: {length}\r\nConnection: close\r\n\r\n"
    );
    Malformed {
        bytes: [head.as_bytes(), body].concat(),
        half_closed: false,
    }
}

fn raw(text: &str, half_closed: bool) -> Malformed {
    Malformed {
        bytes: text.as_bytes().to_vec(),
        half_closed,
    }
}

/// One of each kind; `seed` makes those of different rounds differ.
fn one_of_each(seed: usize) -> Vec<Malformed> {
    let valid = br#"{"request": {"runtime": "python", "code": "print(1)", "timeoutMs": 1000}}"#;
    let mut flipped = valid.to_vec();
    let at = seed * 7 % flipped.len();
    flipped[at] = b"{}[]\",:\\\x00\xff"[seed % 10];
    let request = |member: &str| format!(r#"{{"request": {{"runtime": "python", {member}}}}}"#);
    let members = [
        r#""code": 7"#.to_owned(),
        r#""code": "1", "timeoutMs": 1e400"#.to_owned(),
        format!(r#""code": "1", "timeoutMs": {}"#, "9".repeat(400)),
        r#""code": "1", "timeoutMs": NaN"#.to_owned(),
        r#""code": "1", "timeoutMs": "Infinity""#.to_owned(),
        r#""code": "1", "timeoutMs": -0.5"#.to_owned(),
        r#""code": "1", "env": [1, 2]"#.to_owned(),
        r#""code": "1", "files": {"relative": "x"}"#.to_owned(),
        format!(
            r#""code": "1", "metadata": {}{}"#,
            "[".repeat(200),
            "]".repeat(200)
        ),
    ];
    let mut all: Vec<_> = members
        .iter()
        .map(|member| post(request(member).as_bytes()))
        .collect();
    all.extend([
        // A flipped byte may leave a valid text; a second fault makes sure that it is none.
        post(&[&flipped[..], b"}"].concat()),
        post(&valid[..valid.len() - 1 - seed % 40]),
        post("[".repeat(10_000 + seed).as_bytes()),
        post(b"{\"request\": {\"runtime\": \"python\", \"code\": \"\xc3\x28\"}}"),
        post(b""),
        framed(b"<xml/>", 6, "text/xml"),
        // A body that ends before its length, by closing and by saying nothing more.
        Malformed {
            half_closed: true,
            ..framed(&valid[..20], valid.len(), "application/json")
        },
        raw(
            "POST /execute HTTP/1.1\r\nHost: isol8\r\nContent-Length: -1\r\n\r\n",
            false,
        ),
        raw("GARBAGE\r\n\r\n", false),
        raw("POST /execute HTTP/1.1\r\nHost", true),
        raw(
            &format!("GET /{} HTTP/1.1\r\n\r\n", "a".repeat(200_000)),
            true,
        ),
    ]);
    all
}

/// The status of the answer; `None` where the connection was closed without one.
fn answer(address: &str, malformed: &Malformed) -> Option<u16> {
    let mut stream = TcpStream::connect(address).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    // A server that has seen enough may close before all is sent.
    let _ = stream.write_all(&malformed.bytes);
    if malformed.half_closed {
        let _ = stream.shutdown(Shutdown::Write);
    }
    let mut answer = Vec::new();
    match stream.read_to_end(&mut answer) {
        Err(error)
            if matches!(error.kind(), std::io::ErrorKind::WouldBlock) && answer.is_empty() =>
        {
            let text = String::from_utf8_lossy(&malformed.bytes);
            panic!("neither answered nor closed: {:.200}", text);
        }
        _ => {}
    }
    let text = String::from_utf8_lossy(&answer);
    let status = text
        .strip_prefix("HTTP/1.1 ")
        .and_then(|rest| rest.get(..3));
    status.and_then(|status| status.parse().ok())
}

async fn a_thousand_malformed_requests_harm_nothing(server: Server) {
    assert_eq!(server.python("print(6 * 7)").await.stdout, "42");
    let before = server.traces();
    let rounds = (0..ROUNDS).map(|round| {
        let address = server.address.clone();
        tokio::task::spawn_blocking(move || {
            let all = one_of_each(round);
            for malformed in &all {
                let status = answer(&address, malformed);
                let text = String::from_utf8_lossy(&malformed.bytes);
                assert!(
                    status.is_none_or(|status| (400..500).contains(&status)),
                    "{status:?} for {text:.300}"
                );
            }
            all.len()
        })
    });
    let counts = futures::future::join_all(rounds).await;
    let sent: usize = counts.into_iter().map(|count| count.unwrap()).sum();
    assert!(sent >= 1000, "{sent}");
    assert_eq!(server.python("print(6 * 7)").await.stdout, "42");
    let after = server.traces();
    assert!(
        after.is_subset(&before) || server.kind == crate::harness::Kind::Docker,
        "{after:?}"
    );
    server.stop();
}
