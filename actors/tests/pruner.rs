//! Idle sessions are ended.
#![allow(clippy::unwrap_used)] // A failed expectation is the test failing.

mod common;

use std::time::Duration;

use common::{TestService, config, job};
use isol8_actors::ExecuteError;
use isol8_api::ErrorCode;

const MINUTE: Duration = Duration::from_secs(60);

fn pruning(max_age: Duration) -> isol8_actors::ServiceConfig {
    let mut config = config();
    config.pruner.max_age = max_age;
    config
}

async fn sessions(fixture: &TestService) -> usize {
    fixture.service.observe().await.unwrap().sessions.sessions
}

#[actix::test]
async fn an_idle_session_ends_and_the_next_request_is_told_so_once() {
    let fixture = TestService::new(pruning(10 * MINUTE));
    fixture.in_session("s", "set x 1").await.unwrap();
    tokio::time::sleep(9 * MINUTE).await;
    assert_eq!(fixture.in_session("s", "get x").await.unwrap().stdout, "1");
    tokio::time::sleep(9 * MINUTE).await;
    assert_eq!(sessions(&fixture).await, 1, "its use began its age anew");
    tokio::time::sleep(3 * MINUTE).await;
    assert_eq!(sessions(&fixture).await, 0);
    fixture
        .until("removed", |h| h.backend.counters().live() == 0)
        .await;
    let error = fixture.in_session("s", "get x").await.unwrap_err();
    assert_eq!(error.code(), ErrorCode::SessionLost);
    let text = error.to_string();
    assert!(
        text.contains("cleanup.maxContainerAgeMs") && text.contains("cleanup.autoPrune"),
        "{text}"
    );
    assert_eq!(fixture.in_session("s", "get x").await.unwrap().stdout, "");
    fixture.finish().await;
}

#[actix::test]
async fn a_session_that_runs_or_waits_is_never_ended() {
    let fixture = TestService::new(pruning(MINUTE));
    let mut long = job("sleep 3000000");
    long.timeout = 60 * MINUTE;
    let mut waiting = job("sleep 600000");
    waiting.timeout = 60 * MINUTE;
    let running = fixture.spawn_as("t", Some("s"), long);
    let waiting = fixture.spawn_as("t", Some("s"), waiting);
    assert_eq!(running.await.unwrap().unwrap().exit_code, 0);
    assert_eq!(waiting.await.unwrap().unwrap().exit_code, 0);
    assert_eq!(sessions(&fixture).await, 1);
    tokio::time::sleep(3 * MINUTE).await;
    assert_eq!(sessions(&fixture).await, 0);
    fixture.finish().await;
}

#[actix::test]
async fn without_auto_prune_sessions_stay() {
    let mut config = pruning(MINUTE);
    config.pruner.auto_prune = false;
    let fixture = TestService::new(config);
    fixture.in_session("s", "set x 1").await.unwrap();
    tokio::time::sleep(24 * 60 * MINUTE).await;
    assert!(fixture.service.observe().await.unwrap().pruner.ticks > 1000);
    assert_eq!(fixture.in_session("s", "get x").await.unwrap().stdout, "1");
    fixture.finish().await;
}

#[actix::test]
async fn a_request_that_meets_the_pruner_runs_or_is_told() {
    let fixture = TestService::new(pruning(MINUTE));
    for pause in 118..124 {
        let session = format!("s{pause}");
        fixture.in_session(&session, "set x 1").await.unwrap();
        tokio::time::sleep(Duration::from_secs(pause)).await;
        match fixture.in_session(&session, "get x").await {
            Ok(result) => assert_eq!(result.stdout, "1"),
            Err(error) => assert!(matches!(error, ExecuteError::SessionLost { .. }), "{error}"),
        }
    }
    fixture.finish().await;
}
