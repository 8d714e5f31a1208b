//! Bounds the memory and the processors that the bodies of all requests under way take.

use std::sync::Arc;

use actix_web::web;
use isol8_api::ErrorCode;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::error::ApiError;

/// Largest body in bytes that is read without a share of memory, and parsed on the thread that reads it. Parsing takes a
/// millisecond at most.
pub const SMALL: usize = 64 << 10;

/// Bytes per permit of the memory's semaphore, because at most 2^32 permits can be acquired at once.
const UNIT: usize = 1024;

/// The memory and the processors for bodies. Clones share both.
#[derive(Clone, Debug)]
pub struct BodyBudget {
    memory: Arc<Semaphore>,
    /// Permits of the memory's semaphore, free or taken.
    total: usize,
    processors: Arc<Semaphore>,
}

impl BodyBudget {
    /// Makes a budget of this many bytes of memory, and of all processors.
    #[must_use]
    pub fn new(bytes: usize) -> Self {
        let processors = std::thread::available_parallelism().map_or(1, usize::from);
        let total = (bytes / UNIT).min(Semaphore::MAX_PERMITS);
        Self {
            memory: Arc::new(Semaphore::new(total)),
            total,
            processors: Arc::new(Semaphore::new(processors)),
        }
    }

    /// Waits for the share of a body of this length. Small bodies need no memory from the budget, and get an empty share.
    ///
    /// Shares are given in the order of the requests. A caller that holds a share must not wait for another one; so each
    /// body gets its share in the end.
    pub async fn share(&self, bytes: usize) -> MemoryShare {
        if bytes <= SMALL {
            return MemoryShare(None);
        }
        let taking = Arc::clone(&self.memory).acquire_many_owned(self.units(bytes));
        // The semaphore is never closed.
        MemoryShare(taking.await.ok())
    }

    /// Returns a share for this many bytes that are in memory already, or `None` if the budget does not have them now.
    #[must_use]
    pub fn try_share(&self, bytes: usize) -> Option<MemoryShare> {
        if bytes <= SMALL {
            return Some(MemoryShare(None));
        }
        let taking = Arc::clone(&self.memory).try_acquire_many_owned(self.units(bytes));
        taking.ok().map(|held| MemoryShare(Some(held)))
    }

    /// Returns the permits for this many bytes. A body that is larger than the whole budget takes all of it.
    fn units(&self, bytes: usize) -> u32 {
        u32::try_from(units(bytes).min(self.total)).unwrap_or(u32::MAX)
    }

    /// Does work whose duration grows with the length of a body: on the current thread for a small body, otherwise on
    /// another thread. At most one such thread per processor works at a time.
    ///
    /// # Errors
    /// [`ErrorCode::Internal`] if the work panicked.
    pub async fn work<T: Send + 'static>(
        &self,
        bytes: usize,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> Result<T, ApiError> {
        if bytes <= SMALL {
            return Ok(work());
        }
        self.run_blocking(work).await
    }

    /// Does work on another thread, for a body of any length.
    ///
    /// # Errors
    /// [`ErrorCode::Internal`] if the work panicked.
    pub async fn run_blocking<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> Result<T, ApiError> {
        let processor = Arc::clone(&self.processors).acquire_owned().await;
        let done = web::block(move || {
            // The permit is held until the work is done, even if the request has been dropped by then.
            let _processor = processor;
            work()
        });
        done.await
            .map_err(|_| ApiError::new(ErrorCode::Internal, "body could not be parsed"))
    }
}

/// The memory of one body in the budget. Dropping the share frees it.
#[derive(Debug, Default)]
pub struct MemoryShare(Option<OwnedSemaphorePermit>);

impl MemoryShare {
    /// Whether the share holds memory; that of a small body does not.
    #[must_use]
    pub fn is_held(&self) -> bool {
        self.0.is_some()
    }

    /// Frees the part that a body of this length does not need.
    pub fn shrink(&mut self, bytes: usize) {
        if let Some(held) = &mut self.0 {
            let unused = held.num_permits().saturating_sub(units(bytes));
            drop(held.split(unused));
        }
    }
}

fn units(bytes: usize) -> usize {
    bytes.div_ceil(UNIT)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use futures::FutureExt as _;

    use super::*;

    #[tokio::test]
    async fn bodies_share_their_memory_in_turn() {
        let bodies = BodyBudget::new(4 * SMALL);
        let mut first = bodies.share(3 * SMALL).await;
        assert!(first.is_held());
        let mut second = Box::pin(bodies.share(2 * SMALL));
        assert!((&mut second).now_or_never().is_none());
        // A later body does not overtake it, and a small one needs no memory.
        let mut third = Box::pin(bodies.share(SMALL + 1));
        assert!((&mut third).now_or_never().is_none());
        assert!(!bodies.share(SMALL).await.is_held());
        first.shrink(2 * SMALL);
        let second = second.await;
        drop(first);
        assert!(second.is_held() && third.await.is_held());
        assert!(bodies.try_share(3 * SMALL).is_none());
        assert!(bodies.try_share(SMALL).is_some());
        drop(second);
        assert!(
            bodies
                .share(4 * SMALL)
                .now_or_never()
                .is_some_and(|it| it.is_held())
        );
    }

    #[actix_web::test]
    async fn as_much_work_is_done_at_once_as_there_are_processors() {
        let bodies = BodyBudget::new(0);
        let processors = bodies.processors.available_permits();
        let (release, released) = std::sync::mpsc::channel::<()>();
        let released = Arc::new(std::sync::Mutex::new(released));
        let work = |_| {
            let (bodies, released) = (bodies.clone(), Arc::clone(&released));
            let blocked = move || drop(released.lock().map(|it| it.recv()));
            actix_web::rt::spawn(async move { bodies.run_blocking(blocked).await })
        };
        let works: Vec<_> = (0..=processors).map(work).collect();
        while bodies.processors.available_permits() > 0 {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        assert_eq!(bodies.work(SMALL, || 7).await.unwrap(), 7);
        drop(release);
        for work in works {
            work.await.unwrap().unwrap();
        }
        assert_eq!(bodies.processors.available_permits(), processors);
    }
}
