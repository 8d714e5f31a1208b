//! A panic in any actor, under load, disturbs no other part.

use std::sync::Arc;
use std::time::Duration;

use actix::prelude::*;
use isol8_api::{Runtime, SessionId, TenantId};
use isol8_backend::Claim;
use isol8_backend::fake::FakeBackend;
use tokio::sync::oneshot;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::{Service, ServiceConfig};
use crate::error::ExecuteError;
use crate::job::{Job, Program};
use crate::pool::{Pool, PoolSize, SandboxDefaults};
use crate::pruner::Pruner;
use crate::registry::Registry;
use crate::session::{Run, Session, SessionKey};
use crate::supervisor::Supervised;

/// Makes the receiving actor panic.
#[derive(Message)]
#[rtype(result = "()")]
struct Panic;

macro_rules! panics {
    ($($actor:ty),*) => {$(
        impl Handler<Panic> for $actor {
            type Result = ();

            fn handle(&mut self, _: Panic, _: &mut Self::Context) {
                panic!("as the test wants it");
            }
        }
    )*};
}

panics!(Pool, Registry, Pruner, Session);

/// Makes a session panic in the middle of a change.
#[derive(Message)]
#[rtype(result = "()")]
struct PanicBetween;

impl Handler<PanicBetween> for Session {
    type Result = ();

    fn handle(&mut self, _: PanicBetween, _: &mut Self::Context) {
        self.drop_state();
        panic!("as the test wants it");
    }
}

#[derive(Message)]
#[rtype(result = "Option<Supervised<Session>>")]
struct Find(SessionKey);

impl Handler<Find> for Registry {
    type Result = MessageResult<Find>;

    fn handle(&mut self, Find(key): Find, _: &mut Self::Context) -> Self::Result {
        MessageResult(self.find(&key))
    }
}

fn service(backend: &FakeBackend) -> Service {
    tokio::time::pause();
    let mut config = ServiceConfig::default();
    config.pool.size = PoolSize::fixed(0, 4);
    let python = PoolSize::fixed(2, 4);
    config.pool.sizes = [(Runtime::Python, python)].into();
    Service::start(Arc::new(backend.clone()), config)
}

fn job(code: &str) -> Job {
    let spec = SandboxDefaults::default().spec(Runtime::Python);
    Job::new(Program::source(code, Runtime::Python), spec).unwrap()
}

fn tenant() -> TenantId {
    "t".parse().unwrap()
}

fn id(name: &str) -> SessionId {
    name.parse().unwrap()
}

async fn output(service: &Service, session: Option<&str>, code: &str) -> String {
    let result = service.execute(tenant(), session.map(id), job(code)).await;
    result.unwrap().stdout
}

async fn session_of(service: &Service, name: &str) -> Supervised<Session> {
    let key = SessionKey {
        tenant: tenant(),
        id: id(name),
    };
    let found = service.shared.registry.ask(|| Find(key.clone())).await;
    found.unwrap().unwrap()
}

#[actix::test]
async fn a_pool_that_panics_keeps_its_sandboxes_and_its_waiters() {
    let backend = FakeBackend::new();
    let service = service(&backend);
    assert_eq!(output(&service, None, "print 1").await, "1");
    tokio::time::sleep(Duration::from_secs(1)).await;
    let before = backend.living();

    // A lease is held, and a request waits for a sandbox that is being made.
    let running = tokio::spawn({
        let service = service.clone();
        async move { output(&service, None, "sleep 2000\nprint 2").await }
    });
    tokio::time::sleep(Duration::from_secs(1)).await;
    service.shared.pool.do_send(Panic);
    assert_eq!(output(&service, None, "print 3").await, "3");
    assert_eq!(running.await.unwrap(), "2");
    tokio::time::sleep(Duration::from_secs(60)).await;
    for id in before {
        assert!(backend.living().contains(&id), "a sandbox was thrown away");
    }
    let state = service.observe().await.unwrap();
    assert_eq!((state.restarts.pool, state.pool.leased), (1, 0));
    service.shutdown().await.unwrap();
    assert_eq!(backend.counters().live(), 0);
}

#[actix::test]
async fn a_session_that_panics_keeps_its_sandbox_its_run_and_its_queue() {
    let backend = FakeBackend::new();
    let service = service(&backend);
    output(&service, Some("s"), "set x 41").await;
    let spawn = |code: &'static str| {
        let service = service.clone();
        tokio::spawn(async move { output(&service, Some("s"), code).await })
    };
    let running = spawn("sleep 2000\nprint done");
    tokio::time::sleep(Duration::from_millis(100)).await;
    let waiting = spawn("get x");
    tokio::time::sleep(Duration::from_millis(100)).await;
    let session = session_of(&service, "s").await;
    session.do_send(Panic);
    let behind = spawn("get x");
    assert_eq!(running.await.unwrap(), "done");
    assert_eq!(waiting.await.unwrap(), "41");
    assert_eq!(behind.await.unwrap(), "41");
    assert_eq!(service.observe().await.unwrap().restarts.sessions, 1);
    service.shutdown().await.unwrap();
    assert_eq!(backend.counters().live(), 0);
}

#[actix::test]
async fn a_job_that_meets_a_session_nobody_waited_for_has_another() {
    let backend = FakeBackend::new();
    let service = service(&backend);
    backend.slow_create(Duration::from_millis(500));
    let gone = tokio::spawn({
        let service = service.clone();
        async move { output(&service, Some("s"), "print 1").await }
    });
    tokio::time::sleep(Duration::from_millis(100)).await;
    let unused = session_of(&service, "s").await;
    gone.abort();
    tokio::time::sleep(Duration::from_secs(2)).await;
    // A message was on its way when the session ended.
    let (reply, answer) = oneshot::channel();
    unused.do_send(Run {
        job: Arc::new(job("print 2")),
        live: None,
        cancel: CancellationToken::new(),
        received: Instant::now(),
        reply,
    });
    assert_eq!(answer.await.unwrap().unwrap().stdout, "2");
    service.shutdown().await.unwrap();
    assert_eq!(backend.counters().live(), 0);
}

#[actix::test]
async fn a_session_that_lost_its_sandbox_in_a_panic_says_so_once() {
    let backend = FakeBackend::new();
    let service = service(&backend);
    output(&service, Some("s"), "set x 41").await;
    session_of(&service, "s").await.do_send(PanicBetween);
    tokio::time::sleep(Duration::from_millis(100)).await;
    let lost = service.execute(tenant(), Some(id("s")), job("get x")).await;
    assert!(
        matches!(lost, Err(ExecuteError::SessionLost { .. })),
        "{lost:?}"
    );
    assert_eq!(output(&service, Some("s"), "print new").await, "new");
    service.shutdown().await.unwrap();
    assert_eq!(backend.counters().live(), 0);
}

#[actix::test]
async fn a_registry_that_panics_keeps_its_sessions_and_hears_of_ends() {
    let backend = FakeBackend::new();
    let service = service(&backend);
    output(&service, Some("kept"), "set x 41").await;
    output(&service, Some("lost"), "set x 41").await;
    let running = tokio::spawn({
        let service = service.clone();
        async move { output(&service, Some("kept"), "sleep 2000\nget x").await }
    });
    tokio::time::sleep(Duration::from_millis(100)).await;
    let lost = session_of(&service, "lost").await;
    service.shared.registry.do_send(Panic);
    lost.do_send(PanicBetween);
    let listed = service.sessions(Some(tenant())).await.unwrap();
    assert!(listed.iter().any(|info| info.id == id("kept")));
    assert_eq!(running.await.unwrap(), "41");
    let listed = service.sessions(Some(tenant())).await.unwrap();
    assert_eq!(listed.len(), 1, "{listed:?}");
    assert_eq!(service.observe().await.unwrap().restarts.registry, 1);
    service.shutdown().await.unwrap();
    assert_eq!(backend.counters().live(), 0);
}

#[actix::test]
async fn a_pruner_that_panics_goes_on() {
    let backend = FakeBackend::new();
    let service = service(&backend);
    tokio::time::sleep(Duration::from_secs(150)).await;
    let ticks = service.observe().await.unwrap().pruner.ticks;
    assert_eq!(ticks, 2);
    service.shared.pruner.do_send(Panic);
    tokio::time::sleep(Duration::from_secs(150)).await;
    let state = service.observe().await.unwrap();
    assert_eq!((state.pruner.ticks, state.restarts.pruner), (4, 1));
    service.shutdown().await.unwrap();
}

#[actix::test]
async fn no_actor_outlives_its_service() {
    tokio::time::pause();
    let backend: Arc<dyn isol8_backend::Backend> = Arc::new(FakeBackend::new());
    let service = Service::start(Arc::clone(&backend), ServiceConfig::default());
    output(&service, None, "print 1").await;
    output(&service, Some("s"), "print 1").await;
    service.shutdown().await.unwrap();
    drop(service);
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert_eq!(Arc::strong_count(&backend), 1, "an actor holds the backend");
}

#[actix::test]
async fn sessions_of_an_earlier_server_go_on_and_losses_are_told_once() {
    let backend = FakeBackend::new();
    let service = service(&backend);
    let claim = |session: &str| Claim {
        tenant: tenant(),
        session: id(session),
        spec: SandboxDefaults::default().spec(Runtime::Python),
        created_at: 1_700_000_000_000,
        defaults: None,
    };
    let hour = Duration::from_secs(3600);
    backend.leave_for_adoption(claim("kept"), Duration::from_secs(60), None);
    backend.leave_for_adoption(claim("lost"), Duration::ZERO, Some("it was running"));
    backend.leave_for_adoption(claim("old"), hour, None);
    let adopted = isol8_backend::Backend::adopt(&backend).await.unwrap();
    service.adopt(adopted).await.unwrap();

    let listed = service.sessions(Some(tenant())).await.unwrap();
    let ids: Vec<_> = listed.iter().map(|info| info.id.to_string()).collect();
    assert_eq!(ids, ["kept", "old"]);
    assert_eq!(listed[0].created_at, 1_700_000_000_000);
    assert!(listed[0].last_accessed_at > listed[1].last_accessed_at);
    assert_eq!(output(&service, Some("kept"), "print here").await, "here");
    let lost = service.execute(tenant(), Some(id("lost")), job("print 1"));
    let reason = lost.await.unwrap_err().to_string();
    assert!(reason.contains("it was running"), "{reason}");
    assert_eq!(output(&service, Some("lost"), "print new").await, "new");
    // The idleness before counts.
    tokio::time::sleep(Duration::from_secs(61)).await;
    let state = service.observe().await.unwrap();
    assert_eq!((state.sessions.sessions, state.sessions.losses), (2, 1));
    service.shutdown().await.unwrap();
    assert_eq!(backend.counters().live(), 0);
    assert!(backend.claims().is_empty());
}

#[actix::test]
async fn sessions_are_claimed_and_left_where_they_are_to_be_kept() {
    let backend = FakeBackend::new();
    let service = service(&backend);
    output(&service, Some("s"), "print 1").await;
    output(&service, Some("deleted"), "print 1").await;
    service
        .delete_session(tenant(), id("deleted"))
        .await
        .unwrap();
    let claims = backend.claims();
    assert_eq!((claims.len(), &claims[0].session), (1, &id("s")));
    service.leave().await.unwrap();
    let counters = backend.counters();
    assert_eq!((counters.live(), counters.left), (0, 1));
    assert_eq!(backend.claims().len(), 1);
}
