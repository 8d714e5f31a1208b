//! Everything together: admission, callers that leave, and the end.
#![allow(clippy::unwrap_used)] // A failed expectation is the test failing.

mod common;

use std::time::Duration;

use common::{TestService, config, job, with_pool};
use isol8_actors::ExecuteError;
use isol8_api::ErrorCode;
use isol8_backend::fake::FakeBackend;
use tokio::time::Instant;

fn narrow(max_concurrent: usize, max_waiting: usize) -> isol8_actors::ServiceConfig {
    let mut config = config();
    config.admission.max_concurrent = max_concurrent;
    config.admission.max_waiting = max_waiting;
    config
}

#[actix::test]
async fn jobs_get_their_turns_in_order_of_arrival() {
    let fixture = TestService::new(narrow(2, 10));
    let start = Instant::now();
    let runs: Vec<_> = (0..6)
        .map(|_| fixture.spawn_as("t", None, job("sleep 1000")))
        .collect();
    let mut ends = Vec::new();
    for run in runs {
        run.await.unwrap().unwrap();
        ends.push(start.elapsed().as_secs());
    }
    assert_eq!(ends, [1, 1, 2, 2, 3, 3]);
    fixture.finish().await;
}

#[actix::test]
async fn sessions_and_ephemeral_runs_share_the_same_turns() {
    let fixture = TestService::new(narrow(2, 10));
    let start = Instant::now();
    let runs: Vec<_> = (0..6)
        .map(|n| {
            let session = (n % 2 == 0).then(|| format!("s{n}"));
            fixture.spawn_as("t", session.as_deref(), job("sleep 1000"))
        })
        .collect();
    for run in runs {
        run.await.unwrap().unwrap();
    }
    assert_eq!(start.elapsed().as_secs(), 3);
    fixture.finish().await;
}

#[actix::test]
async fn a_job_that_waits_in_its_session_takes_no_turn() {
    let fixture = TestService::new(narrow(2, 10));
    let first = fixture.spawn_as("t", Some("s"), job("sleep 1000"));
    fixture
        .until("running", |h| h.backend.counters().runs == 1)
        .await;
    let second = fixture.spawn_as("t", Some("s"), job("sleep 1000"));
    tokio::task::yield_now().await;
    let start = Instant::now();
    fixture.output("print 1").await;
    assert!(start.elapsed() < Duration::from_millis(500));
    for run in [first, second] {
        run.await.unwrap().unwrap();
    }
    fixture.finish().await;
}

#[actix::test]
async fn beyond_the_queue_the_answer_is_when_to_come_back() {
    let fixture = TestService::new(narrow(1, 1));
    let running = fixture.spawn_as("t", None, job("sleep 1000"));
    fixture
        .until("running", |h| h.backend.counters().runs == 1)
        .await;
    let waiting = fixture.spawn_as("t", None, job("print 1"));
    tokio::time::sleep(Duration::from_millis(1)).await;
    let error = fixture.run(job("print 1")).await.unwrap_err();
    assert_eq!(error.code(), ErrorCode::Unavailable);
    assert_eq!(error.retry_after(), Some(Duration::from_secs(1)));
    for run in [running, waiting] {
        run.await.unwrap().unwrap();
    }
    fixture.finish().await;
}

#[actix::test]
async fn a_wait_for_a_turn_has_an_end() {
    let mut config = narrow(1, 10);
    config.admission.max_wait = Duration::from_secs(1);
    let fixture = TestService::new(config);
    let mut long = job("sleep 20000");
    long.timeout = Duration::from_secs(60);
    let running = fixture.spawn_as("t", None, long);
    fixture
        .until("running", |h| h.backend.counters().runs == 1)
        .await;
    let error = fixture.run(job("print 1")).await.unwrap_err();
    assert!(matches!(error, ExecuteError::Overloaded { .. }), "{error}");
    running.await.unwrap().unwrap();
    fixture.finish().await;
}

#[actix::test]
async fn a_caller_that_leaves_ends_its_run_within_moments() {
    let fixture = TestService::new(narrow(1, 10));
    let run = fixture.spawn_as("t", None, job("hang"));
    fixture
        .until("running", |h| h.backend.counters().runs == 1)
        .await;
    let start = Instant::now();
    run.abort();
    assert_eq!(fixture.output("print 1").await, "1", "its turn is free");
    assert!(start.elapsed() < Duration::from_millis(100));
    fixture.finish().await;
}

#[actix::test]
async fn a_caller_that_leaves_at_any_moment_leaks_nothing() {
    tokio::time::pause();
    // Moments of a job: waiting for a turn, for a sandbox, for files, setup, program, output.
    for moment in [0, 1, 4, 5, 6, 9, 10, 11, 14, 15, 19, 20, 21, 30] {
        for session in [None, Some("s")] {
            let fixture = TestService::next_to_another(FakeBackend::new(), with_pool(0, 4));
            fixture.backend.slow_create(Duration::from_millis(5));
            let mut all = job("sleep 5\nwrite /tmp/out x");
            all.setup_script = Some("sleep 5".to_owned());
            all.files = vec![("/tmp/in".parse().unwrap(), vec![0; 2_000_000])];
            all.output_paths = vec!["/tmp/out".parse().unwrap()];
            let run = fixture.spawn_as("t", session, all);
            tokio::time::sleep(Duration::from_millis(moment)).await;
            run.abort();
            let next = fixture.run_as("t", session, job("print 1")).await.unwrap();
            assert_eq!(next.stdout, "1", "{moment} {session:?}");
            fixture.finish().await;
        }
    }
}

#[actix::test]
async fn a_shutdown_lets_jobs_end_within_its_grace() {
    let fixture = TestService::new(config());
    let run = fixture.spawn_as("t", None, job("sleep 5000\nprint done"));
    fixture
        .until("running", |h| h.backend.counters().runs == 1)
        .await;
    fixture.clone().finish().await;
    assert_eq!(run.await.unwrap().unwrap().stdout, "done");
}

#[actix::test]
async fn a_shutdown_ends_what_does_not_end_by_itself() {
    let fixture = TestService::new(config());
    let mut long = job("hang");
    long.timeout = Duration::from_secs(3600);
    let runs = [None, Some("s")].map(|session| fixture.spawn_as("t", session, long.clone()));
    fixture
        .until("running", |h| h.backend.counters().runs == 2)
        .await;
    let start = Instant::now();
    fixture.clone().finish().await;
    assert!(
        start.elapsed() < Duration::from_secs(15),
        "{:?}",
        start.elapsed()
    );
    for run in runs {
        assert_eq!(run.await.unwrap(), Err(ExecuteError::ShuttingDown));
    }
}

#[actix::test]
async fn a_shutdown_with_a_hanging_backend_ends_all_the_same() {
    let fixture = TestService::new(with_pool(2, 4));
    fixture.until_waiting(2, 0).await;
    fixture.output("print 1").await;
    fixture.backend.hang_create(true);
    fixture.backend.hang_reset(true);
    fixture.finish().await;
}

#[actix::test]
async fn every_part_shows_its_state_as_json() {
    let fixture = TestService::new(with_pool(1, 4));
    fixture.until_waiting(1, 0).await;
    fixture.in_session("s", "print 1").await.unwrap();
    fixture.until_waiting(1, 0).await;
    let state = fixture.service.observe().await.unwrap();
    let json = serde_json::to_value(&state).unwrap();
    assert_eq!(json["pool"]["runtimes"]["python"]["clean"], 1);
    assert_eq!(json["sessions"]["sessions"], 1);
    assert_eq!(json["admission"]["running"], 0);
    fixture.finish().await;
}
