//! The base of every actor test: a service over the fake backend, under a paused clock.
#![allow(dead_code, unreachable_pub)] // Each test file uses its own part.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use isol8_actors::pool::{PoolConfig, PoolSize, SandboxDefaults};
use isol8_actors::{ExecuteError, Job, Program, Service, ServiceConfig};
use isol8_api::{ExecutionResult, Runtime, SessionId, TenantId};
use isol8_backend::fake::FakeBackend;

pub type Outcome = Result<ExecutionResult, ExecuteError>;

/// A service and the fake backend that it runs on.
#[derive(Clone, Debug)]
pub struct TestService {
    pub backend: FakeBackend,
    pub service: Service,
}

/// A configuration without idle clean sandboxes; a test that wants some asks for them.
pub fn config() -> ServiceConfig {
    ServiceConfig {
        pool: PoolConfig {
            size: PoolSize::fixed(0, 4),
            ..PoolConfig::default()
        },
        ..ServiceConfig::default()
    }
}

/// As [`config`], with this many Python sandboxes.
pub fn with_pool(clean: usize, dirty: usize) -> ServiceConfig {
    let mut config = config();
    config.pool.sizes = BTreeMap::from([(Runtime::Python, PoolSize::fixed(clean, dirty))]);
    config
}

impl TestService {
    pub fn new(config: ServiceConfig) -> Self {
        Self::over(FakeBackend::new(), config)
    }

    pub fn over(backend: FakeBackend, config: ServiceConfig) -> Self {
        tokio::time::pause();
        Self::next_to_another(backend, config)
    }

    /// For a test that has a service already, and so a paused clock.
    pub fn next_to_another(backend: FakeBackend, config: ServiceConfig) -> Self {
        let service = Service::start(Arc::new(backend.clone()), config);
        Self { backend, service }
    }

    /// Runs a job of the default tenant.
    pub async fn run(&self, job: Job) -> Outcome {
        self.run_as("t", None, job).await
    }

    /// Runs a Python program and returns its output.
    pub async fn output(&self, code: &str) -> String {
        self.run(job(code)).await.unwrap().stdout
    }

    /// Runs a Python program in a session.
    pub async fn in_session(&self, id: &str, code: &str) -> Outcome {
        self.run_as("t", Some(id), job(code)).await
    }

    pub async fn run_as(&self, tenant: &str, session: Option<&str>, job: Job) -> Outcome {
        let session: Option<SessionId> = session.map(|id| id.parse().unwrap());
        self.service
            .execute(tenant.parse().unwrap(), session, job)
            .await
    }

    /// As [`Self::run_as`], in the background. Aborting the task has the effect of a client that disconnects.
    pub fn spawn_as(
        &self,
        tenant: &str,
        session: Option<&str>,
        job: Job,
    ) -> tokio::task::JoinHandle<Outcome> {
        let (fixture, tenant) = (self.clone(), tenant.to_owned());
        let session = session.map(str::to_owned);
        tokio::spawn(async move { fixture.run_as(&tenant, session.as_deref(), job).await })
    }

    /// Waits until a condition holds, for at most a minute of the paused clock.
    pub async fn until(&self, what: &str, condition: impl Fn(&Self) -> bool) {
        for _ in 0..60_000 {
            if condition(self) {
                return;
            }
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        panic!("not so within a minute: {what}, {self:?}");
    }

    /// Waits until the pool holds this many idle Python sandboxes and cleans none.
    pub async fn until_waiting(&self, clean: usize, used: usize) {
        for _ in 0..60_000 {
            let state = self.service.observe().await.unwrap().pool;
            let sub_pool = state.runtimes.get(&Runtime::Python).cloned();
            let sub_pool = sub_pool.unwrap_or_default();
            if (sub_pool.clean, sub_pool.used, sub_pool.cleaning) == (clean, used, 0) {
                return;
            }
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        panic!("not {clean} clean and {used} used within a minute, {self:?}");
    }

    /// Shuts the service down, and asserts that no sandbox, session or request is left.
    pub async fn finish(self) {
        self.service.shutdown().await.unwrap();
        let counters = self.backend.counters();
        assert_eq!(counters.live(), 0, "leaked: {counters:?}");
        let state = self.service.observe().await.unwrap();
        assert_eq!(state.pool.leased + state.pool.destroying, 0, "{state:?}");
        assert_eq!(state.sessions.sessions, 0, "{state:?}");
        assert_eq!(state.admission.running + state.admission.waiting, 0);
        assert_eq!(
            self.run(job("print 1")).await,
            Err(ExecuteError::ShuttingDown)
        );
    }
}

/// A Python job.
pub fn job(code: &str) -> Job {
    job_in(Runtime::Python, code)
}

pub fn job_in(runtime: Runtime, code: &str) -> Job {
    let spec = SandboxDefaults::default().spec(runtime);
    Job::new(Program::source(code, runtime), spec).unwrap()
}

pub fn tenant(name: &str) -> TenantId {
    name.parse().unwrap()
}
