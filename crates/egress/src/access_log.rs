//! The access log of a run: its requests for hosts.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::time::Instant;

use crate::{Action, Entry};

/// Maximum length of a logged path in characters; the rest is cut off.
const MAX_PATH_CHARS: usize = 1024;

/// Maximum length of a logged method in characters. A client may invent methods.
const MAX_METHOD_CHARS: usize = 32;

/// The first requests of a run, up to a limit.
#[derive(Debug)]
pub(crate) struct AccessLog {
    /// Maximum number of entries.
    limit: usize,
    /// Never locked across an `await`.
    entries: Mutex<Vec<LoggedRequest>>,
}

#[derive(Debug)]
struct LoggedRequest {
    entry: Entry,
    started: Instant,
    is_open: bool,
}

impl LoggedRequest {
    fn duration_ms(&self) -> f64 {
        self.started.elapsed().as_secs_f64() * 1e3
    }
}

impl AccessLog {
    /// Creates a log with so many entries at most; 0 if the run has no log.
    pub(crate) fn new(limit: usize) -> Arc<Self> {
        Arc::new(Self {
            limit,
            entries: Mutex::default(),
        })
    }

    /// Adds a request, as allowed until [`OpenEntry::block`] says otherwise.
    pub(crate) fn begin(
        self: &Arc<Self>,
        method: &str,
        host: String,
        path: Option<&str>,
    ) -> OpenEntry {
        let mut entries = self.lock();
        let index = entries.len();
        if index < self.limit {
            entries.push(LoggedRequest {
                entry: Entry {
                    timestamp: format!("{:.3}", jiff::Timestamp::now()),
                    method: method.chars().take(MAX_METHOD_CHARS).collect(),
                    host,
                    path: path.map(|path| path.chars().take(MAX_PATH_CHARS).collect()),
                    action: Action::Allow,
                    duration_ms: 0.0,
                },
                started: Instant::now(),
                is_open: true,
            });
        }
        OpenEntry {
            log: Arc::clone(self),
            index,
        }
    }

    /// Returns the entries so far. The duration of a request that is not over lasts until now.
    pub(crate) fn entries(&self) -> Vec<Entry> {
        let entries = self.lock();
        let shown = entries.iter().map(|logged| {
            let mut entry = logged.entry.clone();
            if logged.is_open {
                entry.duration_ms = logged.duration_ms();
            }
            entry
        });
        shown.collect()
    }

    fn lock(&self) -> MutexGuard<'_, Vec<LoggedRequest>> {
        // A panic leaves no entry half written.
        self.entries.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The entry of a request that is not over. Dropping it ends the entry's duration.
#[derive(Debug)]
pub(crate) struct OpenEntry {
    log: Arc<AccessLog>,
    /// Index of the entry; beyond the end if the log is full.
    index: usize,
}

impl OpenEntry {
    pub(crate) fn block(&self) {
        if let Some(logged) = self.log.lock().get_mut(self.index) {
            logged.entry.action = Action::Block;
        }
    }
}

impl Drop for OpenEntry {
    fn drop(&mut self) {
        if let Some(logged) = self.log.lock().get_mut(self.index) {
            logged.entry.duration_ms = logged.duration_ms();
            logged.is_open = false;
        }
    }
}
