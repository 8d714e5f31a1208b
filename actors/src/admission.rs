//! How many jobs run at once, and who waits.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use serde::Serialize;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::error::ExecuteError;

/// Bounds of [`Admission`].
#[derive(Clone, Debug)]
pub struct AdmissionConfig {
    /// Jobs that run at once; at least 1.
    pub max_concurrent: usize,
    /// Jobs that wait for their turn beyond those.
    pub max_waiting: usize,
    /// How long one waits at most.
    pub max_wait: Duration,
}

impl Default for AdmissionConfig {
    fn default() -> Self {
        Self {
            max_concurrent: 10,
            max_waiting: 256,
            max_wait: Duration::from_secs(30),
        }
    }
}

/// Admits jobs in order of arrival.
#[derive(Debug)]
pub struct Admission {
    config: AdmissionConfig,
    turns: Arc<Semaphore>,
    waiting: AtomicUsize,
}

/// The right to run one job; given back when dropped.
#[derive(Debug)]
pub struct Permit {
    _turn: OwnedSemaphorePermit,
}

/// What [`Admission`] shows of itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct AdmissionState {
    /// Jobs that run.
    pub running: usize,
    /// Jobs that wait.
    pub waiting: usize,
}

impl Admission {
    /// An admission within `config`.
    #[must_use]
    pub fn new(config: AdmissionConfig) -> Self {
        let turns = config.max_concurrent.clamp(1, Semaphore::MAX_PERMITS);
        Self {
            turns: Arc::new(Semaphore::new(turns)),
            config: AdmissionConfig {
                max_concurrent: turns,
                ..config
            },
            waiting: AtomicUsize::new(0),
        }
    }

    /// Waits for a turn. Dropping the future gives up the place in the queue.
    ///
    /// # Errors
    /// [`ExecuteError::Overloaded`] where too many wait already, or the wait was too long.
    pub async fn admit(&self) -> Result<Permit, ExecuteError> {
        if let Ok(turn) = Arc::clone(&self.turns).try_acquire_owned() {
            return Ok(Permit { _turn: turn });
        }
        let place = Place::take(&self.waiting);
        if place.before >= self.config.max_waiting {
            return Err(self.overloaded(place.before));
        }
        let turn = Arc::clone(&self.turns).acquire_owned();
        match tokio::time::timeout(self.config.max_wait, turn).await {
            Ok(Ok(turn)) => Ok(Permit { _turn: turn }),
            Ok(Err(_)) => Err(ExecuteError::ShuttingDown),
            Err(_) => Err(self.overloaded(place.before)),
        }
    }

    /// A snapshot.
    #[must_use]
    pub fn observe(&self) -> AdmissionState {
        AdmissionState {
            running: self.config.max_concurrent - self.turns.available_permits(),
            waiting: self.waiting.load(Ordering::Relaxed),
        }
    }

    /// One second for each round of jobs that must end first, within a minute.
    fn overloaded(&self, waiting: usize) -> ExecuteError {
        let rounds = (waiting / self.config.max_concurrent + 1).min(60);
        ExecuteError::Overloaded {
            retry_after: Duration::from_secs(rounds as u64),
        }
    }
}

/// A place in the queue.
struct Place<'a> {
    waiting: &'a AtomicUsize,
    before: usize,
}

impl<'a> Place<'a> {
    fn take(waiting: &'a AtomicUsize) -> Self {
        let before = waiting.fetch_add(1, Ordering::Relaxed);
        Self { waiting, before }
    }
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        self.waiting.fetch_sub(1, Ordering::Relaxed);
    }
}
