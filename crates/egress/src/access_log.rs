//! The log of a run: what it asked for.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::time::Instant;

use crate::{Action, Entry};

/// How much of a path is kept, in characters.
const LONGEST_PATH: usize = 1024;

/// The same of a method, which a client may invent.
const LONGEST_METHOD: usize = 32;

/// The first requests of a run.
#[derive(Debug)]
pub(crate) struct Record {
    /// Most that are kept.
    limit: usize,
    /// Nothing waits while it is locked.
    entries: Mutex<Vec<Recorded>>,
}

#[derive(Debug)]
struct Recorded {
    entry: Entry,
    begun: Instant,
    open: bool,
}

impl Recorded {
    fn duration_ms(&self) -> f64 {
        self.begun.elapsed().as_secs_f64() * 1e3
    }
}

impl Record {
    /// Keeps so many entries; none without a log.
    pub(crate) fn new(limit: usize) -> Arc<Self> {
        Arc::new(Self {
            limit,
            entries: Mutex::default(),
        })
    }

    /// Writes down a request that is let through, unless the rules say otherwise.
    pub(crate) fn begin(self: &Arc<Self>, method: &str, host: String, path: Option<&str>) -> Open {
        let mut entries = self.lock();
        let index = entries.len();
        if index < self.limit {
            entries.push(Recorded {
                entry: Entry {
                    timestamp: format!("{:.3}", jiff::Timestamp::now()),
                    method: method.chars().take(LONGEST_METHOD).collect(),
                    host,
                    path: path.map(|path| path.chars().take(LONGEST_PATH).collect()),
                    action: Action::Allow,
                    duration_ms: 0.0,
                },
                begun: Instant::now(),
                open: true,
            });
        }
        Open {
            record: Arc::clone(self),
            index,
        }
    }

    /// Returns the entries so far; a request that is not over has lasted until now.
    pub(crate) fn entries(&self) -> Vec<Entry> {
        let entries = self.lock();
        let shown = entries.iter().map(|recorded| {
            let mut entry = recorded.entry.clone();
            if recorded.open {
                entry.duration_ms = recorded.duration_ms();
            }
            entry
        });
        shown.collect()
    }

    fn lock(&self) -> MutexGuard<'_, Vec<Recorded>> {
        // No panic leaves an entry half written.
        self.entries.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A request until it is over: until this is dropped.
#[derive(Debug)]
pub(crate) struct Open {
    record: Arc<Record>,
    /// Index of its entry; beyond the end if the log is full.
    index: usize,
}

impl Open {
    pub(crate) fn block(&self) {
        if let Some(recorded) = self.record.lock().get_mut(self.index) {
            recorded.entry.action = Action::Block;
        }
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        if let Some(recorded) = self.record.lock().get_mut(self.index) {
            recorded.entry.duration_ms = recorded.duration_ms();
            recorded.open = false;
        }
    }
}
