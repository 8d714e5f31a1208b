//! Memory and processors that the bodies of all requests under way share.

use std::sync::Arc;

use actix_web::web;
use isol8_api::ErrorCode;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::error::ApiError;

/// Bytes of a body that is read without a share of memory and parsed on the reading thread, because that takes a
/// millisecond at most.
pub const SMALL: usize = 64 << 10;

/// The unit in which memory is shared out: a semaphore counts to 2^32 at once.
const UNIT: usize = 1024;

/// The memory and the processors. Clones share them.
#[derive(Clone, Debug)]
pub struct Bodies {
    memory: Arc<Semaphore>,
    /// Units of memory there are.
    total: usize,
    processors: Arc<Semaphore>,
}

impl Bodies {
    /// Room for so many bytes of bodies.
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

    /// Waits for a share for a body of so many bytes. Shares are given in the order in which they were asked
    /// for, and nothing may be waited for with one in hand, so each body gets its share. Small bodies have none.
    pub async fn share(&self, bytes: usize) -> Share {
        if bytes <= SMALL {
            return Share(None);
        }
        let taking = Arc::clone(&self.memory).acquire_many_owned(self.units(bytes));
        // The semaphore is never closed.
        Share(taking.await.ok())
    }

    /// A share for something of so many bytes that is here already, if there is memory for it now.
    #[must_use]
    pub fn try_share(&self, bytes: usize) -> Option<Share> {
        if bytes <= SMALL {
            return Some(Share(None));
        }
        let taking = Arc::clone(&self.memory).try_acquire_many_owned(self.units(bytes));
        taking.ok().map(|held| Share(Some(held)))
    }

    /// A body that is larger than all memory takes all of it.
    fn units(&self, bytes: usize) -> u32 {
        u32::try_from(units(bytes).min(self.total)).unwrap_or(u32::MAX)
    }

    /// Does work that takes time by the size of a body: at once for a small one, else on a thread of its
    /// own, of which there are as many at once as processors.
    ///
    /// # Errors
    /// [`ErrorCode::Internal`] where the work panicked.
    pub async fn work<T: Send + 'static>(
        &self,
        bytes: usize,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> Result<T, ApiError> {
        if bytes <= SMALL {
            return Ok(work());
        }
        self.aside(work).await
    }

    /// Does work on a thread of its own, whatever the size of the body is.
    ///
    /// # Errors
    /// [`ErrorCode::Internal`] where the work panicked.
    pub async fn aside<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> Result<T, ApiError> {
        let processor = Arc::clone(&self.processors).acquire_owned().await;
        let done = web::block(move || {
            // Held until the work is done, also where its request is gone by then.
            let _processor = processor;
            work()
        });
        done.await
            .map_err(|_| ApiError::new(ErrorCode::Internal, "body could not be parsed"))
    }
}

/// The memory of one body. Dropping it gives it back.
#[derive(Debug, Default)]
pub struct Share(Option<OwnedSemaphorePermit>);

impl Share {
    /// Whether there is one: small bodies have none.
    #[must_use]
    pub fn is_held(&self) -> bool {
        self.0.is_some()
    }

    /// Gives back all but what a body of so many bytes takes.
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
        let bodies = Bodies::new(4 * SMALL);
        let mut first = bodies.share(3 * SMALL).await;
        assert!(first.is_held());
        let mut second = Box::pin(bodies.share(2 * SMALL));
        assert!((&mut second).now_or_never().is_none());
        // A later one does not overtake it, and a small one needs none.
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
        let bodies = Bodies::new(0);
        let processors = bodies.processors.available_permits();
        let (release, released) = std::sync::mpsc::channel::<()>();
        let released = Arc::new(std::sync::Mutex::new(released));
        let work = |_| {
            let (bodies, released) = (bodies.clone(), Arc::clone(&released));
            let blocked = move || drop(released.lock().map(|it| it.recv()));
            actix_web::rt::spawn(async move { bodies.aside(blocked).await })
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
