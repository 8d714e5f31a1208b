//! Connections of a job's programs.
#![allow(clippy::unwrap_used)] // A failed expectation is the test failing.

mod common;

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use common::{TestService, config, job, with_pool};
use futures::future::BoxFuture;
use isol8_actors::{ExecuteError, Job, Network};
use isol8_api::{NetworkAction, NetworkLogEntry};
use isol8_backend::Tunnel;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

/// Answers each connection with the bytes it sent, backwards. A connection that sends `hang` gets no answer.
#[derive(Clone, Debug, Default)]
struct Backwards {
    asked: Arc<Mutex<Vec<String>>>,
    under_way: Arc<AtomicU64>,
}

struct UnderWay(Arc<AtomicU64>);

impl Drop for UnderWay {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::SeqCst);
    }
}

impl Network for Backwards {
    fn serve(&self, mut connection: Tunnel) -> BoxFuture<'static, ()> {
        let this = self.clone();
        Box::pin(async move {
            this.under_way.fetch_add(1, Ordering::SeqCst);
            let _under_way = UnderWay(this.under_way);
            let mut text = String::new();
            connection.read_to_string(&mut text).await.unwrap();
            assert_ne!(text, "panic");
            this.asked.lock().unwrap().push(text.clone());
            if text == "hang" {
                std::future::pending::<()>().await;
            }
            let answer: String = text.chars().rev().collect();
            connection.write_all(answer.as_bytes()).await.unwrap();
        })
    }

    fn bytes(&self) -> (u64, u64) {
        (7, 9)
    }

    fn log(&self) -> Option<Vec<NetworkLogEntry>> {
        let asked = self.asked.lock().unwrap();
        let entry = |text: &String| NetworkLogEntry {
            timestamp: String::new(),
            method: "GET".to_owned(),
            host: text.clone(),
            path: Some(format!("/find?text={text}")),
            action: NetworkAction::Allow,
            duration_ms: 0.0,
        };
        Some(asked.iter().map(entry).collect())
    }
}

#[actix::test]
async fn connections_of_a_job_s_programs_go_to_its_network() {
    let fixture = TestService::new(config());
    let network = Backwards::default();
    let mut asks = job("connect olleh");
    asks.network = Some(Arc::new(network.clone()));
    asks.setup_script = Some("connect putes".to_owned());
    let result = fixture.run(asks).await.unwrap();
    assert_eq!(result.stdout, "hello");
    let logs = result.network_logs.unwrap();
    let hosts: Vec<_> = logs.iter().map(|entry| entry.host.as_str()).collect();
    assert_eq!(hosts, ["putes", "olleh"]);
    let usage = result.resource_usage.unwrap();
    assert_eq!((usage.network_bytes_in, usage.network_bytes_out), (7, 9));

    let result = fixture.run(job("connect olleh")).await.unwrap();
    assert_eq!(result.stderr, "there is no network");
    assert_eq!(result.network_logs, None);
    fixture.finish().await;
}

#[actix::test]
async fn secrets_are_masked_in_what_was_asked_for() {
    let fixture = TestService::new(config());
    let mut asks = job("connect hunter2");
    asks.network = Some(Arc::new(Backwards::default()));
    asks.secrets = vec!["hunter2".to_owned()];
    let result = fixture.run(asks).await.unwrap();
    let logs = result.network_logs.unwrap();
    assert_eq!(logs[0].host, "***");
    assert_eq!(logs[0].path.as_deref(), Some("/find?text=***"));
    assert_eq!(logs[0].method, "GET");
    fixture.finish().await;
}

#[actix::test]
async fn connections_end_with_their_run_and_one_that_panics_ends_alone() {
    let fixture = TestService::new(config());
    let network = Backwards::default();
    let mut hangs = job("connect panic; print on; connect hang");
    hangs.network = Some(Arc::new(network.clone()));
    hangs.timeout = std::time::Duration::from_secs(5);
    let result = fixture.run(hangs).await.unwrap();
    assert!(result.timed_out);
    assert!(result.stdout.starts_with("on"), "{}", result.stdout);
    assert_eq!(network.under_way.load(Ordering::SeqCst), 0);
    fixture.finish().await;
}

#[actix::test]
async fn a_network_that_is_busy_does_not_hold_up_a_cancelled_run() {
    let fixture = TestService::new(config());
    let network = Backwards::default();
    let mut hangs = job("connect hang");
    hangs.network = Some(Arc::new(network.clone()));
    let waiting = tokio::time::timeout(std::time::Duration::from_secs(1), fixture.run(hangs));
    assert!(waiting.await.is_err(), "the caller gave it up");
    let next: Result<_, ExecuteError> = fixture.run(job("print next")).await;
    assert_eq!(next.unwrap().stdout, "next");
    assert_eq!(network.under_way.load(Ordering::SeqCst), 0);
    fixture.finish().await;
}

/// A job in the host's network.
fn outside(code: &str) -> Job {
    let mut job = job(code);
    job.sandbox.host_network = true;
    job
}

#[actix::test]
async fn a_sandbox_in_the_host_s_network_serves_one_request_and_comes_from_no_shelf() {
    let fixture = TestService::new(with_pool(1, 4));
    fixture.until_waiting(1, 0).await;
    for made in 2..4 {
        fixture.run(outside("print 1")).await.unwrap();
        assert_eq!(fixture.backend.counters().created, made);
    }
    fixture.until_waiting(1, 0).await;
    fixture.run(job("print 1")).await.unwrap();
    fixture.finish().await;
}

#[actix::test]
async fn one_that_is_made_for_nobody_any_more_does_not_serve_another() {
    let fixture = TestService::new(config());
    fixture
        .backend
        .slow_create(std::time::Duration::from_secs(5));
    let second = std::time::Duration::from_secs(1);
    let given_up = tokio::time::timeout(second, fixture.run(outside("print 1")));
    assert!(given_up.await.is_err());
    fixture.run(job("print 2")).await.unwrap();
    assert_eq!(fixture.backend.counters().created, 2);
    fixture.finish().await;
}

#[actix::test]
async fn a_session_stays_in_the_network_that_it_began_in() {
    let fixture = TestService::new(config());
    for (session, first, other, text) in [
        ("inside", job("set x 1"), outside("get x"), "is not in"),
        ("outside", outside("set x 1"), job("get x"), "is in"),
    ] {
        fixture.run_as("t", Some(session), first).await.unwrap();
        let error = fixture.run_as("t", Some(session), other).await.unwrap_err();
        assert!(error.to_string().contains(text), "{error}");
        let mut same = job("get x");
        same.sandbox.host_network = session == "outside";
        let result = fixture.run_as("t", Some(session), same).await.unwrap();
        assert_eq!(result.stdout, "1");
    }
    fixture.finish().await;
}
