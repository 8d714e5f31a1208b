//! Idempotency: a repeated request gets the result of the first one.
//!
//! A request with an `Idempotency-Key` runs once per tenant and key. A client that repeats the request, even during the
//! run, gets the same result. The run goes on if its client disconnects, because the client may repeat the request for
//! its result. Errors are not kept: a request that failed may be tried again.
//!
//! The store is a map and a queue rather than a cache of `moka`, for these reasons:
//!
//! - An entry whose run has not ended must never be dropped, or a repeated request would run twice. A cache may drop any
//!   entry, and its entries in the making cannot be looked up, so a second body for a key would be refused only after
//!   the first run. A map of the runs beside the cache would be needed.
//! - `keep` comes with each request, because its configuration can be reloaded. A cache has one time to live.
//! - The bytes are counted at once. A cache counts them in later maintenance.
//! - The tests pause tokio's clock, which a cache does not read.

use std::collections::{HashMap, VecDeque};
use std::io;
use std::panic::AssertUnwindSafe;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use actix_web::http::header::{HeaderMap, HeaderName};
use futures::FutureExt as _;
use isol8_api::{ErrorCode, ExecutionResult, TenantId};
use sha2::{Digest as _, Sha256};
use tokio::sync::watch;
use tokio::time::Instant;

use super::error::ApiError;

/// The header that holds the key.
pub const IDEMPOTENCY_KEY: HeaderName = HeaderName::from_static("idempotency-key");

/// Longest key in bytes.
pub const MAX_KEY_LENGTH: usize = 255;

/// Most bytes of results that are kept for all tenants together. The oldest results are dropped first.
const MAX_BYTES: usize = 64 << 20;

/// Bytes that an entry takes in addition to its result.
const ENTRY_BYTES: usize = 1024;

type Outcome = Result<Arc<ExecutionResult>, ApiError>;

/// A valid key, and the hash of the body that it was sent with.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct IdempotencyKey {
    text: String,
    body: [u8; 32],
}

impl IdempotencyKey {
    /// Returns the key's text from the headers of a request, if they hold a key.
    ///
    /// # Errors
    /// 400 if the header is not a valid key.
    pub fn given(headers: &HeaderMap) -> Result<Option<String>, ApiError> {
        let Some(header) = headers.get(IDEMPOTENCY_KEY) else {
            return Ok(None);
        };
        let bytes = header.as_bytes();
        if !(1..=MAX_KEY_LENGTH).contains(&bytes.len()) || !bytes.iter().all(u8::is_ascii_graphic) {
            let text =
                format!("Idempotency-Key: expected 1 to {MAX_KEY_LENGTH} visible ASCII characters");
            return Err(ApiError::new(ErrorCode::InvalidRequest, text));
        }
        Ok(Some(String::from_utf8_lossy(bytes).into_owned()))
    }

    /// Makes a key of its text and the request's body. The body is hashed, which takes time if it is large.
    #[must_use]
    pub fn new(text: String, body: &[u8]) -> Self {
        Self {
            text,
            body: Sha256::digest(body).into(),
        }
    }
}

/// The results of earlier requests. Clones share them.
#[derive(Clone, Debug, Default)]
pub struct ResultStore {
    kept: Arc<Mutex<ResultEntries>>,
}

type Id = (TenantId, String);

/// The entries by their keys, and the keys in the order in which the runs ended, so that the next one to drop is found
/// in constant time.
#[derive(Debug, Default)]
struct ResultEntries {
    entries: HashMap<Id, Entry>,
    /// End time and key of each entry whose run has ended, the oldest first.
    ended: VecDeque<(Instant, Id)>,
    /// Bytes of all entries whose runs have ended.
    bytes: usize,
}

#[derive(Debug)]
struct Entry {
    body: [u8; 32],
    /// Bytes of the result; `None` during the run.
    bytes: Option<usize>,
    outcome: watch::Receiver<Option<Outcome>>,
}

impl ResultStore {
    /// Returns the result of the first request with this key. Waits for its run if the run has not ended, and starts
    /// `run` if there is no such request, or its result is older than `keep`.
    ///
    /// # Errors
    /// 400 if the key was used with another body; otherwise the errors of the run.
    pub async fn run_once(
        &self,
        tenant: TenantId,
        key: IdempotencyKey,
        keep: Duration,
        run: impl Future<Output = Result<ExecutionResult, ApiError>> + 'static,
    ) -> Result<ExecutionResult, ApiError> {
        let id = (tenant, key.text.clone());
        let mut outcome = self.find_or_start(id, &key, keep, run)?;
        let ended = outcome.wait_for(Option::is_some).await;
        match ended.ok().and_then(|outcome| outcome.clone()) {
            Some(Ok(result)) => Ok(ExecutionResult::clone(&result)),
            Some(Err(error)) => Err(error),
            None => Err(ApiError::new(ErrorCode::Internal, "the run was lost")),
        }
    }

    fn find_or_start(
        &self,
        id: Id,
        key: &IdempotencyKey,
        keep: Duration,
        run: impl Future<Output = Result<ExecutionResult, ApiError>> + 'static,
    ) -> Result<watch::Receiver<Option<Outcome>>, ApiError> {
        let mut kept = self.lock();
        kept.evict_while(|ended, _| ended.elapsed() >= keep);
        if let Some(entry) = kept.entries.get(&id) {
            if entry.body != key.body {
                let text = format!("Idempotency-Key: {:?} was used with another body", key.text);
                return Err(ApiError::new(ErrorCode::InvalidRequest, text));
            }
            return Ok(entry.outcome.clone());
        }
        let (sender, outcome) = watch::channel(None);
        let entry = Entry {
            body: key.body,
            bytes: None,
            outcome: outcome.clone(),
        };
        kept.entries.insert(id.clone(), entry);
        let results = self.clone();
        // The run is a task of its own, because the request's future is dropped when its client disconnects.
        actix_web::rt::spawn(async move {
            let done = AssertUnwindSafe(run).catch_unwind().await;
            let lost = |_| Err(ApiError::new(ErrorCode::Internal, "the run was lost"));
            let done = done.unwrap_or_else(lost).map(Arc::new);
            results.on_ended(id, &done);
            sender.send_replace(Some(done));
        });
        Ok(outcome)
    }

    fn on_ended(&self, id: Id, done: &Outcome) {
        let bytes = done.as_ref().map(|result| ENTRY_BYTES + bytes_of(result));
        let mut kept = self.lock();
        let kept = &mut *kept;
        match (bytes, kept.entries.get_mut(&id)) {
            (Ok(bytes), Some(entry)) => {
                entry.bytes = Some(bytes);
                kept.bytes += bytes;
                kept.ended.push_back((Instant::now(), id));
            }
            _ => drop(kept.entries.remove(&id)),
        }
        kept.evict_while(|_, bytes| bytes > MAX_BYTES);
    }

    fn lock(&self) -> MutexGuard<'_, ResultEntries> {
        // Under the lock, only complete operations of the map happen, so a panic leaves no half-finished change.
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl ResultEntries {
    /// Drops the oldest ended entries while the condition holds for the end time of the oldest and the bytes of all.
    fn evict_while(&mut self, condition: impl Fn(&Instant, usize) -> bool) {
        while let Some((ended, id)) = self.ended.front()
            && condition(ended, self.bytes)
        {
            let entry = self.entries.remove(id);
            self.bytes -= entry.and_then(|entry| entry.bytes).unwrap_or_default();
            self.ended.pop_front();
        }
    }
}

/// Returns the length of a result in JSON, which is about its size in memory, whichever members it has.
fn bytes_of(result: &ExecutionResult) -> usize {
    let mut counter = Counter(0);
    // A result consists of numbers, texts and fixed names, which JSON can always express, and counting cannot fail.
    let counted = serde_json::to_writer(&mut counter, result);
    if let Err(error) = counted {
        log::error!(error:%; "result cannot be written as JSON");
    }
    counter.0
}

/// Counts the bytes that are written to it.
struct Counter(usize);

impl io::Write for Counter {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0 += bytes.len();
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests;
