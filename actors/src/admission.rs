//! Limits how many jobs run at once, and queues the others.
//!
//! Tenants that have waiting jobs take turns, so that the many jobs of one tenant do not delay the single job of
//! another. If the queue is full, the last job of the longest tenant queue is refused; this may be the new job itself.

mod fair_queue;

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use isol8_api::TenantId;
use serde::Serialize;
use tokio::sync::oneshot;
use tokio::time::Instant;

use crate::error::ExecuteError;
use fair_queue::{FairQueue, Ticket};

/// Limits of [`Admission`].
#[derive(Clone, Debug)]
pub struct AdmissionConfig {
    /// Highest number of concurrent jobs; at least 1.
    pub max_concurrent: usize,
    /// Highest number of concurrent jobs of one tenant; at least 1.
    pub max_concurrent_per_tenant: usize,
    /// Highest number of jobs that wait for their turn.
    pub max_waiting: usize,
    /// How long a job waits at most.
    pub max_wait: Duration,
}

impl Default for AdmissionConfig {
    fn default() -> Self {
        Self {
            max_concurrent: 10,
            max_concurrent_per_tenant: 10,
            max_waiting: 256,
            max_wait: Duration::from_secs(30),
        }
    }
}

/// Assumed duration of a job before the first has ended. Each job that ends changes the average with a weight of 1/8.
const FIRST_GUESS: Duration = Duration::from_millis(500);

/// Longest time after which a refused client is advised to retry.
const MAX_RETRY_AFTER: Duration = Duration::from_secs(60);

/// Admits jobs; the jobs of each tenant in order of arrival. Clones share the queue.
#[derive(Clone, Debug)]
pub struct Admission {
    state: Arc<Mutex<Scheduler>>,
}

#[derive(Debug)]
struct Scheduler {
    config: AdmissionConfig,
    running: usize,
    queue: FairQueue<oneshot::Sender<Permit>>,
    usual: Duration,
}

/// The right to run one job. Dropping it admits the next job.
#[derive(Debug)]
pub struct Permit(Option<AdmittedJob>);

#[derive(Debug)]
struct AdmittedJob {
    admission: Admission,
    tenant: TenantId,
    since: Instant,
}

/// The state that [`Admission`] reports.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct AdmissionState {
    /// Number of jobs that run.
    pub running: usize,
    /// Number of jobs that wait.
    pub waiting: usize,
    /// Average duration of the last jobs, in milliseconds.
    pub usual_ms: u128,
}

impl Admission {
    /// Returns an admission with these limits.
    #[must_use]
    pub fn new(config: AdmissionConfig) -> Self {
        let state = Scheduler {
            config,
            running: 0,
            queue: FairQueue::default(),
            usual: FIRST_GUESS,
        };
        Self {
            state: Arc::new(Mutex::new(state)),
        }
    }

    /// Waits for a turn. Dropping the future gives up the place in the queue.
    ///
    /// # Errors
    /// [`ExecuteError::TenantOverloaded`] if this tenant's jobs have reached their limit;
    /// [`ExecuteError::Overloaded`] if the jobs of all tenants have, or the job has waited for too long.
    pub async fn admit(&self, tenant: &TenantId) -> Result<Permit, ExecuteError> {
        let (_place, turn) = self.enter(tenant)?;
        let max_wait = self.lock().config.max_wait;
        match tokio::time::timeout(max_wait, turn).await {
            Ok(Ok(permit)) => Ok(permit),
            // The place went to a tenant that has fewer waiting jobs.
            Ok(Err(_)) => Err(self.lock().tenant_overloaded(tenant)),
            Err(_) => Err(self.lock().overloaded()),
        }
    }

    /// Changes the limits. Running jobs run on, and waiting jobs keep their places.
    pub fn set_config(&self, config: AdmissionConfig) {
        let mut state = self.lock();
        state.config = config;
        self.admit_waiting(&mut state);
    }

    /// Returns a snapshot.
    #[must_use]
    pub fn observe(&self) -> AdmissionState {
        let state = self.lock();
        AdmissionState {
            running: state.running,
            waiting: state.queue.len(),
            usual_ms: state.usual.as_millis(),
        }
    }

    fn enter<'a>(
        &'a self,
        tenant: &'a TenantId,
    ) -> Result<(QueuePlace<'a>, oneshot::Receiver<Permit>), ExecuteError> {
        let mut state = self.lock();
        let (reply, turn) = oneshot::channel();
        let ticket = state.queue.push(tenant, reply);
        self.admit_waiting(&mut state);
        if state.queue.len() > state.config.max_waiting {
            match state.queue.drop_from_longest() {
                Some(dropped) if dropped == ticket => {
                    let alone = state.queue.len() == state.queue.of(tenant);
                    return Err(if alone {
                        state.overloaded()
                    } else {
                        state.tenant_overloaded(tenant)
                    });
                }
                _ => {}
            }
        }
        let place = QueuePlace {
            admission: self,
            tenant,
            ticket,
        };
        Ok((place, turn))
    }

    /// Admits waiting jobs while there is room; the tenants take turns.
    fn admit_waiting(&self, state: &mut Scheduler) {
        while state.running < state.config.max_concurrent.max(1) {
            let most = state.config.max_concurrent_per_tenant.max(1);
            let Some((tenant, reply)) = state.queue.next(most) else {
                return;
            };
            state.running += 1;
            let job = AdmittedJob {
                admission: self.clone(),
                tenant,
                since: Instant::now(),
            };
            // A permit that is dropped here would lock the mutex, which is already locked.
            if let Err(Some(job)) = reply.send(Permit(Some(job))).map_err(Permit::taken) {
                state.end(&job.tenant);
            }
        }
    }

    fn lock(&self) -> MutexGuard<'_, Scheduler> {
        // No code that holds the lock panics in the middle of a change.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Scheduler {
    fn end(&mut self, tenant: &TenantId) {
        self.running -= 1;
        self.queue.ended(tenant);
    }

    /// Returns the time after which the jobs ahead of a new one should have ended, by the average duration of jobs.
    fn retry_after(&self, before: usize, width: usize) -> Duration {
        let rounds = u32::try_from(before / width.max(1) + 1).unwrap_or(u32::MAX);
        let wait = self.usual.saturating_mul(rounds);
        let seconds = wait.as_secs() + u64::from(wait.subsec_nanos() > 0);
        Duration::from_secs(seconds.max(1)).min(MAX_RETRY_AFTER)
    }

    fn overloaded(&self) -> ExecuteError {
        let retry_after = self.retry_after(self.queue.len(), self.config.max_concurrent);
        ExecuteError::Overloaded { retry_after }
    }

    fn tenant_overloaded(&self, tenant: &TenantId) -> ExecuteError {
        let width = self.config.max_concurrent_per_tenant;
        ExecuteError::TenantOverloaded {
            retry_after: self.retry_after(self.queue.of(tenant), width),
        }
    }
}

impl Permit {
    fn taken(mut self) -> Option<AdmittedJob> {
        self.0.take()
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        let Some(job) = self.0.take() else { return };
        let mut state = job.admission.lock();
        state.end(&job.tenant);
        state.usual = (state.usual * 7 + job.since.elapsed()) / 8;
        job.admission.admit_waiting(&mut state);
    }
}

/// A place in the queue, which is given up on drop. After the job's turn has come, the drop has no effect.
struct QueuePlace<'a> {
    admission: &'a Admission,
    tenant: &'a TenantId,
    ticket: Ticket,
}

impl Drop for QueuePlace<'_> {
    fn drop(&mut self) {
        self.admission.lock().queue.remove(self.tenant, self.ticket);
    }
}
