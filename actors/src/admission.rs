//! How many jobs run at once, and who waits.
//!
//! Tenants that have waiting jobs take turns, so that the many jobs of one do not delay the one of another. If the
//! queue is full, a tenant with fewer waiting jobs gets its place from the end of the longest tenant queue.

mod fair_queue;

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use isol8_api::TenantId;
use serde::Serialize;
use tokio::sync::oneshot;
use tokio::time::Instant;

use crate::error::ExecuteError;
use fair_queue::{FairQueue, Ticket};

/// Bounds of [`Admission`].
#[derive(Clone, Debug)]
pub struct AdmissionConfig {
    /// Jobs that run at once; at least 1.
    pub max_concurrent: usize,
    /// Highest number of concurrent jobs of one tenant; at least 1.
    pub max_concurrent_per_tenant: usize,
    /// Jobs that wait for their turn beyond those.
    pub max_waiting: usize,
    /// How long one waits at most.
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

/// How long a job took lately, before there was any: the weight of the next is 1/8.
const FIRST_GUESS: Duration = Duration::from_millis(500);

/// Longest advice when to come back.
const MAX_RETRY_AFTER: Duration = Duration::from_secs(60);

/// Admits jobs, those of each tenant in order of arrival.
#[derive(Clone, Debug)]
pub struct Admission {
    state: Arc<Mutex<State>>,
}

#[derive(Debug)]
struct State {
    config: AdmissionConfig,
    running: usize,
    queue: FairQueue,
    usual: Duration,
}

/// The right to run one job; given back when dropped.
#[derive(Debug)]
pub struct Permit(Option<RunningJob>);

#[derive(Debug)]
struct RunningJob {
    admission: Admission,
    tenant: TenantId,
    since: Instant,
}

/// The state that [`Admission`] reports.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct AdmissionState {
    /// Jobs that run.
    pub running: usize,
    /// Jobs that wait.
    pub waiting: usize,
    /// How long a job takes of late, in milliseconds.
    pub usual_ms: u128,
}

impl Admission {
    /// An admission within `config`.
    #[must_use]
    pub fn new(config: AdmissionConfig) -> Self {
        let state = State {
            config,
            running: 0,
            queue: FairQueue::default(),
            usual: FIRST_GUESS,
        };
        Self {
            state: Arc::new(Mutex::new(state)),
        }
    }

    /// Waits for a turn. Dropping the future gives up the place in the line.
    ///
    /// # Errors
    /// [`ExecuteError::TenantOverloaded`] where as many of this tenant's jobs run and wait as may;
    /// [`ExecuteError::Overloaded`] where that is so of all, or the wait was too long.
    pub async fn admit(&self, tenant: &TenantId) -> Result<Permit, ExecuteError> {
        let (_place, turn) = self.enter(tenant)?;
        let max_wait = self.lock().config.max_wait;
        match tokio::time::timeout(max_wait, turn).await {
            Ok(Ok(permit)) => Ok(permit),
            // Its place went to a tenant that has fewer.
            Ok(Err(_)) => Err(self.lock().tenant_overloaded(tenant)),
            Err(_) => Err(self.lock().overloaded()),
        }
    }

    /// Changes the limits. Running jobs run on, and waiting jobs keep their places.
    pub fn set_config(&self, config: AdmissionConfig) {
        let mut state = self.lock();
        state.config = config;
        self.give_turns(&mut state);
    }

    /// A snapshot.
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
    ) -> Result<(Place<'a>, oneshot::Receiver<Permit>), ExecuteError> {
        let mut state = self.lock();
        let (reply, turn) = oneshot::channel();
        let ticket = state.queue.push(tenant, reply);
        self.give_turns(&mut state);
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
        let place = Place {
            admission: self,
            tenant,
            ticket,
        };
        Ok((place, turn))
    }

    /// Gives free turns to those who wait, one of each tenant after the other.
    fn give_turns(&self, state: &mut State) {
        while state.running < state.config.max_concurrent.max(1) {
            let most = state.config.max_concurrent_per_tenant.max(1);
            let Some((tenant, reply)) = state.queue.next(most) else {
                return;
            };
            state.running += 1;
            let turn = RunningJob {
                admission: self.clone(),
                tenant,
                since: Instant::now(),
            };
            // Dropped here, an unwanted one would lock what is locked.
            if let Err(Some(turn)) = reply.send(Permit(Some(turn))).map_err(Permit::taken) {
                state.end(&turn.tenant);
            }
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // Nothing under the lock panics half-way.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn end(&mut self, tenant: &TenantId) {
        self.running -= 1;
        self.queue.ended(tenant);
    }

    /// When those before a new job should have had their turns, by what jobs took of late.
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
    fn taken(mut self) -> Option<RunningJob> {
        self.0.take()
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        let Some(turn) = self.0.take() else { return };
        let mut state = turn.admission.lock();
        state.end(&turn.tenant);
        state.usual = (state.usual * 7 + turn.since.elapsed()) / 8;
        turn.admission.give_turns(&mut state);
    }
}

/// A place in the line, given up when dropped; nothing where its turn has come.
struct Place<'a> {
    admission: &'a Admission,
    tenant: &'a TenantId,
    ticket: Ticket,
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        self.admission.lock().queue.remove(self.tenant, self.ticket);
    }
}
