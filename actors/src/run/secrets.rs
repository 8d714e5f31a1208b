//! Secret values, which may not be seen in the output of a run.

mod transducer;

use std::sync::Arc;

use isol8_api::NetworkLogEntry;
use tokio::task::spawn_blocking;

use crate::error::ExecuteError;
use crate::job::{MAX_SECRET_BYTES, MAX_SECRETS};
use transducer::{State, Transducer};

const MASK: &str = "***";

/// Bytes of values beyond which building the machine for them takes longer than the actors' thread may be
/// occupied, which is about a millisecond.
const BUILT_ASIDE: usize = 8 * 1024;

/// The values to be masked.
#[derive(Debug)]
pub(super) struct Secrets(Transducer);

impl Secrets {
    /// Prepares to mask these values; returns `None` where there is none. Many of them are prepared on a
    /// thread of their own.
    ///
    /// # Errors
    /// [`ExecuteError::Invalid`] where there are more values, or more bytes of them, than a job may have.
    pub(super) async fn prepare(values: &[String]) -> Result<Option<Arc<Self>>, ExecuteError> {
        let bytes: usize = values.iter().map(String::len).sum();
        if values.len() > MAX_SECRETS || bytes > MAX_SECRET_BYTES {
            return Err(ExecuteError::Invalid(format!(
                "options.secrets: {} values of {bytes} bytes, expected at most {MAX_SECRETS} of {MAX_SECRET_BYTES} together",
                values.len()
            )));
        }
        if bytes <= BUILT_ASIDE {
            return Ok(Self::new(values));
        }
        let values = values.to_vec();
        let building = spawn_blocking(move || Self::new(&values)).await;
        building.map_err(|_| ExecuteError::Internal("preparing secrets panicked".to_owned()))
    }

    /// Prepares to mask these values; returns `None` where there is none.
    pub(super) fn new(values: &[String]) -> Option<Arc<Self>> {
        let mut values = values
            .iter()
            .map(String::as_bytes)
            .filter(|value| !value.is_empty())
            .peekable();
        values.peek()?;
        Some(Arc::new(Self(Transducer::new(values))))
    }

    /// Masks a request that a program made: it chose all three texts.
    pub(super) fn mask_request(&self, entry: &mut NetworkLogEntry) {
        let texts = [
            Some(&mut entry.method),
            Some(&mut entry.host),
            entry.path.as_mut(),
        ];
        for text in texts.into_iter().flatten() {
            let mut masked = Vec::with_capacity(text.len());
            let state = self.0.feed(State::default(), text.as_bytes(), &mut masked);
            self.0.finish(state, &mut masked);
            // Values are text as well, so characters stay whole.
            *text = String::from_utf8_lossy(&masked).into_owned();
        }
    }
}

/// Masks a stream that comes in pieces, as if it came in one: the leftmost values, and the longest of those
/// that begin at the same place. It holds back bytes that may be the begin of a value, and no others.
#[derive(Debug)]
pub(super) struct Masker {
    secrets: Option<Arc<Secrets>>,
    state: State,
}

impl Masker {
    pub(super) fn new(secrets: Option<Arc<Secrets>>) -> Self {
        Self {
            secrets,
            state: State::default(),
        }
    }

    /// Takes a piece, and returns what is certain by now.
    pub(super) fn push(&mut self, bytes: Vec<u8>) -> Vec<u8> {
        let Some(secrets) = &self.secrets else {
            return bytes;
        };
        let mut masked = Vec::with_capacity(bytes.len());
        self.state = secrets.0.feed(self.state, &bytes, &mut masked);
        masked
    }

    /// Returns what was held back. Where the stream was cut, that may be a part of a value, and is masked.
    pub(super) fn finish(&mut self, cut: bool) -> Vec<u8> {
        let state = std::mem::take(&mut self.state);
        let mut rest = Vec::new();
        match &self.secrets {
            Some(_) if cut && state.holds_something() => rest.extend_from_slice(MASK.as_bytes()),
            Some(secrets) => secrets.0.finish(state, &mut rest),
            None => {}
        }
        rest
    }
}

#[cfg(test)]
mod tests;
