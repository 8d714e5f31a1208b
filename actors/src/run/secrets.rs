//! Masks secret values in the output of a run.

mod transducer;

use std::sync::Arc;

use aho_corasick::{AhoCorasick, AhoCorasickKind};
use isol8_api::NetworkLogEntry;
use tokio::task::spawn_blocking;

use crate::error::ExecuteError;
use crate::job::{MAX_SECRET_BYTES, MAX_SECRETS};
use transducer::{MaskState, Transducer};

const MASK: &str = "***";

/// Bytes of values above which they are prepared on a blocking thread: building the state machine takes longer than
/// about a millisecond then, for which the actors' thread may be occupied.
const BLOCKING_BUILD_BYTES: usize = 8 * 1024;

/// Bytes of a program's network requests above which they are masked on a blocking thread, because masking takes longer
/// than about a millisecond as well.
const BLOCKING_MASK_BYTES: usize = 256 * 1024;

/// The values to be masked.
#[derive(Debug)]
pub(super) struct Secrets {
    transducer: Transducer,
    scanner: Option<Scanner>,
}

/// Finds out quickly that a piece of output contains no value, as most pieces do. The scanner is several times as fast
/// as the transducer, which has to look at every byte.
#[derive(Debug)]
struct Scanner {
    finder: AhoCorasick,
    /// Length of the longest value in bytes.
    longest: usize,
}

impl Scanner {
    /// Returns a scanner for few values. For many values it would not be faster than the transducer.
    fn new(values: &[&[u8]]) -> Option<Self> {
        let bytes: usize = values.iter().map(|value| value.len()).sum();
        if bytes > BLOCKING_BUILD_BYTES {
            return None;
        }
        // The kind that the library chooses for few values takes quadratic time to build.
        let kind = Some(AhoCorasickKind::ContiguousNFA);
        let finder = AhoCorasick::builder().kind(kind).build(values).ok()?;
        let longest = values.iter().map(|value| value.len()).max()?;
        Some(Self { finder, longest })
    }
}

impl Secrets {
    /// Prepares to mask these values; returns `None` if there are none. A large number of values is prepared on a
    /// blocking thread.
    ///
    /// # Errors
    /// [`ExecuteError::Invalid`] if there are more values, or more bytes in them, than a job may have.
    pub(super) async fn prepare(values: &[String]) -> Result<Option<Arc<Self>>, ExecuteError> {
        let bytes: usize = values.iter().map(String::len).sum();
        if values.len() > MAX_SECRETS || bytes > MAX_SECRET_BYTES {
            return Err(ExecuteError::Invalid(format!(
                "options.secrets: {} values of {bytes} bytes, expected at most {MAX_SECRETS} of {MAX_SECRET_BYTES} together",
                values.len()
            )));
        }
        if bytes <= BLOCKING_BUILD_BYTES {
            return Ok(Self::new(values));
        }
        let values = values.to_vec();
        let building = spawn_blocking(move || Self::new(&values)).await;
        building.map_err(|_| ExecuteError::Internal("preparing secrets panicked".to_owned()))
    }

    /// Prepares to mask these values; returns `None` if there are none.
    pub(super) fn new(values: &[String]) -> Option<Arc<Self>> {
        let values = values.iter().map(String::as_bytes);
        let values: Vec<&[u8]> = values.filter(|value| !value.is_empty()).collect();
        if values.is_empty() {
            return None;
        }
        Some(Arc::new(Self {
            scanner: Scanner::new(&values),
            transducer: Transducer::new(values),
        }))
    }

    /// Masks the next bytes of a stream.
    fn mask(&self, mut state: MaskState, bytes: &[u8]) -> (MaskState, Vec<u8>) {
        let mut masked = Vec::with_capacity(bytes.len());
        let mut rest = bytes;
        if let Some(Scanner { finder, longest }) = &self.scanner {
            if state.holds_bytes() {
                // The bytes held back are usually decided within the length of the longest value.
                let (begun, after) = rest.split_at(rest.len().min(*longest));
                state = self.transducer.feed(state, begun, &mut masked);
                rest = after;
            }
            if !state.holds_bytes() && rest.len() >= *longest && !finder.is_match(rest) {
                // Only at the end may a value begin.
                let (plain, end) = rest.split_at(rest.len() + 1 - longest);
                masked.extend_from_slice(plain);
                rest = end;
            }
        }
        state = self.transducer.feed(state, rest, &mut masked);
        (state, masked)
    }

    /// Masks requests that a program made. Long requests are masked on a blocking thread.
    pub(super) async fn mask_requests(
        self: &Arc<Self>,
        mut entries: Vec<NetworkLogEntry>,
    ) -> Vec<NetworkLogEntry> {
        let paths = entries.iter().filter_map(|entry| entry.path.as_ref());
        let bytes: usize = paths.map(String::len).sum();
        let secrets = Arc::clone(self);
        let mask = move || {
            for entry in &mut entries {
                secrets.mask_request(entry);
            }
            entries
        };
        if bytes <= BLOCKING_MASK_BYTES {
            return mask();
        }
        // After a panic no request is shown, because it could contain a secret.
        spawn_blocking(mask).await.unwrap_or_default()
    }

    /// Masks the three texts of a request, which the program chose.
    fn mask_request(&self, entry: &mut NetworkLogEntry) {
        let texts = [
            Some(&mut entry.method),
            Some(&mut entry.host),
            entry.path.as_mut(),
        ];
        for text in texts.into_iter().flatten() {
            *text = self.mask_text(text);
        }
    }

    /// Masks a short text that a program chose.
    pub(super) fn mask_text(&self, text: &str) -> String {
        let (state, mut masked) = self.mask(MaskState::default(), text.as_bytes());
        self.transducer.finish(state, &mut masked);
        // Values are text as well, so characters stay whole.
        String::from_utf8_lossy(&masked).into_owned()
    }
}

/// Masks a stream that arrives in pieces as if it arrived whole: the leftmost values, and the longest of those that
/// begin at the same byte. Only bytes that may be the beginning of a value are held back.
#[derive(Debug)]
pub(super) struct Masker {
    secrets: Option<Arc<Secrets>>,
    state: MaskState,
}

impl Masker {
    pub(super) fn new(secrets: Option<Arc<Secrets>>) -> Self {
        Self {
            secrets,
            state: MaskState::default(),
        }
    }

    /// Adds a piece, and returns the bytes that are decided by now.
    pub(super) fn push(&mut self, bytes: Vec<u8>) -> Vec<u8> {
        let Some(secrets) = &self.secrets else {
            return bytes;
        };
        let masked;
        (self.state, masked) = secrets.mask(self.state, &bytes);
        masked
    }

    /// Returns the bytes that were held back. If the stream was cut, they may be a part of a value and are masked.
    pub(super) fn finish(&mut self, cut: bool) -> Vec<u8> {
        let state = std::mem::take(&mut self.state);
        let mut rest = Vec::new();
        match &self.secrets {
            Some(_) if cut && state.holds_bytes() => rest.extend_from_slice(MASK.as_bytes()),
            Some(secrets) => secrets.transducer.finish(state, &mut rest),
            None => {}
        }
        rest
    }
}

#[cfg(test)]
mod tests;
