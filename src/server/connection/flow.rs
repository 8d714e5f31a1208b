//! Flow control: decides how many bytes of a client may be read now.
//!
//! actix-http reads ahead as far as it can, turns everything that it has read into requests, and answers them regardless
//! of how much of its responses is still unsent. A client that sends requests and reads no responses would fill the
//! server's memory that way. [`Flow`] lets bytes be read only at the pace at which requests are processed.

use std::cell::{Cell, RefCell};
use std::task::Waker;

/// Bytes read per batch if they may be requests: about a hundred small ones, each of which takes 50 times its size in
/// memory.
const HEAD_BATCH: usize = 4 << 10;

/// Bytes read per batch of a body whose length is known, or of a WebSocket's frames.
const BODY_BATCH: usize = 64 << 10;

/// Bytes read per batch of a chunked body, whose end is unknown: requests may follow in the same batch.
const CHUNKED_BATCH: usize = 16 << 10;

/// Bytes of a chunked body that may wait for the handler. More than the 32 KiB that actix-http buffers before it stops
/// reading, less than the 128 KiB at which it polls for more without a pause.
const MAX_CHUNKED_AHEAD: usize = 48 << 10;

/// The body that comes with a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum RequestBody {
    /// No body.
    Empty,
    /// A body of this many bytes.
    Sized(usize),
    /// A chunked body, which ends with its last chunk.
    Chunked,
    /// All further bytes of the connection.
    Upgraded,
}

/// The amount that may be read now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum ReadBudget {
    /// This many bytes, at least one.
    Bytes(usize),
    /// Nothing, until actix-http has processed the current batch: the reader yields once.
    Yield,
    /// Nothing, until [`Flow`] wakes the reader.
    Paused,
}

/// The state of one connection's input and output.
#[derive(Debug, Default)]
pub(super) struct Flow {
    phase: Cell<Phase>,
    /// Number of the current request, or of the last one.
    request: Cell<u64>,
    /// Bytes read in the current batch.
    batch: Cell<usize>,
    /// Bytes read beyond those that are known to belong to the current request.
    ahead: Cell<usize>,
    /// Whether the client accepts no data for now.
    is_blocked: Cell<bool>,
    /// The reader that got [`ReadBudget::Paused`].
    reader: RefCell<Option<Waker>>,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Phase {
    /// No request is being processed; the next bytes are the head of one.
    #[default]
    Head,
    /// A body is being read, and this many bytes of it are still to come.
    Sized(usize),
    Chunked,
    Upgraded,
    /// A request is being processed, and its body, if any, has been read.
    Answer,
}

impl Flow {
    /// Returns how much may be read now.
    pub(super) fn read_budget(&self) -> ReadBudget {
        let phase = self.phase.get();
        if phase == Phase::Head {
            self.ahead.set(0);
        }
        let ahead = self.ahead.get();
        let (piece, most) = match phase {
            // The response of a request that is read now would add to those that are unsent.
            Phase::Head | Phase::Answer if self.is_blocked.get() => (0, 0),
            Phase::Head => (HEAD_BATCH, HEAD_BATCH),
            Phase::Answer => (HEAD_BATCH, HEAD_BATCH.saturating_sub(ahead)),
            Phase::Sized(left) => (
                BODY_BATCH,
                left.saturating_add(HEAD_BATCH.saturating_sub(ahead)),
            ),
            Phase::Chunked => (CHUNKED_BATCH, MAX_CHUNKED_AHEAD.saturating_sub(ahead)),
            Phase::Upgraded => (BODY_BATCH, BODY_BATCH),
        };
        match piece.saturating_sub(self.batch.get()) {
            _ if most == 0 => ReadBudget::Paused,
            0 => ReadBudget::Yield,
            rest => ReadBudget::Bytes(rest.min(most)),
        }
    }

    /// Notes that this many bytes were read.
    pub(super) fn read(&self, bytes: usize) {
        self.batch.set(self.batch.get() + bytes);
        let beyond = match self.phase.get() {
            Phase::Sized(left) => {
                self.phase.set(Phase::Sized(left.saturating_sub(bytes)));
                bytes.saturating_sub(left)
            }
            Phase::Head | Phase::Chunked | Phase::Upgraded | Phase::Answer => bytes,
        };
        self.ahead.set(self.ahead.get() + beyond);
    }

    /// Ends the batch: actix-http processes the bytes of it before it reads more.
    pub(super) fn end_batch(&self) {
        self.batch.set(0);
    }

    /// Stores the waker of a reader that got [`ReadBudget::Paused`].
    pub(super) fn wait(&self, reader: &Waker) {
        self.end_batch();
        self.reader.replace(Some(reader.clone()));
    }

    /// Whether the next bytes belong to the head of a request.
    pub(super) fn is_in_head(&self) -> bool {
        self.phase.get() == Phase::Head
    }

    /// Whether the client accepts no data for now.
    pub(super) fn is_blocked(&self) -> bool {
        self.is_blocked.get()
    }

    pub(super) fn set_blocked(&self, is_blocked: bool) {
        if self.is_blocked.replace(is_blocked) && !is_blocked {
            self.resume();
        }
    }

    /// Starts a request, and returns its number.
    pub(super) fn begin(&self, body: RequestBody) -> u64 {
        self.phase.set(match body {
            RequestBody::Empty => Phase::Answer,
            RequestBody::Sized(length) => Phase::Sized(length),
            RequestBody::Chunked => Phase::Chunked,
            RequestBody::Upgraded => Phase::Upgraded,
        });
        let request = self.request.get() + 1;
        self.request.set(request);
        request
    }

    /// Notes that the handler took a piece of a request's body.
    pub(super) fn take_body(&self, request: u64) {
        if self.request.get() == request && self.phase.get() == Phase::Chunked {
            self.ahead.set(0);
            self.resume();
        }
    }

    /// Notes that the body of a request was read, or that the handler wants no more of it.
    pub(super) fn end_body(&self, request: u64) {
        if self.request.get() == request && self.phase.get() != Phase::Head {
            self.phase.set(Phase::Answer);
        }
    }

    /// Ends a request: its response is in the buffer of the connection.
    pub(super) fn finish(&self, request: u64) {
        if self.request.get() == request {
            self.phase.set(Phase::Head);
            self.resume();
        }
    }

    fn resume(&self) {
        if let Some(reader) = self.reader.take() {
            reader.wake();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::task::Wake;

    use super::*;

    #[derive(Default)]
    struct Wakes(AtomicUsize);

    impl Wake for Wakes {
        fn wake(self: Arc<Self>) {
            self.0.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Reads, batch by batch, until the reader is paused or `most` bytes were read. Returns the number of bytes.
    fn flood(flow: &Flow, reader: &Waker, most: usize) -> usize {
        let mut total = 0;
        while total < most {
            match flow.read_budget() {
                ReadBudget::Bytes(bytes) => {
                    flow.read(bytes);
                    total += bytes;
                }
                ReadBudget::Yield => flow.end_batch(),
                ReadBudget::Paused => {
                    flow.wait(reader);
                    break;
                }
            }
        }
        total
    }

    #[test]
    fn a_batch_is_bounded_and_heads_may_be_of_any_size() {
        let flow = Flow::default();
        assert_eq!(flow.read_budget(), ReadBudget::Bytes(HEAD_BATCH));
        flow.read(HEAD_BATCH);
        assert_eq!(flow.read_budget(), ReadBudget::Yield);
        assert_eq!(flood(&flow, Waker::noop(), 1 << 20), 1 << 20);
    }

    #[test]
    fn little_is_read_ahead_of_an_answer_however_many_wait() {
        let wakes = Arc::new(Wakes::default());
        let reader = Waker::from(Arc::clone(&wakes));
        let flow = Flow::default();
        let mut total = 0;
        for request in 1..=100 {
            assert_eq!(flow.begin(RequestBody::Empty), request);
            total += flood(&flow, &reader, usize::MAX);
            // The next request has been read ahead already.
            flow.finish(request);
        }
        assert_eq!(total, HEAD_BATCH);
        assert_eq!(wakes.0.load(Ordering::Relaxed), 100);
        assert!(matches!(flow.read_budget(), ReadBudget::Bytes(_)));
    }

    #[test]
    fn nothing_is_read_while_answers_cannot_be_sent() {
        let wakes = Arc::new(Wakes::default());
        let reader = Waker::from(Arc::clone(&wakes));
        let flow = Flow::default();
        flow.set_blocked(true);
        assert_eq!(flood(&flow, &reader, usize::MAX), 0);
        flow.set_blocked(false);
        assert_eq!(wakes.0.load(Ordering::Relaxed), 1);
        assert!(matches!(flow.read_budget(), ReadBudget::Bytes(_)));
    }

    #[test]
    fn a_body_is_read_to_its_end_and_little_beyond() {
        for blocked in [false, true] {
            let flow = Flow::default();
            let request = flow.begin(RequestBody::Sized(1 << 20));
            flow.set_blocked(blocked);
            let read = flood(&flow, Waker::noop(), usize::MAX);
            assert_eq!(read, (1 << 20) + HEAD_BATCH);
            flow.end_body(request);
            assert_eq!(flood(&flow, Waker::noop(), usize::MAX), 0);
        }
    }

    #[test]
    fn a_chunked_body_is_read_as_it_is_taken() {
        let flow = Flow::default();
        let request = flow.begin(RequestBody::Chunked);
        for _ in 0..10 {
            assert_eq!(flood(&flow, Waker::noop(), usize::MAX), MAX_CHUNKED_AHEAD);
            flow.take_body(request);
        }
        flow.end_body(request);
        assert_eq!(flood(&flow, Waker::noop(), usize::MAX), HEAD_BATCH);
    }

    #[test]
    fn a_body_that_outlives_its_request_changes_nothing_for_the_next() {
        let flow = Flow::default();
        let first = flow.begin(RequestBody::Upgraded);
        assert_eq!(flood(&flow, Waker::noop(), 1 << 20), 1 << 20);
        flow.finish(first);
        flow.end_body(first);
        assert!(flow.is_in_head());
        flow.begin(RequestBody::Sized(10));
        flow.end_body(first);
        flow.finish(first);
        assert_eq!(flow.phase.get(), Phase::Sized(10));
    }
}
