//! The parts of requests and answers that are passed on.

use isol8_egress::Action;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpListener;

use crate::harness::*;

#[tokio::test]
async fn a_request_reaches_its_host_without_what_is_the_proxys_business() {
    let origin = Origin::start(
        "HTTP/1.1 200 OK\r\nContent-Length: 5\r\nConnection: X-Hop\r\nX-Hop: 1\r\nX-End: 2\r\n\r\nhello",
    )
    .await;
    let answer = exchange(
        &run(),
        format!(
            "GET http://ORIGIN.example.:{}/a?b=c HTTP/1.1\r\nHost: elsewhere.example\r\n\
             Proxy-Authorization: Basic eDp5\r\nProxy-Connection: keep-alive\r\nTE: trailers\r\n\
             Upgrade: websocket\r\nX-Private: 1\r\nConnection: close, X-Private\r\nX-Kept: yes\r\n\r\n",
            origin.port
        ),
    )
    .await;
    assert_eq!(status_of(&answer), 200);
    assert!(answer.ends_with("\r\n\r\nhello"), "{answer}");
    let answer = answer.to_lowercase();
    assert!(
        answer.contains("x-end: 2") && !answer.contains("x-hop"),
        "{answer}"
    );
    let seen = origin.seen().to_lowercase();
    assert!(seen.starts_with("get /a?b=c http/1.1\r\n"), "{seen}");
    let host = format!("\r\nhost: origin.example:{}\r\n", origin.port);
    assert!(seen.contains(&host), "{seen}");
    assert!(seen.contains("\r\nx-kept: yes\r\n"), "{seen}");
    for gone in [
        "elsewhere",
        "proxy-",
        "te:",
        "upgrade",
        "x-private",
        "connection",
    ] {
        assert!(!seen.contains(gone), "{gone}: {seen}");
    }
}

#[tokio::test]
async fn a_body_is_passed_on_whichever_way_its_length_is_said() {
    for (framing, body) in [
        ("Content-Length: 7", "payload"),
        (
            "Transfer-Encoding: chunked",
            "3\r\npay\r\n4\r\nload\r\n0\r\n\r\n",
        ),
        // The length is no header of one connection, even if it is listed as one.
        ("Content-Length: 7\r\nConnection: content-length", "payload"),
    ] {
        let origin = Origin::until("load", "HTTP/1.1 204 No Content\r\n\r\n").await;
        let request = format!(
            "POST {} HTTP/1.1\r\nHost: x\r\n{framing}\r\nConnection: close\r\n\r\n{body}",
            origin.url()
        );
        assert_eq!(
            status_of(&exchange(&run(), request).await),
            204,
            "{framing}"
        );
    }
}

#[tokio::test]
async fn a_tunnel_carries_bytes_both_ways_until_one_side_ends() {
    let port = echo().await;
    let run = run();
    let (mut client, serving) = connect(&run);
    // The first bytes come with the request.
    let request = format!("CONNECT origin.example:{port} HTTP/1.1\r\nHost: x\r\n\r\nearly ");
    client.write_all(request.as_bytes()).await.unwrap();
    let head = read_until(&mut client, "\r\n\r\n").await;
    assert_eq!(status_of(&head), 200);
    assert!(!head.to_lowercase().contains("content-length"), "{head}");
    client.write_all(b"and late").await.unwrap();
    client.shutdown().await.unwrap();
    assert_eq!(read_to_end(&mut client).await, "early and late");
    serving.await.unwrap();
    assert_eq!(run.bytes(), (14, 14));
}

/// As Python's `http.client` does up to 3.11.
#[tokio::test]
async fn a_tunnel_may_be_asked_for_in_http_1_0() {
    let port = echo().await;
    let (mut client, _) = connect(&run());
    let request = format!("CONNECT origin.example:{port} HTTP/1.0\r\n\r\n");
    client.write_all(request.as_bytes()).await.unwrap();
    let head = read_until(&mut client, "\r\n\r\n").await;
    assert_eq!(status_of(&head), 200);
    client.write_all(b"hello").await.unwrap();
    assert_eq!(read_until(&mut client, "hello").await, "hello");
}

#[tokio::test]
async fn an_old_client_gets_an_answer_of_unknown_length() {
    let origin = Origin::start(
        "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n",
    )
    .await;
    let request = format!("GET {} HTTP/1.0\r\n\r\n", origin.url());
    let answer = exchange(&run(), request).await;
    assert!(answer.ends_with("\r\n\r\nhello"), "{answer}");
    assert!(!answer.to_lowercase().contains("chunked"), "{answer}");
}

#[tokio::test]
async fn an_answer_without_a_body_keeps_the_length_that_it_tells_of() {
    let origin = Origin::start("HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n").await;
    let request = get(&origin.url()).replace("GET", "HEAD");
    let answer = exchange(&run(), request).await.to_lowercase();
    assert!(answer.contains("content-length: 5\r\n"), "{answer}");
    assert!(answer.ends_with("\r\n\r\n"), "{answer}");
}

#[tokio::test]
async fn a_client_that_waits_to_send_its_body_is_told_to_go_on() {
    let answer = "HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 201 Created\r\nContent-Length: 0\r\n\r\n";
    let origin = Origin::until("body", answer).await;
    let (mut client, _) = connect(&run());
    let head = format!(
        "PUT {} HTTP/1.1\r\nExpect: 100-continue\r\nContent-Length: 4\r\nConnection: close\r\n\r\n",
        origin.url()
    );
    client.write_all(head.as_bytes()).await.unwrap();
    let interim = read_until(&mut client, "\r\n\r\n").await;
    assert_eq!(status_of(&interim), 100);
    client.write_all(b"body").await.unwrap();
    assert_eq!(status_of(&read_to_end(&mut client).await), 201);
}

#[tokio::test]
async fn ipv6_hosts_stand_in_brackets() {
    let listener = TcpListener::bind("[::1]:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let mut head = [0; 4096];
            let count = stream.read(&mut head).await.unwrap();
            let head = String::from_utf8_lossy(&head[..count]);
            assert!(head.contains(&format!("host: [::1]:{port}\r\n")), "{head}");
            let answer = b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n";
            stream.write_all(answer).await.unwrap();
        }
    });
    let mut config = config();
    config.allowed_cidrs.push("::1/128".to_owned());
    let run = run_of(&egress(config, resolver()));
    assert_eq!(status(&run, &format!("http://[::1]:{port}/")).await, 200);
    assert_eq!(status(&run, "http://[::2]/").await, 403);
}

#[tokio::test]
async fn every_request_of_a_connection_is_checked() {
    let origin = Origin::hello().await;
    let run = run();
    let (mut client, _) = connect(&run);
    for (url, expected) in [
        (origin.url(), "200"),
        ("http://10.0.0.1/".to_owned(), "403"),
        (format!("http://other.example:{}/", origin.port), "200"),
        ("http://unknown.example/".to_owned(), "403"),
    ] {
        let request = format!("GET {url} HTTP/1.1\r\nHost: origin.example\r\n\r\n");
        client.write_all(request.as_bytes()).await.unwrap();
        let end = if expected == "200" { "hello" } else { "\n" };
        let head = read_until(&mut client, "\r\n\r\n").await;
        assert!(head.contains(expected), "{url}: {head}");
        read_until(&mut client, end).await;
    }
}

#[tokio::test]
async fn a_redirect_is_a_request_of_its_own() {
    let origin = Origin::start(
        "HTTP/1.1 302 Found\r\nLocation: http://169.254.169.254/latest/\r\nContent-Length: 0\r\n\r\n",
    )
    .await;
    let run = run();
    let answer = exchange(&run, get(&origin.url())).await;
    assert_eq!(status_of(&answer), 302);
    assert_eq!(status(&run, "http://169.254.169.254/latest/").await, 403);
}

#[tokio::test]
async fn the_log_says_what_was_asked_for_and_what_the_rules_said() {
    let origin = Origin::hello().await;
    let port = echo().await;
    let run = run();
    let before = jiff::Timestamp::now();
    status(&run, &format!("{}a?b", origin.url())).await;
    status(&run, "http://10.0.0.1/secret").await;
    let (mut client, serving) = connect(&run);
    let request = format!("CONNECT other.example:{port} HTTP/1.1\r\n\r\n");
    client.write_all(request.as_bytes()).await.unwrap();
    read_until(&mut client, "\r\n\r\n").await;
    // A tunnel that is open is in the log too.
    assert_eq!(run.log().len(), 3);
    drop(client);
    serving.await.unwrap();
    let log = run.log();
    let shown: Vec<_> = log
        .iter()
        .map(|entry| {
            let path = entry.path.as_deref();
            (&*entry.method, &*entry.host, path, entry.action)
        })
        .collect();
    assert_eq!(
        shown,
        [
            ("GET", "origin.example", Some("/a?b"), Action::Allow),
            ("GET", "10.0.0.1", Some("/secret"), Action::Block),
            ("CONNECT", "other.example", None, Action::Allow),
        ]
    );
    for entry in &log {
        let timestamp: jiff::Timestamp = entry.timestamp.parse().unwrap();
        assert!(timestamp.as_millisecond() >= before.as_millisecond());
        assert!(entry.duration_ms > 0.0, "{entry:?}");
    }
}

#[tokio::test]
async fn a_run_that_wants_no_log_has_none() {
    let origin = Origin::hello().await;
    let egress = egress(config(), resolver());
    let run = egress.run(egress.policy(&Default::default()).unwrap(), false);
    assert_eq!(status(&run, &origin.url()).await, 200);
    assert_eq!(run.log(), []);
    let (received, sent) = run.bytes();
    assert!(received > 5 && sent > 5);
}
