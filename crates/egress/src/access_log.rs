//! The log of a run: what it asked for.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::time::Instant;

use crate::{Action, Entry};

/// How much of a path is kept, in characters.
const MAX_PATH_CHARS: usize = 1024;

/// The same of a method, which a client may invent.
const MAX_METHOD_CHARS: usize = 32;

/// The first requests of a run.
#[derive(Debug)]
pub(crate) struct AccessLog {
    /// Most that are kept.
    limit: usize,
    /// Nothing waits while it is locked.
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
    /// Keeps so many entries; none without a log.
    pub(crate) fn new(limit: usize) -> Arc<Self> {
        Arc::new(Self {
            limit,
            entries: Mutex::default(),
        })
    }

    /// Writes down a request that is let through, unless the rules say otherwise.
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

    /// Returns the entries so far; a request that is not over has lasted until now.
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
        // No panic leaves an entry half written.
        self.entries.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A request until it is over: until this is dropped.
#[derive(Debug)]
pub(crate) struct OpenEntry {
    log: Arc<AccessLog>,
    /// Index of its entry; beyond the end if the log is full.
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
