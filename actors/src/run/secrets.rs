//! Secret values, which may not be seen in the output of a run.

mod transducer;

use std::sync::Arc;

use aho_corasick::{AhoCorasick, AhoCorasickKind};
use isol8_api::NetworkLogEntry;
use tokio::task::spawn_blocking;

use crate::error::ExecuteError;
use crate::job::{MAX_SECRET_BYTES, MAX_SECRETS};
use transducer::{State, Transducer};

const MASK: &str = "***";

/// Bytes of values beyond which building the machine for them takes longer than the actors' thread may be
/// occupied, which is about a millisecond.
const BUILT_ASIDE: usize = 8 * 1024;

/// Bytes of what a program asked the network for, beyond which masking it takes that long as well.
const MASKED_ASIDE: usize = 256 * 1024;

/// The values to be masked.
#[derive(Debug)]
pub(super) struct Secrets {
    transducer: Transducer,
    scanner: Option<Scanner>,
}

/// Tells at once of most output that no value is in it: several times as fast as the transducer, which has to
/// look at every byte.
#[derive(Debug)]
struct Scanner {
    finder: AhoCorasick,
    /// Bytes of the longest value.
    longest: usize,
}

impl Scanner {
    /// A scanner for few values: for many, it would be no faster.
    fn new(values: &[&[u8]]) -> Option<Self> {
        let bytes: usize = values.iter().map(|value| value.len()).sum();
        if bytes > BUILT_ASIDE {
            return None;
        }
        // The kind that is chosen for few values otherwise takes quadratic time to build.
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
        if bytes <= BUILT_ASIDE {
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
    fn mask(&self, mut state: State, bytes: &[u8]) -> (State, Vec<u8>) {
        let mut masked = Vec::with_capacity(bytes.len());
        let mut rest = bytes;
        if let Some(Scanner { finder, longest }) = &self.scanner {
            if state.holds_something() {
                // The bytes held back are mostly decided after as many as the longest value has.
                let (begun, after) = rest.split_at(rest.len().min(*longest));
                state = self.transducer.feed(state, begun, &mut masked);
                rest = after;
            }
            if !state.holds_something() && rest.len() >= *longest && !finder.is_match(rest) {
                // Only the end matters: a value may begin there.
                let (plain, end) = rest.split_at(rest.len() + 1 - longest);
                masked.extend_from_slice(plain);
                rest = end;
            }
        }
        state = self.transducer.feed(state, rest, &mut masked);
        (state, masked)
    }

    /// Masks requests that a program made, on a thread of their own where they are long.
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
        if bytes <= MASKED_ASIDE {
            return mask();
        }
        // Without an answer nothing is shown, rather than a secret.
        spawn_blocking(mask).await.unwrap_or_default()
    }

    /// Masks a request that a program made: it chose all three texts.
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
        let (state, mut masked) = self.mask(State::default(), text.as_bytes());
        self.transducer.finish(state, &mut masked);
        // Values are text as well, so characters stay whole.
        String::from_utf8_lossy(&masked).into_owned()
    }
}

/// Masks a stream that comes in pieces as if it came whole: the leftmost values, and the longest of those that begin at
/// the same byte. Only bytes that may be the beginning of a value are held back.
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
        let masked;
        (self.state, masked) = secrets.mask(self.state, &bytes);
        masked
    }

    /// Returns the bytes that were held back. If the stream was cut, they may be a part of a value and are masked.
    pub(super) fn finish(&mut self, cut: bool) -> Vec<u8> {
        let state = std::mem::take(&mut self.state);
        let mut rest = Vec::new();
        match &self.secrets {
            Some(_) if cut && state.holds_something() => rest.extend_from_slice(MASK.as_bytes()),
            Some(secrets) => secrets.transducer.finish(state, &mut rest),
            None => {}
        }
        rest
    }
}

#[cfg(test)]
mod tests;
