//! Requests that a client sends again get the first one's result.
//!
//! With an `Idempotency-Key`, a request runs once per tenant and key: a client that sends it again, also while it runs,
//! gets the same result. The run goes on if its client goes away, because the next try will ask for it. Errors are not
//! kept: a request that failed may be tried again.

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

/// Longest key.
pub const LONGEST_KEY: usize = 255;

/// Bytes of results that are kept, all tenants' together; the oldest go first.
const MOST_BYTES: usize = 64 << 20;

/// Bytes that an entry takes beside its result.
const ENTRY_BYTES: usize = 1024;

type Outcome = Result<Arc<ExecutionResult>, ApiError>;

/// A checked key, and what it was sent with.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct IdempotencyKey {
    text: String,
    body: [u8; 32],
}

impl IdempotencyKey {
    /// Returns the text of the key that a request was sent with, if it has one.
    ///
    /// # Errors
    /// 400 if the text is not a valid key.
    pub fn given(headers: &HeaderMap) -> Result<Option<String>, ApiError> {
        let Some(header) = headers.get(IDEMPOTENCY_KEY) else {
            return Ok(None);
        };
        let bytes = header.as_bytes();
        if !(1..=LONGEST_KEY).contains(&bytes.len()) || !bytes.iter().all(u8::is_ascii_graphic) {
            let text =
                format!("Idempotency-Key: expected 1 to {LONGEST_KEY} visible ASCII characters");
            return Err(ApiError::new(ErrorCode::InvalidRequest, text));
        }
        Ok(Some(String::from_utf8_lossy(bytes).into_owned()))
    }

    /// Returns the key of this text, sent with this body. The body is hashed, which takes time if it is large.
    #[must_use]
    pub fn new(text: String, body: &[u8]) -> Self {
        Self {
            text,
            body: Sha256::digest(body).into(),
        }
    }
}

/// The results that are kept. Clones share them.
#[derive(Clone, Debug, Default)]
pub struct Results {
    kept: Arc<Mutex<Kept>>,
}

type Id = (TenantId, String);

/// The entries by their keys, in the order in which they ended as well, so that what goes next is found at
/// once however many there are.
#[derive(Debug, Default)]
struct Kept {
    entries: HashMap<Id, Entry>,
    /// Keys of the entries that have ended, the oldest first.
    ended: VecDeque<(Instant, Id)>,
    /// Bytes of those that have ended.
    bytes: usize,
}

#[derive(Debug)]
struct Entry {
    body: [u8; 32],
    /// Bytes of the result; `None` while the run goes on.
    bytes: Option<usize>,
    outcome: watch::Receiver<Option<Outcome>>,
}

impl Results {
    /// Returns the result of the first request with this key: waits for it if it runs, and runs it if there is no
    /// result younger than `keep`.
    ///
    /// # Errors
    /// 400 where the key was used with another body; else the run's own.
    pub async fn once(
        &self,
        tenant: TenantId,
        key: IdempotencyKey,
        keep: Duration,
        run: impl Future<Output = Result<ExecutionResult, ApiError>> + 'static,
    ) -> Result<ExecutionResult, ApiError> {
        let id = (tenant, key.text.clone());
        let mut outcome = self.find_or_begin(id, &key, keep, run)?;
        let ended = outcome.wait_for(Option::is_some).await;
        match ended.ok().and_then(|outcome| outcome.clone()) {
            Some(Ok(result)) => Ok(ExecutionResult::clone(&result)),
            Some(Err(error)) => Err(error),
            None => Err(ApiError::new(ErrorCode::Internal, "the run was lost")),
        }
    }

    fn find_or_begin(
        &self,
        id: Id,
        key: &IdempotencyKey,
        keep: Duration,
        run: impl Future<Output = Result<ExecutionResult, ApiError>> + 'static,
    ) -> Result<watch::Receiver<Option<Outcome>>, ApiError> {
        let mut kept = self.lock();
        kept.forget(|ended, _| ended.elapsed() >= keep);
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
        // Not the request's own future, which ends with its client.
        actix_web::rt::spawn(async move {
            let done = AssertUnwindSafe(run).catch_unwind().await;
            let lost = |_| Err(ApiError::new(ErrorCode::Internal, "the run was lost"));
            let done = done.unwrap_or_else(lost).map(Arc::new);
            results.note_end(id, &done);
            sender.send_replace(Some(done));
        });
        Ok(outcome)
    }

    fn note_end(&self, id: Id, done: &Outcome) {
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
        kept.forget(|_, bytes| bytes > MOST_BYTES);
    }

    fn lock(&self) -> MutexGuard<'_, Kept> {
        // Only whole operations of the map happen under the lock: a panic leaves none half done.
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Kept {
    /// Forgets the oldest that have ended for as long as this says so of the time of its end, and of the bytes
    /// of all.
    fn forget(&mut self, is_too_much: impl Fn(&Instant, usize) -> bool) {
        while let Some((ended, id)) = self.ended.front()
            && is_too_much(ended, self.bytes)
        {
            let entry = self.entries.remove(id);
            self.bytes -= entry.and_then(|entry| entry.bytes).unwrap_or_default();
            self.ended.pop_front();
        }
    }
}

/// The bytes of a result as it is sent: what it takes in memory is about the same, whichever members it has.
fn bytes_of(result: &ExecutionResult) -> usize {
    let mut counter = Counter(0);
    // Numbers, texts and names: nothing that JSON does not know, and counting takes everything.
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
