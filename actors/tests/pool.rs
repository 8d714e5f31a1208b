//! Sandboxes that wait for work, and what becomes of them.
#![allow(clippy::unwrap_used)] // A failed expectation is the test failing.

mod common;

use std::sync::Arc;
use std::time::Duration;

use common::{TestService, config, job, tenant, with_pool};
use isol8_actors::pool::{
    self, FixedProcessors, Pool, PoolConfig, PoolError, PoolSize, SandboxDefaults, Strategy,
};
use isol8_actors::{ExecuteError, Supervised};
use isol8_api::{ByteSize, ErrorCode, Runtime};
use isol8_backend::SandboxSpec;
use isol8_backend::fake::FakeBackend;
use tokio::time::Instant;

fn secure(clean: usize) -> isol8_actors::ServiceConfig {
    let mut config = with_pool(clean, 4);
    config.pool.strategy = Strategy::Secure;
    config
}

fn spec() -> SandboxSpec {
    SandboxDefaults::default().spec(Runtime::Python)
}

/// A pool without a service around it; nothing waits in it at first.
fn bare_pool(backend: &FakeBackend) -> Supervised<Pool> {
    tokio::time::pause();
    let config = PoolConfig {
        size: PoolSize::fixed(0, 2),
        ..PoolConfig::default()
    };
    pool::start(Arc::new(backend.clone()), config, Arc::default())
}

#[actix::test]
async fn what_is_configured_waits_and_nothing_else() {
    let fixture = TestService::new(with_pool(3, 0));
    fixture.until_waiting(3, 0).await;
    assert_eq!(fixture.backend.counters().attempts, 3);
    fixture.finish().await;
}

#[actix::test]
async fn a_run_takes_a_waiting_sandbox_which_is_replaced() {
    let fixture = TestService::new(secure(1));
    fixture.until_waiting(1, 0).await;
    fixture.backend.slow_create(Duration::from_secs(5));
    let start = Instant::now();
    assert_eq!(fixture.output("print 1").await, "1");
    assert!(start.elapsed() < Duration::from_secs(1), "from the pool");
    fixture.until_waiting(1, 0).await;
    assert_eq!(fixture.backend.counters().created, 2);
    fixture.finish().await;
}

#[actix::test]
async fn a_sandbox_that_was_taken_is_replaced_once_its_work_has_begun() {
    let fixture = TestService::new(secure(2));
    fixture.until_waiting(2, 0).await;
    let attempts = || fixture.backend.counters().attempts;
    let first = fixture.spawn_as("a", None, job("sleep 100"));
    tokio::time::sleep(Duration::from_millis(2)).await;
    assert_eq!(attempts(), 2, "not at once");
    // A request that comes meanwhile does not postpone the first.
    let second = fixture.spawn_as("a", None, job("sleep 100"));
    tokio::time::sleep(Duration::from_millis(4)).await;
    assert_eq!(attempts(), 4);
    first.abort();
    second.abort();
    fixture.finish().await;
}

#[actix::test]
async fn secure_destroys_a_sandbox_after_one_run() {
    let fixture = TestService::new(secure(0));
    for _ in 0..3 {
        fixture.output("print 1").await;
    }
    fixture
        .until("destroyed", |h| h.backend.counters().live() == 0)
        .await;
    let counters = fixture.backend.counters();
    assert_eq!((counters.created, counters.resets), (3, 0));
    fixture.finish().await;
}

#[actix::test]
async fn what_was_made_for_one_use_has_no_other_after_the_strategy_has_changed() {
    let fixture = TestService::new(secure(1));
    fixture.until_waiting(1, 0).await;
    fixture.service.configure(with_pool(0, 4)).await.unwrap();
    fixture.output("print 1").await;
    fixture
        .until("destroyed", |h| h.backend.counters().live() == 0)
        .await;
    fixture.output("print 1").await;
    fixture.until_waiting(0, 1).await;
    let counters = fixture.backend.counters();
    assert_eq!((counters.created, counters.resets), (2, 1));
    fixture.finish().await;
}

#[actix::test]
async fn fast_resets_a_sandbox_and_nothing_of_a_run_is_left_for_the_next() {
    let fixture = TestService::new(with_pool(0, 4));
    fixture.output("write /tmp/f secret\nset x 1").await;
    fixture.until_waiting(0, 1).await;
    assert_eq!(fixture.output("cat /tmp/f\nget x").await, "");
    let counters = fixture.backend.counters();
    assert_eq!(counters.created, 1, "used again");
    fixture.finish().await;
}

#[actix::test]
async fn a_used_sandbox_never_serves_another_tenant() {
    let fixture = TestService::new(with_pool(0, 4));
    let first = fixture.run_as("a", None, job("print 1")).await.unwrap();
    fixture.until_waiting(0, 1).await;
    let other = fixture.run_as("b", None, job("print 1")).await.unwrap();
    assert_ne!(first.container_id, other.container_id);
    fixture.until_waiting(0, 2).await;
    let again = fixture.run_as("a", None, job("print 1")).await.unwrap();
    assert_eq!(first.container_id, again.container_id);
    // Neither does one that becomes free while the other tenant waits.
    fixture.until_waiting(0, 2).await;
    let running = fixture.spawn_as("a", None, job("sleep 100"));
    fixture
        .until("running", |h| h.backend.counters().runs == 4)
        .await;
    fixture.backend.slow_create(Duration::from_secs(5));
    let third = fixture.run_as("c", None, job("print 1")).await.unwrap();
    assert_ne!(
        third.container_id,
        running.await.unwrap().unwrap().container_id
    );
    fixture.finish().await;
}

#[actix::test]
async fn no_more_used_sandboxes_are_kept_than_configured() {
    let fixture = TestService::new(with_pool(0, 2));
    let runs: Vec<_> = ["a", "b", "c", "d"]
        .map(|tenant| fixture.spawn_as(tenant, None, job("sleep 100")))
        .into();
    for run in runs {
        run.await.unwrap().unwrap();
    }
    fixture.until_waiting(0, 2).await;
    fixture
        .until("others destroyed", |h| h.backend.counters().live() == 2)
        .await;
    // The latest take the place of those that wait longest.
    let latest = fixture.run_as("e", None, job("print 1")).await.unwrap();
    fixture.until_waiting(0, 2).await;
    let again = fixture.run_as("e", None, job("print 1")).await.unwrap();
    assert_eq!(latest.container_id, again.container_id);
    fixture.finish().await;
}

#[actix::test]
async fn bursts_of_load_remove_and_make_nothing() {
    let fixture = TestService::new(with_pool(0, 2));
    for _ in 0..10 {
        let runs = [(); 4].map(|()| fixture.spawn_as("t", None, job("sleep 100")));
        for run in runs {
            run.await.unwrap().unwrap();
        }
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
    assert_eq!(fixture.backend.counters().created, 4);
    tokio::time::sleep(Duration::from_secs(10)).await;
    assert_eq!(fixture.backend.counters().live(), 2);
    fixture.finish().await;
}

#[actix::test]
async fn a_slow_backend_is_not_asked_for_more_with_every_request() {
    let fixture = TestService::new(with_pool(0, 1));
    fixture.output("print 1").await;
    fixture.until_waiting(0, 1).await;
    fixture.backend.slow_create(Duration::from_secs(30));
    // Each of these finds an empty shelf, and is served by the used sandbox long before its own.
    for _ in 0..50 {
        let [one, other] = [(); 2].map(|()| fixture.spawn_as("t", None, job("print 1")));
        one.await.unwrap().unwrap();
        other.await.unwrap().unwrap();
    }
    let attempts = fixture.backend.counters().attempts;
    assert!(attempts < 10, "{attempts} sandboxes were asked for");
    fixture.finish().await;
}

#[actix::test]
async fn a_sandbox_whose_reset_fails_or_hangs_is_destroyed() {
    let fixture = TestService::new(with_pool(0, 4));
    fixture.backend.fail_reset(true);
    fixture.output("print 1").await;
    fixture
        .until("destroyed", |h| h.backend.counters().destroyed == 1)
        .await;
    fixture.backend.fail_reset(false);
    fixture.backend.hang_reset(true);
    fixture.output("print 1").await;
    tokio::time::sleep(Duration::from_secs(61)).await;
    fixture
        .until("destroyed", |h| h.backend.counters().destroyed == 2)
        .await;
    assert_eq!(fixture.output("print 1").await, "1");
    fixture.finish().await;
}

#[actix::test]
async fn acquiring_never_waits_for_a_cleaning() {
    let fixture = TestService::new(with_pool(0, 4));
    fixture.backend.slow_reset(Duration::from_secs(20));
    fixture.output("print 1").await;
    let start = Instant::now();
    fixture.output("print 2").await;
    assert!(start.elapsed() < Duration::from_secs(1));
    assert_eq!(fixture.backend.counters().created, 2);
    fixture.finish().await;
}

#[actix::test]
async fn a_sandbox_that_becomes_free_is_taken_before_one_that_is_still_made() {
    let fixture = TestService::new(with_pool(0, 4));
    let running = fixture.spawn_as("t", None, job("sleep 100"));
    fixture
        .until("running", |h| h.backend.counters().runs == 1)
        .await;
    fixture.backend.slow_create(Duration::from_secs(20));
    let start = Instant::now();
    let second = fixture.run(job("print 2")).await.unwrap();
    assert!(start.elapsed() < Duration::from_secs(1));
    assert_eq!(
        second.container_id,
        running.await.unwrap().unwrap().container_id
    );
    fixture.finish().await;
}

#[actix::test]
async fn what_was_made_for_nobody_in_the_end_is_kept_where_there_is_room() {
    let backend = FakeBackend::new();
    let fixture = TestService::over(backend.clone(), with_pool(1, 0));
    fixture.until_waiting(1, 0).await;
    backend.slow_create(Duration::from_secs(5));
    let first = fixture.spawn_as("t", None, job("sleep 60000"));
    let second = fixture.spawn_as("t", None, job("print 1"));
    fixture
        .until("both made", |h| h.backend.counters().attempts == 3)
        .await;
    second.abort();
    first.abort();
    fixture.until_waiting(1, 0).await;
    fixture
        .until("rest gone", |h| h.backend.counters().live() == 1)
        .await;
    fixture.finish().await;
}

#[actix::test]
async fn refilling_backs_off_while_creates_fail_and_recovers() {
    let backend = FakeBackend::new();
    backend.fail_next_creates(4);
    let fixture = TestService::over(backend, with_pool(1, 0));
    let start = Instant::now();
    fixture.until_waiting(1, 0).await;
    assert_eq!(fixture.backend.counters().attempts, 5);
    // 0.2 + 0.4 + 0.8 + 1.6 s.
    assert!(
        start.elapsed() >= Duration::from_secs(3),
        "{:?}",
        start.elapsed()
    );
    let state = fixture.service.observe().await.unwrap().pool;
    assert_eq!(state.runtimes[&Runtime::Python].failures, 0);
    fixture.finish().await;
}

#[actix::test]
async fn a_runtime_that_the_backend_lacks_is_not_tried_again_and_again() {
    let backend = FakeBackend::new();
    backend.make_unavailable(Runtime::Python);
    let fixture = TestService::over(backend, with_pool(2, 0));
    tokio::time::sleep(Duration::from_secs(3600)).await;
    assert!(fixture.backend.counters().attempts <= 2);
    let state = fixture.service.observe().await.unwrap().pool;
    assert!(state.runtimes[&Runtime::Python].unavailable);
    fixture.finish().await;
}

#[actix::test]
async fn a_backend_that_panics_fails_one_request_and_the_pool_lives_on() {
    let fixture = TestService::new(config());
    fixture.backend.panic_in_next_creates(1);
    let error = fixture.run(job("print 1")).await.unwrap_err();
    assert_eq!(error.code(), ErrorCode::Internal);
    assert_eq!(fixture.output("print 1").await, "1");
    fixture.finish().await;
}

#[actix::test]
async fn a_backend_that_panics_while_refilling_is_tried_again() {
    let backend = FakeBackend::new();
    backend.panic_in_next_creates(1);
    let fixture = TestService::over(backend, with_pool(1, 0));
    fixture.until_waiting(1, 0).await;
    fixture.finish().await;
}

#[actix::test]
async fn a_backend_that_hangs_is_an_error_in_time() {
    let fixture = TestService::new(config());
    fixture.backend.hang_create(true);
    let error = fixture.run(job("print 1")).await.unwrap_err();
    assert_eq!(error.code(), ErrorCode::BackendUnavailable);
    fixture.finish().await;
}

#[actix::test]
async fn a_waiting_sandbox_that_dies_is_replaced_and_never_handed_out() {
    let fixture = TestService::new(with_pool(2, 0));
    fixture.until_waiting(2, 0).await;
    fixture.backend.kill_all();
    // At once, before anything could be noticed, and after.
    assert_eq!(fixture.output("print 1").await, "1");
    fixture.until_waiting(2, 0).await;
    assert_eq!(fixture.output("print 1").await, "1");
    fixture.finish().await;
}

#[actix::test]
async fn limits_are_applied_when_a_sandbox_is_handed_out_and_taken_back_with_it() {
    let fixture = TestService::new(with_pool(1, 4));
    fixture.until_waiting(1, 0).await;
    let mut large = job("print 1");
    large.sandbox.limits.memory = ByteSize::from_mebibytes(64);
    let wanted = large.sandbox.limits;
    fixture.run(large).await.unwrap();
    fixture.until_waiting(1, 1).await;
    let defaults = SandboxDefaults::default().limits;
    assert_eq!(fixture.backend.applied_limits(), [wanted, defaults]);
    fixture.output("print 1").await;
    assert_eq!(fixture.backend.applied_limits().len(), 2, "already right");
    fixture.finish().await;
}

#[actix::test]
async fn a_sandbox_whose_limits_cannot_be_changed_is_replaced_by_a_new_one() {
    let fixture = TestService::new(with_pool(1, 4));
    fixture.until_waiting(1, 0).await;
    fixture.backend.fail_set_limits(true);
    let mut large = job("print 1");
    large.sandbox.limits.pids = 200;
    assert_eq!(fixture.run(large).await.unwrap().stdout, "1");
    fixture.backend.fail_set_limits(false);
    fixture.finish().await;
}

#[actix::test]
async fn a_sandbox_of_other_sizes_is_made_for_its_run_alone() {
    let fixture = TestService::new(with_pool(1, 4));
    fixture.until_waiting(1, 0).await;
    let mut large = job("print 1");
    large.sandbox.tmp_size = ByteSize::from_mebibytes(1);
    fixture.run(large).await.unwrap();
    fixture
        .until("destroyed", |h| h.backend.counters().live() == 1)
        .await;
    assert_eq!(fixture.backend.counters().created, 2);
    fixture.finish().await;
}

#[actix::test]
async fn an_acquire_that_is_given_up_leaks_nothing() {
    let backend = FakeBackend::new();
    let pool = bare_pool(&backend);
    backend.slow_create(Duration::from_secs(5));
    let wait = Duration::from_secs(1);
    let acquiring = pool::acquire(&pool, tenant("t"), spec());
    assert!(tokio::time::timeout(wait, acquiring).await.is_err());
    tokio::time::sleep(Duration::from_secs(10)).await;
    // The sandbox that was made for the request waits for the next one.
    let state = pool.ask(|| pool::Observe).await.unwrap();
    assert_eq!(
        (state.leased, state.runtimes[&Runtime::Python].clean),
        (0, 1)
    );
    pool.ask(|| pool::Shutdown).await.unwrap();
    let counters = backend.counters();
    assert_eq!((counters.created, counters.live()), (1, 0));
}

#[actix::test]
async fn a_lease_goes_back_discarded_or_to_another_owner() {
    let backend = FakeBackend::new();
    let pool = bare_pool(&backend);
    let lease = || async { pool::acquire(&pool, tenant("t"), spec()).await.unwrap() };
    drop(lease().await);
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert_eq!(
        (backend.counters().live(), backend.counters().resets),
        (1, 1)
    );

    lease().await.discard();
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert_eq!(
        (backend.counters().live(), backend.counters().resets),
        (0, 1)
    );

    let taken = lease().await.take();
    // The pool waits for leases, not for what has another owner.
    pool.ask(|| pool::Shutdown).await.unwrap();
    assert_eq!(backend.counters().live(), 1);
    taken.sandbox.destroy().await.unwrap();
    assert_eq!(backend.counters().live(), 0);
}

#[actix::test]
async fn a_shutdown_waits_for_leases_and_refuses_new_ones() {
    let backend = FakeBackend::new();
    let pool = bare_pool(&backend);
    let lease = pool::acquire(&pool, tenant("t"), spec()).await.unwrap();
    backend.hang_create(true);
    let waiting = tokio::spawn({
        let pool = pool.clone();
        async move { pool::acquire(&pool, tenant("t"), spec()).await }
    });
    tokio::time::sleep(Duration::from_millis(1)).await;
    let start = Instant::now();
    let closing = tokio::spawn({
        let pool = pool.clone();
        async move { pool.ask(|| pool::Shutdown).await }
    });
    assert!(matches!(waiting.await.unwrap(), Err(PoolError::Closed)));
    let refused = pool::acquire(&pool, tenant("t"), spec()).await;
    assert!(matches!(refused, Err(PoolError::Closed)));
    assert!(!closing.is_finished());
    drop(lease);
    closing.await.unwrap().unwrap();
    assert!(
        start.elapsed() < Duration::from_secs(1),
        "what hangs is given up"
    );
    assert_eq!(backend.counters().live(), 0);
}

#[actix::test]
async fn a_destroy_that_fails_does_not_stop_the_pool() {
    let fixture = TestService::new(secure(1));
    fixture.backend.fail_destroy(true);
    for _ in 0..3 {
        fixture.output("print 1").await;
    }
    fixture.until_waiting(1, 0).await;
    fixture.finish().await;
}

#[actix::test]
async fn a_backend_that_cannot_create_is_said_to_the_caller() {
    let fixture = TestService::new(config());
    fixture.backend.fail_next_creates(1);
    let error = fixture.run(job("print 1")).await.unwrap_err();
    assert!(
        matches!(error, ExecuteError::BackendUnavailable(_)),
        "{error}"
    );
    fixture.finish().await;
}

#[actix::test]
async fn a_sandbox_that_dies_while_it_is_made_is_an_error_and_not_a_wait() {
    let fixture = TestService::new(config());
    fixture.backend.die_after_create(true);
    let error = fixture.run(job("print 1")).await.unwrap_err();
    assert_eq!(error.code(), ErrorCode::BackendUnavailable);
    fixture.finish().await;
}

#[actix::test]
async fn a_steady_load_comes_to_need_no_more_sandboxes() {
    let fixture = TestService::new(with_pool(1, 8));
    fixture.backend.slow_create(Duration::from_millis(20));
    fixture.backend.slow_reset(Duration::from_millis(2));
    let rounds = |count: usize| {
        let clients = (0..4).map(|_| {
            let fixture = fixture.clone();
            tokio::spawn(async move {
                for _ in 0..count {
                    assert_eq!(fixture.output("sleep 3\nprint 1").await, "1");
                }
            })
        });
        futures::future::join_all(clients)
    };
    rounds(20).await;
    let warm = fixture.backend.counters();
    rounds(200).await;
    let after = fixture.backend.counters();
    assert_eq!(after.created, warm.created, "{warm:?} {after:?}");
    fixture.finish().await;
}

/// A pool on a machine with two processors, of which some are idle.
fn with_idle(idle: f64, dirty: usize) -> isol8_actors::ServiceConfig {
    let mut config = with_pool(0, dirty);
    config.pool.processors = Arc::new(FixedProcessors { count: 2, idle });
    config
}

#[actix::test]
async fn a_request_waits_for_a_reset_that_is_sooner_than_a_new_sandbox() {
    let fixture = TestService::new(with_idle(2.0, 4));
    fixture.backend.slow_create(Duration::from_millis(100));
    fixture.backend.slow_reset(Duration::from_millis(50));
    fixture.output("print 1").await;
    fixture.until_waiting(0, 1).await;
    for _ in 0..20 {
        // The second of two requests finds the sandbox of the first in use or being reset.
        assert_eq!(fixture.output("print 1").await, "1");
    }
    assert_eq!(fixture.backend.counters().created, 1);
    // A reset that takes longer than the others is not waited for.
    fixture.backend.slow_reset(Duration::from_secs(30));
    fixture.output("print 1").await;
    let start = Instant::now();
    fixture.output("print 1").await;
    assert!(start.elapsed() < Duration::from_secs(1));
    fixture.finish().await;
}

#[actix::test]
async fn a_busy_machine_makes_no_sandboxes_while_used_ones_go_round() {
    let fixture = TestService::new(with_idle(0.0, 4));
    fixture.backend.slow_create(Duration::from_millis(50));
    fixture.backend.slow_reset(Duration::from_millis(5));
    fixture.output("sleep 5").await;
    fixture.until_waiting(0, 1).await;
    let runs: Vec<_> = (0..100)
        .map(|_| fixture.spawn_as("t", None, job("sleep 5\nprint 1")))
        .collect();
    for run in runs {
        assert_eq!(run.await.unwrap().unwrap().stdout, "1");
    }
    // Four keep two processors busy; others may have been begun before these went round.
    let created = fixture.backend.counters().created;
    assert!(created <= 8, "{created} sandboxes were made");
    fixture.finish().await;
}

#[actix::test]
async fn a_busy_machine_makes_sandboxes_where_none_comes_back() {
    let fixture = TestService::new(with_idle(0.0, 4));
    fixture.backend.slow_create(Duration::from_millis(50));
    fixture.output("print 1").await;
    fixture.until_waiting(0, 1).await;
    let hours: Vec<_> = (0..4)
        .map(|_| fixture.spawn_as("t", None, job("sleep 3600000")))
        .collect();
    let start = Instant::now();
    fixture
        .until("all run", |h| h.backend.counters().runs == 5)
        .await;
    assert!(start.elapsed() < Duration::from_secs(1));
    let state = fixture.service.observe().await.unwrap().pool;
    assert_eq!(state.leased, 4);
    hours.iter().for_each(tokio::task::JoinHandle::abort);
    fixture.finish().await;
}

#[actix::test]
async fn no_more_sandboxes_are_made_at_once_than_the_machine_has_room_for() {
    tokio::time::pause();
    for (idle, most) in [(2.0, 4), (0.0, 2)] {
        let fixture = TestService::next_to_another(FakeBackend::new(), with_idle(idle, 4));
        fixture.backend.slow_create(Duration::from_millis(200));
        let runs: Vec<_> = (0..20)
            .map(|number| fixture.spawn_as(&format!("tenant-{number}"), None, job("print 1")))
            .collect();
        while !runs.iter().all(tokio::task::JoinHandle::is_finished) {
            let counters = fixture.backend.counters();
            let making = counters.attempts - counters.created;
            assert!(making <= most, "{making} at once");
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        for run in runs {
            assert_eq!(run.await.unwrap().unwrap().stdout, "1");
        }
        fixture.finish().await;
    }
}

#[actix::test]
async fn a_tenant_without_a_sandbox_comes_before_those_that_have_some() {
    let fixture = TestService::new(with_idle(2.0, 8));
    fixture.backend.slow_create(Duration::from_millis(200));
    let mut crowd: Vec<_> = (0..6)
        .map(|_| fixture.spawn_as("crowd", None, job("sleep 3600000")))
        .collect();
    fixture
        .until("some run", |h| h.backend.counters().runs > 0)
        .await;
    crowd.extend((0..6).map(|_| fixture.spawn_as("crowd", None, job("sleep 3600000"))));
    let start = Instant::now();
    assert_eq!(
        fixture
            .run_as("other", None, job("print 1"))
            .await
            .unwrap()
            .stdout,
        "1"
    );
    // At most one creation under way, and the tenant's own.
    assert!(
        start.elapsed() <= Duration::from_millis(450),
        "{:?}",
        start.elapsed()
    );
    crowd.iter().for_each(tokio::task::JoinHandle::abort);
    fixture.finish().await;
}

#[actix::test]
async fn a_busy_machine_makes_few_sandboxes_ahead_of_time() {
    tokio::time::pause();
    // Sandboxes begun after 100 ms, and after a second.
    for (idle, soon, later) in [(2.0, 4, 4), (0.0, 2, 4)] {
        let mut config = with_pool(2, 4);
        config.pool.processors = Arc::new(FixedProcessors { count: 2, idle });
        let backend = FakeBackend::new();
        backend.slow_create(Duration::from_millis(10));
        let fixture = TestService::next_to_another(backend, config);
        fixture.until_waiting(2, 0).await;
        let runs = [(); 2].map(|()| fixture.spawn_as("t", None, job("sleep 3600000")));
        tokio::time::sleep(Duration::from_millis(100)).await;
        assert_eq!(fixture.backend.counters().attempts, soon);
        tokio::time::sleep(Duration::from_millis(900)).await;
        assert_eq!(fixture.backend.counters().attempts, later);
        runs.iter().for_each(tokio::task::JoinHandle::abort);
        fixture.finish().await;
    }
}

#[actix::test]
async fn a_busy_machine_keeps_fresh_sandboxes_for_tenants_that_have_none() {
    let mut config = with_pool(2, 8);
    config.pool.processors = Arc::new(FixedProcessors {
        count: 2,
        idle: 0.0,
    });
    let backend = FakeBackend::new();
    backend.slow_create(Duration::from_millis(50));
    backend.slow_reset(Duration::from_millis(5));
    let fixture = TestService::over(backend, config);
    fixture.until_waiting(2, 0).await;
    let load = async |count: usize| {
        let runs: Vec<_> = (0..count)
            .map(|_| fixture.spawn_as("t", None, job("sleep 5")))
            .collect();
        for run in runs {
            run.await.unwrap().unwrap();
        }
    };
    // The fresh ones that the tenant has taken at first are made again, a few at a time.
    for _ in 0..100 {
        load(100).await;
    }
    let before = fixture.backend.counters().created;
    load(100).await;
    load(100).await;
    assert_eq!(fixture.backend.counters().created, before);
    let busy = fixture.spawn_as("t", None, job("sleep 1000"));
    let start = Instant::now();
    fixture.run_as("new", None, job("print 1")).await.unwrap();
    assert!(start.elapsed() < Duration::from_millis(50), "a fresh one");
    busy.await.unwrap().unwrap();
    fixture.finish().await;
}

#[actix::test]
async fn new_bounds_apply_to_what_waits_and_to_what_comes_back() {
    let fixture = TestService::new(with_pool(3, 4));
    fixture.until_waiting(3, 0).await;
    let running = fixture.spawn_as("t", None, job("sleep 1000"));
    fixture
        .until("running", |h| h.backend.counters().runs == 1)
        .await;
    let mut config = with_pool(1, 4);
    config.pool.sandbox.tmp_size = ByteSize::from_mebibytes(1);
    fixture.service.configure(config).await.unwrap();
    fixture.until_waiting(1, 0).await;
    assert_eq!(running.await.unwrap().unwrap().exit_code, 0);
    fixture
        .until("only the new one is left", |h| {
            h.backend.counters().live() == 1
        })
        .await;
    fixture.service.configure(secure(2)).await.unwrap();
    fixture.until_waiting(2, 0).await;
    fixture.output("print 1").await;
    assert_eq!(fixture.backend.counters().resets, 0);
    fixture.finish().await;
}

#[actix::test]
async fn what_has_waited_for_long_is_replaced() {
    let mut config = with_pool(2, 4);
    config.pool.max_age = Duration::from_secs(600);
    let fixture = TestService::new(config);
    fixture.until_waiting(2, 0).await;
    fixture.output("print 1").await;
    fixture.until_waiting(2, 1).await;
    let before = fixture.backend.living();
    tokio::time::sleep(Duration::from_secs(500)).await;
    assert_eq!(fixture.backend.living(), before);
    tokio::time::sleep(Duration::from_secs(120)).await;
    fixture.until_waiting(2, 0).await;
    assert!(
        !fixture
            .backend
            .living()
            .iter()
            .any(|id| before.contains(id))
    );
    fixture.finish().await;
}

#[actix::test]
async fn a_waiting_sandbox_that_does_not_answer_is_replaced() {
    let fixture = TestService::new(with_pool(1, 0));
    fixture.until_waiting(1, 0).await;
    let before = fixture.backend.living();
    tokio::time::sleep(Duration::from_secs(300)).await;
    assert_eq!(fixture.backend.living(), before, "it is well");
    fixture.backend.hang_prepare(true);
    tokio::time::sleep(Duration::from_secs(100)).await;
    fixture.backend.hang_prepare(false);
    fixture
        .until("another one", |h| {
            let living = h.backend.living();
            living.len() == 1 && living != before
        })
        .await;
    fixture.finish().await;
}

#[actix::test]
async fn an_adaptive_pool_follows_the_load() {
    let mut config = secure(0);
    let size = PoolSize {
        clean: 1,
        most_clean: Some(6),
        dirty: 0,
    };
    config.pool.sizes = [(Runtime::Python, size)].into();
    let fixture = TestService::new(config);
    fixture.backend.slow_create(Duration::from_secs(1));
    fixture.until_waiting(1, 0).await;
    for _ in 0..120 {
        fixture.output("print 1").await;
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
    fixture.until_waiting(3, 0).await;
    tokio::time::sleep(Duration::from_secs(600)).await;
    fixture.until_waiting(1, 0).await;
    fixture.finish().await;
}
