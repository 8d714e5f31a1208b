//! The hosts that may be reached.

use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use isol8_egress::{Action, Egress, EgressConfig, FetchError, Filter};

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
    // No socket listens at the second one: the third is tried.
    let mut config = config();
    config.allowed_cidrs.push("127.0.0.3".to_owned());
    let answers: &[&[&str]] = &[&["10.0.0.1", "127.0.0.3", "127.0.0.1", "fe80::1"]];
    let run = run_of(&egress(config, resolver().name("many.example", answers)));
    let url = format!("http://many.example:{}/", origin.port);
    assert_eq!(status(&run, &url).await, 200);
}

#[tokio::test]
async fn a_name_of_the_operators_network_is_answered_as_one_that_does_not_exist() {
    let inner = resolver().name("inner.example", &[&["10.1.2.3"], &["10.1.2.3"]]);
    let egress = egress(config(), inner);
    let requests = [
        |name: &str| get(&format!("http://{name}/")),
        |name: &str| format!("CONNECT {name}:443 HTTP/1.1\r\nConnection: close\r\n\r\n"),
    ];
    for request in requests {
        let mut seen = Vec::new();
        for name in ["inner.example", "never.example"] {
            let run = run_of(&egress);
            let begun = Instant::now();
            let answer = exchange(&run, request(name)).await;
            assert_eq!(status_of(&answer), 403);
            let text = format!("{name} has no public address, or cannot be resolved");
            assert!(answer.contains(&text), "{answer}");
            assert!(!answer.contains("10.1"), "{answer}");
            // A refusal waits for the next step of 100 ms, whatever the name is.
            assert!(begun.elapsed() >= Duration::from_millis(100));
            let action = run.log()[0].action;
            seen.push((without_date(&answer).replace(name, "NAME"), action));
        }
        assert_eq!(seen[0], seen[1]);
        assert_eq!(seen[0].1, Action::Block);
    }
    // The same for what the server fetches itself.
    let limits = crate::fetch::limits(&egress);
    let mut told = Vec::new();
    for name in ["inner.example", "never.example"] {
        let error = egress.fetch(&format!("http://{name}/"), &limits).await;
        let error = error.unwrap_err();
        assert!(
            matches!(error, FetchError::Denied(_) | FetchError::NotPublic(_)),
            "{error:?}"
        );
        told.push(error.to_string().replace(name, "NAME"));
    }
    assert_eq!(told[0], told[1]);
}

fn without_date(answer: &str) -> String {
    let lines = answer.lines();
    let kept: Vec<_> = lines.filter(|line| !line.starts_with("date:")).collect();
    kept.join("\n")
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

#[tokio::test]
async fn only_the_listed_ports_are_reached_by_requests_tunnels_and_fetches() {
    let origin = Origin::hello().await;
    let other = Origin::hello().await;
    let mut config = config();
    config.ports = [origin.port.to_string().parse().unwrap()]
        .into_iter()
        .collect();
    let egress = egress(config, resolver());
    let run = run_of(&egress);
    assert_eq!(status(&run, &origin.url()).await, 200);
    let why = format!(
        "port {} of origin.example may not be reached, only {}: the operator can add it to network.ports",
        other.port, origin.port
    );
    let tunnel = format!(
        "CONNECT origin.example:{} HTTP/1.1\r\nConnection: close\r\n\r\n",
        other.port
    );
    for request in [get(&other.url()), tunnel] {
        let answer = exchange(&run, request).await;
        assert_eq!(status_of(&answer), 403);
        assert!(answer.contains(&why), "{answer}");
    }
    let refused = run.log().into_iter().skip(1);
    assert_eq!(
        refused.map(|entry| entry.action).collect::<Vec<_>>(),
        [Action::Block; 2]
    );
    let limits = crate::fetch::limits(&egress);
    assert!(egress.fetch(&origin.url(), &limits).await.is_ok());
    let error = egress.fetch(&other.url(), &limits).await.unwrap_err();
    assert!(error.to_string().contains(&why), "{error}");
    assert_eq!(other.seen(), "");
}

#[tokio::test]
async fn without_a_list_the_ports_of_the_web_are_reached_and_no_others() {
    let config = EgressConfig {
        ports: isol8_egress::Ports::default(),
        ..config()
    };
    let run = run_of(&egress(config, resolver()));
    for port in [22, 25, 6379, 8080] {
        let answer = exchange(&run, get(&format!("http://origin.example:{port}/"))).await;
        let why = format!("port {port} of origin.example may not be reached, only 80, 443");
        assert!(answer.contains(&why), "{answer}");
    }
}
