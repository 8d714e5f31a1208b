//! Sandboxes that keep their state, and who may use them.
#![allow(clippy::unwrap_used)] // A failed expectation is the test failing.

mod common;

use std::time::Duration;

use common::{House, config, job, job_in, tenant, with_pool};
use isol8_actors::ExecuteError;
use isol8_actors::session::Phase;
use isol8_api::{ErrorCode, Runtime};

#[actix::test]
async fn a_session_keeps_variables_and_files_and_others_see_none() {
    let house = House::new(config());
    let set = "set x 41\nwrite /sandbox/f kept";
    house.in_session("a", set).await.unwrap();
    let get = "get x\ncat /sandbox/f";
    assert_eq!(house.in_session("a", get).await.unwrap().stdout, "41\nkept");
    assert_eq!(house.in_session("b", get).await.unwrap().stdout, "");
    assert_eq!(house.output(get).await, "");
    house.finish().await;
}

#[actix::test]
async fn the_same_id_of_two_tenants_is_two_sessions() {
    let house = House::new(config());
    house.run_as("a", Some("s"), job("set x 1")).await.unwrap();
    let other = house.run_as("b", Some("s"), job("get x")).await.unwrap();
    assert_eq!(other.stdout, "");
    let mine = house.service.sessions(Some(tenant("a"))).await.unwrap();
    assert_eq!(mine.len(), 1);
    assert_eq!(mine[0].tenant_id, None);
    let all = house.service.sessions(None).await.unwrap();
    assert_eq!(all.len(), 2);
    assert_eq!(all[1].tenant_id, Some(tenant("b")));
    house.finish().await;
}

#[actix::test]
async fn two_first_requests_make_one_sandbox() {
    let house = House::new(config());
    house.backend.slow_create(Duration::from_secs(1));
    let both = [job("set x 1"), job("get x")].map(|job| house.spawn_as("t", Some("s"), job));
    for run in both {
        run.await.unwrap().unwrap();
    }
    assert_eq!(house.backend.counters().created, 1);
    house.finish().await;
}

#[actix::test]
async fn a_new_session_takes_its_sandbox_from_the_pool() {
    let house = House::new(with_pool(1, 0));
    house.until_waiting(1, 0).await;
    house.backend.hang_create(true);
    let result = house.in_session("s", "print 1").await.unwrap();
    assert_eq!(result.stdout, "1");
    house.finish().await;
}

#[actix::test]
async fn jobs_of_a_session_run_one_at_a_time_in_order_of_arrival() {
    let house = House::new(config());
    let runs: Vec<_> = (0..5)
        .map(|n| {
            let code = format!("get last\nset last {n}\nsleep 100");
            house.spawn_as("t", Some("s"), job(&code))
        })
        .collect();
    let mut seen = Vec::new();
    for run in runs {
        seen.push(run.await.unwrap().unwrap().stdout);
    }
    assert_eq!(seen, ["", "0", "1", "2", "3"]);
    house.finish().await;
}

#[actix::test]
async fn a_full_queue_refuses_at_once_and_the_session_goes_on() {
    let mut config = config();
    config.sessions.queue_limit = 2;
    let house = House::new(config);
    let _running = house.spawn_as("t", Some("s"), job("sleep 1000"));
    house
        .until("running", |h| h.backend.counters().runs == 1)
        .await;
    let waiting = [0, 1].map(|_| house.spawn_as("t", Some("s"), job("print 1")));
    let observe = || {
        house
            .service
            .observe_session(tenant("t"), "s".parse().unwrap())
    };
    while observe().await.unwrap().unwrap().waiting < 2 {
        tokio::task::yield_now().await;
    }
    assert_eq!(observe().await.unwrap().unwrap().phase, Phase::Running);
    let error = house.in_session("s", "print 1").await.unwrap_err();
    assert_eq!(error.code(), ErrorCode::TooManyRequests);
    for run in waiting {
        assert_eq!(run.await.unwrap().unwrap().stdout, "1");
    }
    house.finish().await;
}

#[actix::test]
async fn another_runtime_is_refused_and_the_text_names_both() {
    let house = House::new(config());
    house.in_session("s", "print 1").await.unwrap();
    let other = job_in(Runtime::Bash, "print 1");
    let error = house.run_as("t", Some("s"), other).await.unwrap_err();
    assert_eq!(error.code(), ErrorCode::RuntimeMismatch);
    let text = error.to_string();
    assert!(text.contains("python") && text.contains("bash"), "{text}");
    house.finish().await;
}

#[actix::test]
async fn a_caller_that_leaves_ends_its_run_and_the_loss_of_state_is_said() {
    let house = House::new(config());
    house.in_session("s", "set x 1").await.unwrap();
    let run = house.spawn_as("t", Some("s"), job("hang"));
    house
        .until("running", |h| h.backend.counters().runs == 2)
        .await;
    run.abort();
    let next = house.in_session("s", "get x").await.unwrap();
    assert!(next.state_lost);
    assert_eq!(next.stdout, "");
    let after = house.in_session("s", "print 1").await.unwrap();
    assert!(!after.state_lost, "said once");
    house.finish().await;
}

#[actix::test]
async fn a_caller_that_leaves_the_queue_is_never_run() {
    let house = House::new(config());
    let first = house.spawn_as("t", Some("s"), job("sleep 1000"));
    house
        .until("running", |h| h.backend.counters().runs == 1)
        .await;
    let second = house.spawn_as("t", Some("s"), job("write /sandbox/f x"));
    tokio::task::yield_now().await;
    second.abort();
    first.await.unwrap().unwrap();
    let seen = house.in_session("s", "cat /sandbox/f").await.unwrap();
    assert_eq!(seen.stdout, "");
    assert_eq!(house.backend.counters().runs, 2);
    house.finish().await;
}

#[actix::test]
async fn code_that_kills_the_interpreter_loses_state_keeps_files_and_says_so() {
    let house = House::new(config());
    house
        .in_session("s", "set x 1\nwrite /tmp/f kept")
        .await
        .unwrap();
    assert!(house.in_session("s", "crash").await.unwrap().state_lost);
    let next = house.in_session("s", "get x\ncat /tmp/f").await.unwrap();
    assert_eq!((next.stdout.as_str(), next.state_lost), ("kept", false));
    house.finish().await;
}

#[actix::test]
async fn deleting_ends_the_run_and_frees_the_id() {
    let house = House::new(config());
    let run = house.spawn_as("t", Some("s"), job("hang"));
    let waiting = house.spawn_as("t", Some("s"), job("print 1"));
    house
        .until("running", |h| h.backend.counters().runs == 1)
        .await;
    let delete = || {
        house
            .service
            .delete_session(tenant("t"), "s".parse().unwrap())
    };
    assert_eq!(delete().await, Ok(true));
    assert_eq!(
        house.backend.counters().live(),
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
    assert_eq!(house.in_session("s", "print 1").await.unwrap().stdout, "1");
    house.finish().await;
}

#[actix::test]
async fn a_session_that_dies_idle_is_noticed_at_once_and_reported_once() {
    let house = House::new(config());
    house.in_session("s", "set x 1").await.unwrap();
    house.backend.kill_all();
    house
        .until("destroyed", |h| h.backend.counters().live() == 0)
        .await;
    assert_eq!(house.service.sessions(None).await, Ok(Vec::new()));

    let error = house.in_session("s", "get x").await.unwrap_err();
    assert_eq!(error.code(), ErrorCode::SessionLost);
    assert_eq!(house.in_session("s", "get x").await.unwrap().stdout, "");
    house.finish().await;
}

#[actix::test]
async fn a_session_that_dies_under_its_jobs_tells_them_and_nobody_else() {
    let house = House::new(config());
    let running = house.spawn_as("t", Some("s"), job("sleep 10\ndie"));
    let waiting = house.spawn_as("t", Some("s"), job("print 1"));
    for told in [running, waiting] {
        let error = told.await.unwrap().unwrap_err();
        assert_eq!(error.code(), ErrorCode::SessionLost);
    }
    assert_eq!(house.in_session("s", "print 1").await.unwrap().stdout, "1");
    house.finish().await;
}

#[actix::test]
async fn a_loss_that_its_caller_did_not_wait_for_is_told_to_the_next() {
    let house = House::new(config());
    let run = house.spawn_as("t", Some("s"), job("hang"));
    house
        .until("running", |h| h.backend.counters().runs == 1)
        .await;
    run.abort();
    house.backend.kill_all();
    house
        .until("destroyed", |h| h.backend.counters().live() == 0)
        .await;
    let error = house.in_session("s", "print 1").await.unwrap_err();
    assert_eq!(error.code(), ErrorCode::SessionLost);
    house.finish().await;
}

#[actix::test]
async fn a_first_request_that_fails_leaves_no_session() {
    let house = House::new(config());
    house.backend.fail_next_creates(1);
    let error = house.in_session("s", "print 1").await.unwrap_err();
    assert_eq!(error.code(), ErrorCode::BackendUnavailable);
    assert_eq!(house.in_session("s", "print 1").await.unwrap().stdout, "1");
    house.finish().await;
}

#[actix::test]
async fn a_session_whose_only_caller_left_before_it_began_is_none() {
    let house = House::new(with_pool(0, 0));
    house.backend.slow_create(Duration::from_secs(5));
    let run = house.spawn_as("t", Some("s"), job("print 1"));
    house
        .until("asked", |h| h.backend.counters().attempts == 1)
        .await;
    run.abort();
    house
        .until("given up", |h| {
            let counters = h.backend.counters();
            counters.created == 1 && counters.live() == 0
        })
        .await;
    assert_eq!(house.service.observe().await.unwrap().sessions.sessions, 0);
    house.finish().await;
}

#[actix::test]
async fn a_session_deleted_before_it_began_leaks_nothing() {
    let house = House::new(config());
    house.backend.slow_create(Duration::from_secs(5));
    let run = house.spawn_as("t", Some("s"), job("print 1"));
    house
        .until("asked", |h| h.backend.counters().attempts == 1)
        .await;
    let deleted = house
        .service
        .delete_session(tenant("t"), "s".parse().unwrap());
    assert_eq!(deleted.await, Ok(true));
    let error = run.await.unwrap().unwrap_err();
    assert!(
        matches!(error, ExecuteError::SessionDeleted { .. }),
        "{error}"
    );
    house.finish().await;
}

#[actix::test]
async fn the_list_tells_who_is_active_and_since_when() {
    let house = House::new(config());
    let run = house.spawn_as("t", Some("s"), job("sleep 1000"));
    house
        .until("running", |h| h.backend.counters().runs == 1)
        .await;
    let list = house.service.sessions(Some(tenant("t"))).await.unwrap();
    assert!(list[0].is_active);
    assert_eq!(list[0].runtime, Runtime::Python);
    let id = run.await.unwrap().unwrap().container_id;
    let list = house.service.sessions(Some(tenant("t"))).await.unwrap();
    assert!(!list[0].is_active);
    assert_eq!(list[0].container_id, id);
    assert!(list[0].last_accessed_at >= list[0].created_at);
    house.finish().await;
}

#[actix::test]
async fn there_are_no_more_sessions_than_allowed() {
    let mut config = config();
    config.sessions.max_sessions = 2;
    let house = House::new(config);
    house.in_session("a", "print 1").await.unwrap();
    house.in_session("b", "print 1").await.unwrap();
    let error = house.in_session("c", "print 1").await.unwrap_err();
    assert_eq!(error, ExecuteError::TooManySessions { limit: 2 });
    house.in_session("a", "print 1").await.unwrap();
    house.finish().await;
}

#[actix::test]
async fn the_limits_of_a_session_are_each_requests_own() {
    let house = House::new(config());
    house.in_session("s", "print 1").await.unwrap();
    let mut wide = job("print 1");
    wide.sandbox.limits.pids = 200;
    let wanted = wide.sandbox.limits;
    house.run_as("t", Some("s"), wide).await.unwrap();
    assert_eq!(house.backend.applied_limits(), [wanted]);
    house.in_session("s", "print 1").await.unwrap();
    assert_eq!(house.backend.applied_limits().len(), 2);
    house.finish().await;
}
