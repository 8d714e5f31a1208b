//! Sandboxes that keep their state, and who may use them.
#![allow(clippy::unwrap_used)] // A failed expectation is the test failing.

mod common;

use std::time::Duration;

use common::{TestService, config, job, job_in, tenant, with_pool};
use isol8_actors::ExecuteError;
use isol8_actors::session::Phase;
use isol8_api::{ErrorCode, Runtime};

#[actix::test]
async fn a_session_keeps_variables_and_files_and_others_see_none() {
    let fixture = TestService::new(config());
    let set = "set x 41\nwrite /sandbox/f kept";
    fixture.in_session("a", set).await.unwrap();
    let get = "get x\ncat /sandbox/f";
    assert_eq!(
        fixture.in_session("a", get).await.unwrap().stdout,
        "41\nkept"
    );
    assert_eq!(fixture.in_session("b", get).await.unwrap().stdout, "");
    assert_eq!(fixture.output(get).await, "");
    fixture.finish().await;
}

#[actix::test]
async fn the_same_id_of_two_tenants_is_two_sessions() {
    let fixture = TestService::new(config());
    fixture
        .run_as("a", Some("s"), job("set x 1"))
        .await
        .unwrap();
    let other = fixture.run_as("b", Some("s"), job("get x")).await.unwrap();
    assert_eq!(other.stdout, "");
    let mine = fixture.service.sessions(Some(tenant("a"))).await.unwrap();
    assert_eq!(mine.len(), 1);
    assert_eq!(mine[0].tenant_id, None);
    let all = fixture.service.sessions(None).await.unwrap();
    assert_eq!(all.len(), 2);
    assert_eq!(all[1].tenant_id, Some(tenant("b")));
    fixture.finish().await;
}

#[actix::test]
async fn two_first_requests_make_one_sandbox() {
    let fixture = TestService::new(config());
    fixture.backend.slow_create(Duration::from_secs(1));
    let both = [job("set x 1"), job("get x")].map(|job| fixture.spawn_as("t", Some("s"), job));
    for run in both {
        run.await.unwrap().unwrap();
    }
    assert_eq!(fixture.backend.counters().created, 1);
    fixture.finish().await;
}

#[actix::test]
async fn a_new_session_takes_its_sandbox_from_the_pool() {
    let fixture = TestService::new(with_pool(1, 0));
    fixture.until_waiting(1, 0).await;
    fixture.backend.hang_create(true);
    let result = fixture.in_session("s", "print 1").await.unwrap();
    assert_eq!(result.stdout, "1");
    fixture.finish().await;
}

#[actix::test]
async fn jobs_of_a_session_run_one_at_a_time_in_order_of_arrival() {
    let fixture = TestService::new(config());
    let runs: Vec<_> = (0..5)
        .map(|n| {
            let code = format!("get last\nset last {n}\nsleep 100");
            fixture.spawn_as("t", Some("s"), job(&code))
        })
        .collect();
    let mut seen = Vec::new();
    for run in runs {
        seen.push(run.await.unwrap().unwrap().stdout);
    }
    assert_eq!(seen, ["", "0", "1", "2", "3"]);
    fixture.finish().await;
}

#[actix::test]
async fn a_full_queue_refuses_at_once_and_the_session_goes_on() {
    let mut config = config();
    config.sessions.queue_limit = 2;
    let fixture = TestService::new(config);
    let _running = fixture.spawn_as("t", Some("s"), job("sleep 1000"));
    fixture
        .until("running", |h| h.backend.counters().runs == 1)
        .await;
    let waiting = [0, 1].map(|_| fixture.spawn_as("t", Some("s"), job("print 1")));
    let observe = || {
        fixture
            .service
            .observe_session(tenant("t"), "s".parse().unwrap())
    };
    while observe().await.unwrap().unwrap().waiting < 2 {
        tokio::task::yield_now().await;
    }
    assert_eq!(observe().await.unwrap().unwrap().phase, Phase::Running);
    let error = fixture.in_session("s", "print 1").await.unwrap_err();
    assert_eq!(error.code(), ErrorCode::TooManyRequests);
    for run in waiting {
        assert_eq!(run.await.unwrap().unwrap().stdout, "1");
    }
    fixture.finish().await;
}

#[actix::test]
async fn another_runtime_is_refused_and_the_text_names_both() {
    let fixture = TestService::new(config());
    fixture.in_session("s", "print 1").await.unwrap();
    let other = job_in(Runtime::Bash, "print 1");
    let error = fixture.run_as("t", Some("s"), other).await.unwrap_err();
    assert_eq!(error.code(), ErrorCode::RuntimeMismatch);
    let text = error.to_string();
    assert!(text.contains("python") && text.contains("bash"), "{text}");
    fixture.finish().await;
}

#[actix::test]
async fn a_caller_that_leaves_ends_its_run_and_the_loss_of_state_is_said() {
    let fixture = TestService::new(config());
    fixture.in_session("s", "set x 1").await.unwrap();
    let run = fixture.spawn_as("t", Some("s"), job("hang"));
    fixture
        .until("running", |h| h.backend.counters().runs == 2)
        .await;
    run.abort();
    let next = fixture.in_session("s", "get x").await.unwrap();
    assert!(next.state_lost);
    assert_eq!(next.stdout, "");
    let after = fixture.in_session("s", "print 1").await.unwrap();
    assert!(!after.state_lost, "said once");
    fixture.finish().await;
}

#[actix::test]
async fn a_caller_that_leaves_the_queue_is_never_run() {
    let fixture = TestService::new(config());
    let first = fixture.spawn_as("t", Some("s"), job("sleep 1000"));
    fixture
        .until("running", |h| h.backend.counters().runs == 1)
        .await;
    let second = fixture.spawn_as("t", Some("s"), job("write /sandbox/f x"));
    tokio::task::yield_now().await;
    second.abort();
    first.await.unwrap().unwrap();
    let seen = fixture.in_session("s", "cat /sandbox/f").await.unwrap();
    assert_eq!(seen.stdout, "");
    assert_eq!(fixture.backend.counters().runs, 2);
    fixture.finish().await;
}

#[actix::test]
async fn code_that_kills_the_interpreter_loses_state_keeps_files_and_says_so() {
    let fixture = TestService::new(config());
    fixture
        .in_session("s", "set x 1\nwrite /tmp/f kept")
        .await
        .unwrap();
    assert!(fixture.in_session("s", "crash").await.unwrap().state_lost);
    let next = fixture.in_session("s", "get x\ncat /tmp/f").await.unwrap();
    assert_eq!((next.stdout.as_str(), next.state_lost), ("kept", false));
    fixture.finish().await;
}

#[actix::test]
async fn deleting_ends_the_run_and_frees_the_id() {
    let fixture = TestService::new(config());
    let run = fixture.spawn_as("t", Some("s"), job("hang"));
    let waiting = fixture.spawn_as("t", Some("s"), job("print 1"));
    fixture
        .until("running", |h| h.backend.counters().runs == 1)
        .await;
    let delete = || {
        fixture
            .service
            .delete_session(tenant("t"), "s".parse().unwrap())
    };
    assert_eq!(delete().await, Ok(true));
    assert_eq!(
        fixture.backend.counters().live(),
        0,
        "gone when it is answered"
    );
    for told in [run, waiting] {
        let error = told.await.unwrap().unwrap_err();
        assert!(
            matches!(error, ExecuteError::SessionDeleted { .. }),
            "{error}"
        );
    }
    assert_eq!(delete().await, Ok(false));
    assert_eq!(
        fixture.in_session("s", "print 1").await.unwrap().stdout,
        "1"
    );
    fixture.finish().await;
}

#[actix::test]
async fn a_session_that_dies_idle_is_noticed_at_once_and_reported_once() {
    let fixture = TestService::new(config());
    fixture.in_session("s", "set x 1").await.unwrap();
    fixture.backend.kill_all();
    fixture
        .until("destroyed", |h| h.backend.counters().live() == 0)
        .await;
    assert_eq!(fixture.service.sessions(None).await, Ok(Vec::new()));

    let error = fixture.in_session("s", "get x").await.unwrap_err();
    assert_eq!(error.code(), ErrorCode::SessionLost);
    assert_eq!(fixture.in_session("s", "get x").await.unwrap().stdout, "");
    fixture.finish().await;
}

#[actix::test]
async fn a_session_that_dies_under_its_jobs_tells_them_and_nobody_else() {
    let fixture = TestService::new(config());
    let running = fixture.spawn_as("t", Some("s"), job("sleep 10\ndie"));
    let waiting = fixture.spawn_as("t", Some("s"), job("print 1"));
    for told in [running, waiting] {
        let error = told.await.unwrap().unwrap_err();
        assert_eq!(error.code(), ErrorCode::SessionLost);
    }
    assert_eq!(
        fixture.in_session("s", "print 1").await.unwrap().stdout,
        "1"
    );
    fixture.finish().await;
}

#[actix::test]
async fn a_loss_that_its_caller_did_not_wait_for_is_told_to_the_next() {
    let fixture = TestService::new(config());
    let run = fixture.spawn_as("t", Some("s"), job("hang"));
    fixture
        .until("running", |h| h.backend.counters().runs == 1)
        .await;
    run.abort();
    fixture.backend.kill_all();
    fixture
        .until("destroyed", |h| h.backend.counters().live() == 0)
        .await;
    let error = fixture.in_session("s", "print 1").await.unwrap_err();
    assert_eq!(error.code(), ErrorCode::SessionLost);
    fixture.finish().await;
}

#[actix::test]
async fn a_first_request_that_fails_leaves_no_session() {
    let fixture = TestService::new(config());
    fixture.backend.fail_next_creates(1);
    let error = fixture.in_session("s", "print 1").await.unwrap_err();
    assert_eq!(error.code(), ErrorCode::BackendUnavailable);
    assert_eq!(
        fixture.in_session("s", "print 1").await.unwrap().stdout,
        "1"
    );
    fixture.finish().await;
}

#[actix::test]
async fn a_session_whose_only_caller_left_before_it_began_is_none() {
    let fixture = TestService::new(with_pool(0, 0));
    fixture.backend.slow_create(Duration::from_secs(5));
    let run = fixture.spawn_as("t", Some("s"), job("print 1"));
    fixture
        .until("asked", |h| h.backend.counters().attempts == 1)
        .await;
    run.abort();
    fixture
        .until("given up", |h| {
            let counters = h.backend.counters();
            counters.created == 1 && counters.live() == 0
        })
        .await;
    assert_eq!(
        fixture.service.observe().await.unwrap().sessions.sessions,
        0
    );
    fixture.finish().await;
}

#[actix::test]
async fn a_session_deleted_before_it_began_leaks_nothing() {
    let fixture = TestService::new(config());
    fixture.backend.slow_create(Duration::from_secs(5));
    let run = fixture.spawn_as("t", Some("s"), job("print 1"));
    fixture
        .until("asked", |h| h.backend.counters().attempts == 1)
        .await;
    let deleted = fixture
        .service
        .delete_session(tenant("t"), "s".parse().unwrap());
    assert_eq!(deleted.await, Ok(true));
    let error = run.await.unwrap().unwrap_err();
    assert!(
        matches!(error, ExecuteError::SessionDeleted { .. }),
        "{error}"
    );
    fixture.finish().await;
}

#[actix::test]
async fn the_list_tells_who_is_active_and_since_when() {
    let fixture = TestService::new(config());
    let run = fixture.spawn_as("t", Some("s"), job("sleep 1000"));
    fixture
        .until("running", |h| h.backend.counters().runs == 1)
        .await;
    let list = fixture.service.sessions(Some(tenant("t"))).await.unwrap();
    assert!(list[0].is_active);
    assert_eq!(list[0].runtime, Runtime::Python);
    let id = run.await.unwrap().unwrap().container_id;
    let list = fixture.service.sessions(Some(tenant("t"))).await.unwrap();
    assert!(!list[0].is_active);
    assert_eq!(list[0].container_id, id);
    assert!(list[0].last_accessed_at >= list[0].created_at);
    fixture.finish().await;
}

#[actix::test]
async fn there_are_no_more_sessions_than_allowed() {
    let mut config = config();
    config.sessions.max_sessions = 2;
    let fixture = TestService::new(config);
    fixture.in_session("a", "print 1").await.unwrap();
    fixture.in_session("b", "print 1").await.unwrap();
    let error = fixture.in_session("c", "print 1").await.unwrap_err();
    assert_eq!(error, ExecuteError::TooManySessions { limit: 2 });
    fixture.in_session("a", "print 1").await.unwrap();
    fixture.finish().await;
}

#[actix::test]
async fn the_limits_of_a_session_are_each_requests_own() {
    let fixture = TestService::new(config());
    fixture.in_session("s", "print 1").await.unwrap();
    let mut wide = job("print 1");
    wide.sandbox.limits.pids = 200;
    let wanted = wide.sandbox.limits;
    fixture.run_as("t", Some("s"), wide).await.unwrap();
    assert_eq!(fixture.backend.applied_limits(), [wanted]);
    fixture.in_session("s", "print 1").await.unwrap();
    assert_eq!(fixture.backend.applied_limits().len(), 2);
    fixture.finish().await;
}
