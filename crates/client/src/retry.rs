//! Retries and deadlines of calls.

use std::time::Duration;

use backon::{ExponentialBuilder, Retryable as _};
use tokio::time::{Instant, timeout_at};

use crate::ClientError;

/// The rules for retries. A call is retried only if nothing can happen twice:
/// - every call if the connection could not be made, or if the server answers 429, because then it has started nothing;
/// - idempotent calls also if the server answers 503 or the connection breaks. All calls are idempotent except runs
///   without an idempotency key, streams, and uploads whose content is a stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Retries {
    /// Maximum number of retries after the first try; 0 for none.
    pub most: usize,
    /// Maximum wait before a retry. If the server asks for a longer wait, the call is not retried.
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

/// Wait before the first retry if the server does not say how long to wait; doubled for each further retry.
const INITIAL_BACKOFF: Duration = Duration::from_millis(100);

/// Whether a call is idempotent: made twice, it has the same effect as made once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Repeatable {
    Yes,
    No,
}

impl Retries {
    /// Makes a call, and retries it until it has a result or a retry is of no use or not safe.
    pub(crate) async fn call<T, F: Future<Output = Result<T, ClientError>>>(
        self,
        repeatable: Repeatable,
        call: impl FnMut() -> F,
    ) -> Result<T, ClientError> {
        let waits = ExponentialBuilder::new()
            .with_min_delay(INITIAL_BACKOFF)
            .with_max_delay(self.longest_wait)
            .with_max_times(self.most);
        call.retry(waits)
            .adjust(|error, wait| self.wait(error, repeatable, wait?))
            .await
    }

    /// Returns the wait before the next try; `None` if the call is not retried.
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

/// The time limit of a call, waits between retries included.
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
            policy.wait(&error, repeatable, INITIAL_BACKOFF)
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
