//! When a call is made again, and how long it may take.

use std::time::Duration;

use backon::{ExponentialBuilder, Retryable as _};
use tokio::time::{Instant, timeout_at};

use crate::ClientError;

/// How often, and how patiently, a call is made again: only if nothing can happen twice. That holds if the server could
/// not be connected to, and if it answers 429, because then it has started nothing. At 503, and after a broken
/// connection, it holds for calls that do the same when they are done twice: all but runs without an idempotency key,
/// streams, and files whose content is a stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Retries {
    /// Tries after the first; 0 for none.
    pub most: usize,
    /// A server that wants more patience than this is not asked again.
    pub longest_wait: Duration,
}

impl Default for Retries {
    fn default() -> Self {
        Self {
            most: 3,
            longest_wait: Duration::from_secs(10),
        }
    }
}

/// Wait before the second try, where the server does not say how long; doubled each time.
const FIRST_WAIT: Duration = Duration::from_millis(100);

/// Whether a call does the same when it is done twice.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Repeatable {
    Yes,
    No,
}

impl Retries {
    /// Makes a call until it has a result, or there is no use in another try.
    pub(crate) async fn call<T, F: Future<Output = Result<T, ClientError>>>(
        self,
        repeatable: Repeatable,
        call: impl FnMut() -> F,
    ) -> Result<T, ClientError> {
        let waits = ExponentialBuilder::new()
            .with_min_delay(FIRST_WAIT)
            .with_max_delay(self.longest_wait)
            .with_max_times(self.most);
        call.retry(waits)
            .adjust(|error, wait| self.wait(error, repeatable, wait?))
            .await
    }

    /// The wait before the next try; `None` if there is none.
    fn wait(
        self,
        error: &ClientError,
        repeatable: Repeatable,
        usual: Duration,
    ) -> Option<Duration> {
        let again = repeatable == Repeatable::Yes;
        match error {
            ClientError::Unreachable(_) => Some(usual),
            ClientError::Transport(_) => again.then_some(usual),
            ClientError::Api {
                status,
                retry_after,
                ..
            } if *status == 429 || (*status == 503 && again) => {
                retry_after.filter(|after| *after <= self.longest_wait)
            }
            _ => None,
        }
    }
}

/// The end of what a call may take, waits included.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Deadline(Option<(Instant, Duration)>);

impl Deadline {
    pub(crate) fn after(time: Option<Duration>) -> Self {
        Self(time.and_then(|time| Some((Instant::now().checked_add(time)?, time))))
    }

    pub(crate) async fn bound<T, E: Into<ClientError>>(
        self,
        work: impl Future<Output = Result<T, E>>,
    ) -> Result<T, ClientError> {
        match self.0 {
            None => work.await.map_err(Into::into),
            Some((end, time)) => match timeout_at(end, work).await {
                Ok(done) => done.map_err(Into::into),
                Err(_) => Err(ClientError::Deadline(time)),
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn api(status: u16, retry_after: Option<u64>) -> ClientError {
        ClientError::Api {
            status,
            code: None,
            message: String::new(),
            retry_after: retry_after.map(Duration::from_secs),
        }
    }

    #[test]
    fn what_may_have_begun_is_tried_again_only_where_that_does_no_harm() {
        let wait = |error, repeatable| {
            let policy = Retries::default();
            policy.wait(&error, repeatable, FIRST_WAIT)
        };
        let second = Some(Duration::from_secs(1));
        for repeatable in [Repeatable::Yes, Repeatable::No] {
            assert_eq!(wait(api(429, Some(1)), repeatable), second);
            assert_eq!(wait(api(429, None), repeatable), None);
            assert_eq!(wait(api(429, Some(11)), repeatable), None);
            assert_eq!(wait(api(500, Some(1)), repeatable), None);
            assert_eq!(wait(api(404, None), repeatable), None);
            assert_eq!(wait(ClientError::BrokenOff, repeatable), None);
        }
        assert_eq!(wait(api(503, Some(1)), Repeatable::Yes), second);
        assert_eq!(wait(api(503, Some(1)), Repeatable::No), None);
    }

    #[tokio::test(start_paused = true)]
    async fn tries_are_bounded_and_wait_as_long_as_the_server_wants() {
        let begun = Instant::now();
        let mut tries = 0;
        let retries = Retries::default();
        let called = retries.call(Repeatable::No, || {
            tries += 1;
            std::future::ready(Err::<(), _>(api(429, Some(2))))
        });
        assert!(called.await.is_err());
        assert_eq!(tries, 4);
        assert_eq!(begun.elapsed().as_secs(), 6);
    }

    #[tokio::test(start_paused = true)]
    async fn a_deadline_ends_the_waits_too() {
        let retries = Retries::default();
        let deadline = Deadline::after(Some(Duration::from_secs(3)));
        let begun = Instant::now();
        let called = retries.call(Repeatable::No, || {
            std::future::ready(Err::<(), _>(api(429, Some(2))))
        });
        let error = deadline.bound(called).await.unwrap_err();
        assert!(matches!(error, ClientError::Deadline(_)), "{error}");
        assert_eq!(begun.elapsed().as_secs(), 3);
    }
}
