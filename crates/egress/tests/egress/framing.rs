//! Requests that two readers could understand differently.

use tokio::io::AsyncWriteExt as _;

use crate::harness::*;

#[tokio::test]
async fn what_is_ambiguous_or_no_request_is_refused_and_reaches_nobody() {
    let origin = Origin::hello().await;
    let post = |headers: &str, body: &str| {
        let url = origin.url();
        format!("POST {url} HTTP/1.1\r\nHost: x\r\n{headers}\r\n{body}")
    };
    let port = origin.port;
    for request in [
        post("Content-Length: 5\r\nContent-Length: 6\r\n", "hello!"),
        post("Content-Length: 5, 6\r\n", "hello!"),
        post("Content-Length: +5\r\n", "hello"),
        post("Content-Length: -1\r\n", ""),
        post("Transfer-Encoding: chunked, identity\r\n", "0\r\n\r\n"),
        post("Transfer-Encoding: gzip, chunked\r\n", "0\r\n\r\n"),
        post("Transfer-Encoding: xchunked\r\n", "0\r\n\r\n"),
        post(
            "Transfer-Encoding: gzip\r\nTransfer-Encoding: chunked\r\n",
            "0\r\n\r\n",
        ),
        post("Transfer-Encoding : chunked\r\n", "0\r\n\r\n"),
        post("Transfer-Encoding:\r\n chunked\r\n", "0\r\n\r\n"),
        post("Host: y\r\n", ""),
        post("X: a\0b\r\n", ""),
        post("X: a\rb\r\n", ""),
        post(" X: folded\r\n", ""),
        format!(
            "POST {} HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
            origin.url()
        ),
        format!("GET http://a@origin.example:{port}/ HTTP/1.1\r\n\r\n"),
        format!("GET http://%31%32%37.0.0.1:{port}/ HTTP/1.1\r\n\r\n"),
        format!("GET https://origin.example:{port}/ HTTP/1.1\r\n\r\n"),
        format!("GET ftp://origin.example:{port}/ HTTP/1.1\r\n\r\n"),
        format!("GET http://origin.example:{port}x/ HTTP/1.1\r\n\r\n"),
        format!("GET http://origin.example:6{port}6/ HTTP/1.1\r\n\r\n"),
        format!("GET / HTTP/1.1\r\nHost: origin.example:{port}\r\n\r\n"),
        "OPTIONS * HTTP/1.1\r\n\r\n".to_owned(),
        "CONNECT origin.example HTTP/1.1\r\n\r\n".to_owned(),
        format!("CONNECT http://origin.example:{port}/ HTTP/1.1\r\n\r\n"),
        format!("CONNECT origin.example:{port} HTTP/1.1\r\nContent-Length: 3\r\n\r\nabc"),
        "\x16\x03\x01\x02\x00\x01\x00\x01\u{fc}\x03\x03".to_owned() + &"\0".repeat(100),
        "hello?\r\n\r\n".to_owned(),
    ] {
        let answer = exchange(&run(), &request).await;
        assert_eq!(status_of(&answer), 400, "{request:?}: {answer}");
    }
    // The begin of HTTP/2, which has no answer in HTTP/1.1.
    assert_eq!(
        exchange(&run(), "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n").await,
        ""
    );
    assert_eq!(origin.seen(), "");
}

/// RFC 9112, 6.3: the coding wins. The length, which another reader could believe, is not passed on, nor
/// is there a second request.
#[tokio::test]
async fn a_length_beside_a_coding_is_not_passed_on() {
    for headers in [
        "Content-Length: 4\r\nTransfer-Encoding: chunked\r\n",
        "Transfer-Encoding: chunked\r\nContent-Length: 4\r\n",
    ] {
        let answer = "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok";
        let origin = Origin::until("0\r\n\r\n", answer).await;
        let body = "5\r\nhello\r\n0\r\n\r\n";
        let request = format!(
            "POST {} HTTP/1.1\r\nHost: x\r\n{headers}Connection: close\r\n\r\n{body}",
            origin.url()
        );
        let answer = exchange(&run(), request).await;
        assert_eq!(status_of(&answer), 200);
        assert_eq!(answer.matches("HTTP/1.1").count(), 1, "{answer}");
        let seen = origin.seen().to_lowercase();
        assert!(!seen.contains("content-length"), "{seen}");
        assert!(
            seen.ends_with("transfer-encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n"),
            "{seen}"
        );
    }
}

#[tokio::test]
async fn an_answer_that_is_none_is_a_bad_gateway() {
    for answer in [
        "nonsense\r\n\r\n",
        "",
        "HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\nConnection: upgrade\r\n\r\n",
        "HTTP/1.1 200 OK\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nab",
    ] {
        let origin = Origin::start(answer).await;
        assert_eq!(status(&run(), &origin.url()).await, 502, "{answer:?}");
    }
}

/// Whatever comes, an answer is HTTP or nothing, and the connection ends.
#[tokio::test]
async fn noise_does_no_harm() {
    let origin = Origin::hello().await;
    let mut random = fastrand::Rng::with_seed(7);
    let run = run();
    for _ in 0..500 {
        let mut bytes = get(&origin.url()).into_bytes();
        for _ in 0..random.usize(1..6) {
            let (place, byte) = (random.usize(..bytes.len()), random.u8(..));
            match random.u8(..4) {
                0 => bytes[place] = byte,
                1 => bytes.insert(place, byte),
                2 => drop(bytes.remove(place)),
                _ => bytes.truncate(place.max(8)),
            }
        }
        let (mut client, serving) = connect(&run);
        client.write_all(&bytes).await.unwrap();
        client.shutdown().await.unwrap();
        let answer = read_to_end(&mut client).await;
        let shown = String::from_utf8_lossy(&bytes);
        assert!(
            answer.is_empty() || answer.starts_with("HTTP/1."),
            "{shown:?}: {answer}"
        );
        serving.await.unwrap();
    }
}
