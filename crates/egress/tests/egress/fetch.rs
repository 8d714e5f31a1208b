//! Fetches of the server for its clients.

use std::time::Duration;

use isol8_egress::{Egress, FetchError, FetchLimits, Filter};
use tokio::io::AsyncWriteExt as _;

use crate::harness::*;

pub(crate) fn limits(egress: &Egress) -> FetchLimits {
    FetchLimits {
        max_bytes: 1000,
        timeout: PATIENCE,
        redirects: 3,
        allow_http: true,
        hosts: egress.policy(&Filter::default()).unwrap(),
    }
}

async fn fetch(url: &str) -> Result<String, FetchError> {
    let egress = egress(config(), resolver().name("inner.example", &[&["10.0.0.1"]]));
    let fetched = egress.fetch(url, &limits(&egress)).await?;
    Ok(String::from_utf8(fetched.into()).unwrap())
}

async fn leading_to(location: &str) -> Origin {
    let answer = format!("HTTP/1.1 302 Found\r\nLocation: {location}\r\nContent-Length: 0\r\n\r\n");
    Origin::start(answer).await
}

#[tokio::test]
async fn a_redirect_is_followed_to_the_text() {
    let origin = Origin::hello().await;
    assert_eq!(fetch(&origin.url()).await.unwrap(), "hello");
    let first = leading_to(&format!("//other.example:{}/x", origin.port)).await;
    assert_eq!(fetch(&first.url()).await.unwrap(), "hello");
    assert!(origin.seen().contains("GET /x HTTP/1.1\r\n"));
}

#[tokio::test]
async fn what_may_not_be_reached_is_not_reached_by_a_redirect_either() {
    for (to, expected) in [
        (
            "http://169.254.169.254/",
            "169.254.169.254 is not a public address",
        ),
        ("http://2130706434/", "127.0.0.2 is not a public address"),
        (
            "http://inner.example/",
            "inner.example has no public address, or cannot be resolved",
        ),
        ("file:///etc/passwd", "file: is not accepted"),
    ] {
        assert_eq!(fetch(to).await.unwrap_err().to_string(), expected);
        let origin = leading_to(to).await;
        assert_eq!(
            fetch(&origin.url()).await.unwrap_err().to_string(),
            expected
        );
    }
}

#[tokio::test]
async fn hosts_and_schemes_hold_for_every_redirect() {
    let origin = Origin::hello().await;
    let first = leading_to(&format!("http://other.example:{}/", origin.port)).await;
    let egress = egress(config(), resolver());
    let mut limits = limits(&egress);
    let filter = Filter {
        whitelist: vec!["^origin\\.example$".to_owned()],
        ..Filter::default()
    };
    limits.hosts = egress.policy(&filter).unwrap();
    let error = egress.fetch(&first.url(), &limits).await.unwrap_err();
    assert!(
        matches!(error, FetchError::Denied(_) | FetchError::NotPublic(_)),
        "{error}"
    );
    limits.allow_http = false;
    let error = egress.fetch(&origin.url(), &limits).await.unwrap_err();
    assert_eq!(error, FetchError::Scheme("http".to_owned()));
    assert_eq!(origin.seen(), "");
}

#[tokio::test]
async fn redirects_come_to_an_end() {
    let port = serve(|mut stream| async move {
        read_head(&mut stream).await;
        let answer = b"HTTP/1.1 307 Again\r\nLocation: /again\r\nContent-Length: 0\r\n\r\n";
        let _ = stream.write_all(answer).await;
    })
    .await;
    let error = fetch(&format!("http://origin.example:{port}/")).await;
    assert_eq!(error.unwrap_err().to_string(), "more than 3 redirects");
    let nowhere = Origin::start("HTTP/1.1 302 Found\r\nContent-Length: 0\r\n\r\n").await;
    let error = fetch(&nowhere.url()).await.unwrap_err();
    assert!(matches!(error, FetchError::Redirect(_)), "{error}");
}

#[tokio::test]
async fn a_body_that_is_too_large_is_refused_announced_or_not() {
    let body = "x".repeat(1001);
    for head in ["Content-Length: 1001\r\n", ""] {
        let origin = Origin::start(format!("HTTP/1.1 200 OK\r\n{head}\r\n{body}")).await;
        assert_eq!(fetch(&origin.url()).await, Err(FetchError::TooLarge(1000)));
    }
    let origin = Origin::start(format!("HTTP/1.1 200 OK\r\n\r\n{}", &body[1..])).await;
    assert_eq!(fetch(&origin.url()).await.unwrap().len(), 1000);
}

#[tokio::test]
async fn everything_but_the_text_is_an_error_that_says_what_was_there() {
    let missing = Origin::start("HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n").await;
    let cut = Origin::start("HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nhalf").await;
    for (url, expected) in [
        (&*missing.url(), "origin.example answered 404"),
        (
            &*cut.url(),
            "origin.example did not answer in HTTP to its end",
        ),
        (
            "http://unknown.example/",
            "unknown.example has no public address, or cannot be resolved",
        ),
        ("no url", "\"no url\" is not an absolute URL"),
    ] {
        assert_eq!(fetch(url).await.unwrap_err().to_string(), expected);
    }
}

#[tokio::test]
async fn a_fetch_ends_in_time() {
    let port = serve(|mut stream| async move {
        read_head(&mut stream).await;
        let _ = stream.write_all(b"HTTP/1.1 200 OK\r\n\r\n").await;
        std::future::pending::<()>().await;
    })
    .await;
    let egress = egress(config(), resolver());
    let mut limits = limits(&egress);
    limits.timeout = Duration::from_millis(200);
    let url = format!("http://origin.example:{port}/");
    let fetched = egress.fetch(&url, &limits).await;
    assert_eq!(fetched, Err(FetchError::TimedOut(limits.timeout)));
}
