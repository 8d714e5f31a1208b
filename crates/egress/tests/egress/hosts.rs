//! Who may be reached.

use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use isol8_egress::{Action, Egress, EgressConfig, Filter};

use crate::harness::*;

#[tokio::test]
async fn both_filters_must_admit_and_the_answer_says_whose_did_not() {
    let origin = Origin::hello().await;
    let mut config = config();
    config.blacklist = vec!["^other\\.".to_owned()];
    let egress = egress(config, resolver());
    let filter = Filter {
        whitelist: vec!["\\.example$".to_owned()],
        blacklist: vec!["^origin".to_owned()],
    };
    let run = egress.run(egress.policy(&filter).unwrap(), true);
    for (host, why) in [
        (
            "ORIGIN.example",
            "origin.example is on the request's blacklist",
        ),
        (
            "other.example",
            "other.example is on the server's blacklist",
        ),
        (
            "example.org",
            "example.org is not on the request's whitelist",
        ),
    ] {
        for request in [
            get(&format!("http://{host}:{}/", origin.port)),
            format!(
                "CONNECT {host}:{} HTTP/1.1\r\nConnection: close\r\n\r\n",
                origin.port
            ),
        ] {
            let answer = exchange(&run, request).await;
            assert_eq!(status_of(&answer), 403);
            assert!(answer.contains(why), "{answer}");
        }
    }
    assert!(run.log().iter().all(|entry| entry.action == Action::Block));
    assert_eq!(origin.seen(), "");
}

#[tokio::test]
async fn a_pattern_that_is_none_is_an_error_before_anything_runs() {
    let egress = egress(config(), resolver());
    let filter = Filter {
        whitelist: vec!["a".to_owned(), "*".to_owned()],
        ..Filter::default()
    };
    let error = egress.policy(&filter).unwrap_err().to_string();
    assert!(error.starts_with("whitelist[1]: \"*\""), "{error}");
}

#[test]
fn a_range_of_addresses_that_is_none_is_named() {
    let config = EgressConfig {
        allowed_cidrs: vec!["10.0.0.0/8".to_owned(), "10.0.0.0/33".to_owned()],
        ..EgressConfig::default()
    };
    let error = Egress::new(config).unwrap_err().to_string();
    assert!(error.starts_with("\"10.0.0.0/33\""), "{error}");
}

#[tokio::test]
async fn loopback_is_refused_however_it_is_written() {
    let origin = Origin::hello().await;
    let mut config = config();
    config.allowed_cidrs.clear();
    let run = run_of(&egress(config, resolver()));
    for host in [
        "127.0.0.1",
        "127.1",
        "2130706433",
        "0x7f.1",
        "0177.0.0.1",
        "0x7f000001",
        "[::1]",
        "[::ffff:127.0.0.1]",
        "[::ffff:7f00:1]",
        "0",
        "0.0.0.0",
        "127.0.0.1.",
        "origin.example",
    ] {
        let url = format!("http://{host}:{}/", origin.port);
        let answer = exchange(&run, get(&url)).await;
        assert_eq!(status_of(&answer), 403, "{host}");
    }
    assert_eq!(origin.seen(), "");
}

#[tokio::test]
async fn the_address_of_a_name_is_looked_up_once_and_that_one_is_connected_to() {
    let origin = Origin::hello().await;
    let answers: &[&[&str]] = &[&["127.0.0.1"], &["127.0.0.2"]];
    let resolver = Arc::new(Scripted::default().name("rebind.example", answers));
    let egress = Egress::with_resolver(config(), resolver.clone()).unwrap();
    let run = run_of(&egress);
    let url = format!("http://rebind.example:{}/", origin.port);
    assert_eq!(status(&run, &url).await, 200);
    assert_eq!(resolver.asked.load(Ordering::SeqCst), 1);
    assert_eq!(status(&run, &url).await, 403);
    assert_eq!(resolver.asked.load(Ordering::SeqCst), 2);
}

#[tokio::test]
async fn of_several_addresses_those_that_are_allowed_are_tried() {
    let origin = Origin::hello().await;
    // Nobody listens on the second one: the third is tried.
    let mut config = config();
    config.allowed_cidrs.push("127.0.0.3".to_owned());
    let answers: &[&[&str]] = &[&["10.0.0.1", "127.0.0.3", "127.0.0.1", "fe80::1"]];
    let run = run_of(&egress(config, resolver().name("many.example", answers)));
    let url = format!("http://many.example:{}/", origin.port);
    assert_eq!(status(&run, &url).await, 200);
}

#[tokio::test]
async fn an_address_that_the_client_did_not_name_is_not_told() {
    let run = run_of(&egress(
        config(),
        resolver().name("inner.example", &[&["10.1.2.3"]]),
    ));
    let answer = exchange(&run, get("http://inner.example/")).await;
    assert_eq!(status_of(&answer), 403);
    assert!(
        answer.contains("inner.example has no public address"),
        "{answer}"
    );
    assert!(!answer.contains("10.1"), "{answer}");
    assert_eq!(run.log()[0].action, Action::Block);
}

#[tokio::test]
async fn a_host_that_cannot_be_reached_is_told_from_one_that_may_not() {
    let unused = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = unused.local_addr().unwrap().port();
    drop(unused);
    let mut config = config();
    config.limits.connect_timeout = Duration::from_millis(200);
    let run = run_of(&egress(config, resolver().silent("silent.example")));
    for (url, expected, text) in [
        (
            "http://unknown.example/",
            502,
            "unknown.example cannot be resolved",
        ),
        (
            &*format!("http://origin.example:{port}/"),
            502,
            "does not accept connections on port",
        ),
        (
            "http://silent.example/",
            504,
            "silent.example did not answer in time",
        ),
    ] {
        let answer = exchange(&run, get(url)).await;
        assert_eq!(status_of(&answer), expected);
        assert!(answer.contains(text), "{answer}");
    }
    assert!(run.log().iter().all(|entry| entry.action == Action::Allow));
}

#[tokio::test]
async fn names_are_resolved_as_the_hosts_programs_do() {
    use isol8_egress::Resolve as _;
    let resolver = isol8_egress::SystemResolver::default();
    let found = resolver.resolve("localhost").await.unwrap();
    assert!(found.iter().all(IpAddr::is_loopback) && !found.is_empty());
    assert!(resolver.resolve("no-such-host.invalid").await.is_err());
}
