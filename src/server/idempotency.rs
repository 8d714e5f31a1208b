//! Requests that a client sends again get the first one's result.
//!
//! With an `Idempotency-Key`, a request runs once per tenant and key: whoever sends it again, also while
//! it runs, gets the same result. The run goes on where its client goes away, because the next try will
//! ask for it. Errors are not kept: what failed may be tried again.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use actix_web::http::header::{HeaderMap, HeaderName};
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

/// What an entry takes beside its result.
const ENTRY_BYTES: usize = 1024;

type Outcome = Result<Arc<ExecutionResult>, ApiError>;

/// A checked key, and what it was sent with.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct IdempotencyKey {
    text: String,
    body: [u8; 32],
}

impl IdempotencyKey {
    /// The key that a request was sent with, where there is one.
    ///
    /// # Errors
    /// 400 where it is none.
    pub fn read(headers: &HeaderMap, body: &[u8]) -> Result<Option<Self>, ApiError> {
        let Some(header) = headers.get(IDEMPOTENCY_KEY) else {
            return Ok(None);
        };
        let bytes = header.as_bytes();
        if !(1..=LONGEST_KEY).contains(&bytes.len()) || !bytes.iter().all(u8::is_ascii_graphic) {
            let text =
                format!("Idempotency-Key: expected 1 to {LONGEST_KEY} visible ASCII characters");
            return Err(ApiError::new(ErrorCode::InvalidRequest, text));
        }
        Ok(Some(Self {
            text: String::from_utf8_lossy(bytes).into_owned(),
            body: Sha256::digest(body).into(),
        }))
    }
}

/// The results that are kept. Clones share them.
#[derive(Clone, Debug, Default)]
pub struct Results {
    kept: Arc<Mutex<HashMap<(TenantId, String), Entry>>>,
}

#[derive(Debug)]
struct Entry {
    body: [u8; 32],
    since: Instant,
    bytes: usize,
    outcome: watch::Receiver<Option<Outcome>>,
}

impl Results {
    /// The result of the first request with this key: waits for it where it runs, and runs it where there
    /// is none that is younger than `keep`.
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
        id: (TenantId, String),
        key: &IdempotencyKey,
        keep: Duration,
        run: impl Future<Output = Result<ExecutionResult, ApiError>> + 'static,
    ) -> Result<watch::Receiver<Option<Outcome>>, ApiError> {
        let mut kept = self.lock();
        kept.retain(|_, entry| entry.is_running() || entry.since.elapsed() < keep);
        if let Some(entry) = kept.get(&id) {
            if entry.body != key.body {
                let text = format!("Idempotency-Key: {:?} was used with another body", key.text);
                return Err(ApiError::new(ErrorCode::InvalidRequest, text));
            }
            return Ok(entry.outcome.clone());
        }
        let (sender, outcome) = watch::channel(None);
        let entry = Entry {
            body: key.body,
            since: Instant::now(),
            bytes: ENTRY_BYTES,
            outcome: outcome.clone(),
        };
        kept.insert(id.clone(), entry);
        let results = self.clone();
        // Not the request's own future, which ends with its client.
        actix_web::rt::spawn(async move {
            let done = run.await.map(Arc::new);
            results.note_end(&id, &done);
            sender.send_replace(Some(done));
        });
        Ok(outcome)
    }

    fn note_end(&self, id: &(TenantId, String), done: &Outcome) {
        let mut kept = self.lock();
        match (done, kept.get_mut(id)) {
            (Ok(result), Some(entry)) => {
                entry.since = Instant::now();
                entry.bytes += bytes_of(result);
            }
            _ => drop(kept.remove(id)),
        }
        let mut bytes: usize = kept.values().map(|entry| entry.bytes).sum();
        while bytes > MOST_BYTES {
            let ended = kept.iter().filter(|(_, entry)| !entry.is_running());
            let oldest = ended.min_by_key(|(_, entry)| entry.since);
            let Some(oldest) = oldest.map(|(id, _)| id.clone()) else {
                return;
            };
            bytes -= kept.remove(&oldest).map_or(0, |entry| entry.bytes);
        }
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<(TenantId, String), Entry>> {
        // Only whole operations of the map happen under the lock: a panic leaves none half done.
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Entry {
    fn is_running(&self) -> bool {
        // One that panicked has let go of it.
        self.outcome.has_changed().is_ok() && self.outcome.borrow().is_none()
    }
}

fn bytes_of(result: &ExecutionResult) -> usize {
    let files = result.files.iter().flatten();
    let files: usize = files
        .map(|(path, content)| path.len() + content.len())
        .sum();
    result.stdout.len() + result.stderr.len() + files
}
