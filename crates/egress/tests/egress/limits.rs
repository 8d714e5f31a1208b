//! The limits of a run, also of a hostile one.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use isol8_egress::Egress;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::sync::Notify;

use crate::harness::*;

#[tokio::test]
async fn one_connection_too_many_is_told_so_and_others_go_on() {
    let origin = Origin::hello().await;
    let run = limited(|limits| limits.connections = 2);
    let (mut first, serving) = connect(&run);
    let (second, _) = connect(&run);
    first.write_all(b"GET http").await.unwrap();
    tokio::task::yield_now().await;
    let answer = exchange(&run, get(&origin.url())).await;
    assert_eq!(status_of(&answer), 429);
    assert!(answer.contains("too many connections at once"), "{answer}");
    drop(first);
    serving.await.unwrap();
    assert_eq!(status(&run, &origin.url()).await, 200);
    drop(second);
}

#[tokio::test]
async fn connections_end_where_the_runs_bytes_are_used_up() {
    let body = vec![b'x'; 1 << 20];
    let head = format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n", body.len());
    let origin = Origin::start([head.into_bytes(), body].concat()).await;
    let run = limited(|limits| limits.bytes = 300_000);
    let answer = exchange(&run, get(&origin.url())).await;
    assert_eq!(status_of(&answer), 200);
    assert!(answer.len() < 800_000, "{}", answer.len());
    let (received, sent) = run.bytes();
    // Beyond the limit by what is read at once, at most.
    assert!(
        (300_000..800_000).contains(&(received + sent)),
        "{received} {sent}"
    );
    let answer = exchange(&run, get(&origin.url())).await;
    assert_eq!(status_of(&answer), 429);
    assert!(answer.contains("used up the bytes"), "{answer}");
}

#[tokio::test]
async fn a_tunnel_ends_where_the_runs_bytes_are_used_up() {
    let port = echo().await;
    let run = limited(|limits| limits.bytes = 100_000);
    let (mut client, serving) = connect(&run);
    let request = format!("CONNECT origin.example:{port} HTTP/1.1\r\n\r\n");
    client.write_all(request.as_bytes()).await.unwrap();
    read_until(&mut client, "\r\n\r\n").await;
    let (mut from, mut to) = tokio::io::split(client);
    let sending = tokio::spawn(async move { while to.write_all(&[b'x'; 1000]).await.is_ok() {} });
    let mut received = Vec::new();
    let _ = from.read_to_end(&mut received).await;
    serving.await.unwrap();
    drop(from);
    sending.await.unwrap();
    assert!(received.len() < 300_000);
}

#[tokio::test]
async fn a_tunnel_on_which_nothing_moves_is_closed() {
    let port = echo().await;
    let run = limited(|limits| limits.idle_timeout = Duration::from_secs(1));
    let (mut client, serving) = connect(&run);
    let request = format!("CONNECT origin.example:{port} HTTP/1.1\r\n\r\n");
    client.write_all(request.as_bytes()).await.unwrap();
    read_until(&mut client, "\r\n\r\n").await;
    // Longer than the limit all in all.
    for _ in 0..6 {
        tokio::time::sleep(Duration::from_millis(200)).await;
        client.write_all(b"x").await.unwrap();
        assert_eq!(client.read_u8().await.unwrap(), b'x');
    }
    assert_eq!(read_to_end(&mut client).await, "");
    serving.await.unwrap();
}

#[tokio::test]
async fn a_host_that_does_not_answer_is_a_gateway_timeout() {
    let port = serve(|stream| async move {
        let _stream = stream;
        std::future::pending::<()>().await;
    })
    .await;
    let run = limited(|limits| limits.idle_timeout = Duration::from_millis(200));
    let url = format!("http://origin.example:{port}/");
    assert_eq!(status(&run, &url).await, 504);
}

#[tokio::test]
async fn a_client_that_does_not_read_is_given_up() {
    let port = serve(|mut stream| async move {
        let _ = stream.write_all(b"HTTP/1.1 200 OK\r\n\r\n").await;
        while stream.write_all(&[b'x'; 65536]).await.is_ok() {}
    })
    .await;
    let run = limited(|limits| {
        limits.idle_timeout = Duration::from_millis(200);
        limits.connect_timeout = Duration::from_millis(200);
    });
    let (mut client, serving) = connect(&run);
    let request = get(&format!("http://origin.example:{port}/"));
    client.write_all(request.as_bytes()).await.unwrap();
    let ended = tokio::time::timeout(PATIENCE, serving).await;
    ended.expect("connection is kept").unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_head_that_does_not_come_to_its_end_is_not_waited_for() {
    for begin in ["", "GET http://origin.example/ HTTP/1.1\r\nX: "] {
        let run = run();
        let (mut client, serving) = connect(&run);
        client.write_all(begin.as_bytes()).await.unwrap();
        let dripping = tokio::spawn(async move {
            while client
                .write_all(if begin.is_empty() { b"" } else { b"x" })
                .await
                .is_ok()
            {
                tokio::time::sleep(Duration::from_secs(1)).await;
            }
        });
        let begun = tokio::time::Instant::now();
        serving.await.unwrap();
        assert!(begun.elapsed() <= Duration::from_secs(31));
        dripping.abort();
    }
}

#[tokio::test]
async fn a_head_that_is_too_large_is_refused() {
    let run = limited(|limits| limits.header_bytes = 16 << 10);
    let huge = "x".repeat(20 << 10);
    let many = (0..200)
        .map(|n| format!("X-{n}: 1\r\n"))
        .collect::<String>();
    for headers in [format!("X: {huge}\r\n"), many] {
        let request = format!("GET http://origin.example/ HTTP/1.1\r\n{headers}\r\n");
        let answer = exchange(&run, request).await;
        assert_eq!(status_of(&answer), 431);
    }
    let origin = Origin::start(format!("HTTP/1.1 200 OK\r\nX: {huge}\r\n\r\n")).await;
    assert_eq!(status(&run, &origin.url()).await, 502);
}

#[tokio::test]
async fn the_log_keeps_the_first_requests_and_the_begin_of_paths() {
    let run = limited(|limits| limits.log_entries = 3);
    let long = "a".repeat(5_000);
    for n in 0..5 {
        status(&run, &format!("http://10.0.0.{n}/{long}")).await;
    }
    let log = run.log();
    let hosts: Vec<_> = log.iter().map(|entry| &*entry.host).collect();
    assert_eq!(hosts, ["10.0.0.0", "10.0.0.1", "10.0.0.2"]);
    assert_eq!(log[0].path.as_ref().unwrap().len(), 1024);
}

#[tokio::test]
async fn whoever_drops_a_connection_ends_it_to_the_host_too() {
    for request in [
        "CONNECT origin.example:PORT HTTP/1.1\r\n\r\n",
        "GET http://origin.example:PORT/ HTTP/1.1\r\n\r\n",
    ] {
        let (begun, ended) = (Arc::new(Notify::new()), Arc::new(Notify::new()));
        let signals = (Arc::clone(&begun), Arc::clone(&ended));
        let port = serve(move |mut stream| {
            let (begun, ended) = signals.clone();
            async move {
                let _ = stream.write_all(b"HTTP/1.1 200 OK\r\n\r\nfirst").await;
                begun.notify_one();
                let mut sink = Vec::new();
                let _ = stream.read_to_end(&mut sink).await;
                ended.notify_one();
            }
        })
        .await;
        let (mut client, serving) = connect(&run());
        let request = request.replace("PORT", &port.to_string());
        client.write_all(request.as_bytes()).await.unwrap();
        read_until(&mut client, "first").await;
        begun.notified().await;
        serving.abort();
        let ended = tokio::time::timeout(PATIENCE, ended.notified());
        ended.await.expect("host is still connected");
    }
}

#[tokio::test]
async fn names_that_no_server_answers_for_keep_no_other_run_waiting() {
    let origin = Origin::hello().await;
    let resolver = Arc::new(resolver().silent("silent.example"));
    let mut config = config();
    config.limits.connect_timeout = 3 * PATIENCE;
    let egress = Egress::with_resolver(config, resolver.clone()).unwrap();
    let (hostile, other) = (run_of(&egress), run_of(&egress));
    let mut waiting = Vec::new();
    for _ in 0..64 {
        let (mut client, serving) = connect(&hostile);
        let request = get("http://silent.example/");
        client.write_all(request.as_bytes()).await.unwrap();
        waiting.push((client, serving));
    }
    // A run's own names wait for one another: a few are looked up at once.
    let begun = tokio::time::Instant::now();
    while resolver.asked.load(Ordering::SeqCst) < 8 {
        assert!(begun.elapsed() < PATIENCE, "nothing is looked up");
        tokio::task::yield_now().await;
    }
    assert_eq!(status(&other, &origin.url()).await, 200);
    assert_eq!(resolver.asked.load(Ordering::SeqCst), 9);
}
