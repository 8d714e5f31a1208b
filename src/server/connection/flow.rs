//! How much of a client's bytes may be read now.
//!
//! actix-http reads ahead as far as it can, makes a request of everything that it has read, and answers requests
//! without looking at how much of the answers is still unsent. A client that sends requests and reads nothing would
//! so fill the server's memory. [`Flow`] hands out bytes in the measure in which they are worked off.

use std::cell::{Cell, RefCell};
use std::task::Waker;

/// Bytes read at a time where they may be requests: a hundred small ones, each of which costs 50 times its size.
const HEAD_PIECE: usize = 4 << 10;

/// Bytes read at a time where they are a body, or frames of a WebSocket.
const BODY_PIECE: usize = 64 << 10;

/// As [`BODY_PIECE`], for a body whose end is not known: requests may follow in the same piece.
const CHUNKED_PIECE: usize = 16 << 10;

/// Bytes of such a body that may wait for its reader. More than the 32 KiB that actix-http gathers before it waits,
/// less than the 128 KiB at which it asks for more without a pause.
const CHUNKED_AHEAD: usize = 48 << 10;

/// The body that comes with a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum RequestBody {
    /// None.
    Empty,
    /// As many bytes.
    Sized(usize),
    /// Chunks, up to the last.
    Chunked,
    /// Everything that follows on the connection.
    Upgraded,
}

/// How much may be read now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Room {
    /// So many bytes, at least one.
    Bytes(usize),
    /// Nothing before what was read has been looked at.
    NextTurn,
    /// Nothing before [`Flow`] wakes the reader.
    Later,
}

/// The state of one connection's input and output.
#[derive(Debug, Default)]
pub(super) struct Flow {
    phase: Cell<Phase>,
    /// Number of the request that is answered, or was last.
    request: Cell<u64>,
    /// Bytes read in this turn of the reader.
    turn: Cell<usize>,
    /// Bytes read beyond what the current request is known to need.
    ahead: Cell<usize>,
    /// The client takes nothing of what is to be sent.
    is_blocked: Cell<bool>,
    /// The reader that was told [`Room::Later`].
    reader: RefCell<Option<Waker>>,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Phase {
    /// No request is answered; what arrives is the head of the next one.
    #[default]
    Head,
    /// A body is read, of which so many bytes have not arrived.
    Sized(usize),
    Chunked,
    Upgraded,
    /// A request is being answered whose body, if it has one, was read.
    Answer,
}

impl Flow {
    /// How much may be read now.
    pub(super) fn room(&self) -> Room {
        let phase = self.phase.get();
        if phase == Phase::Head {
            self.ahead.set(0);
        }
        let ahead = self.ahead.get();
        let (piece, most) = match phase {
            // A request that is read now would be answered on top of answers that are unsent.
            Phase::Head | Phase::Answer if self.is_blocked.get() => (0, 0),
            Phase::Head => (HEAD_PIECE, HEAD_PIECE),
            Phase::Answer => (HEAD_PIECE, HEAD_PIECE.saturating_sub(ahead)),
            Phase::Sized(left) => (
                BODY_PIECE,
                left.saturating_add(HEAD_PIECE.saturating_sub(ahead)),
            ),
            Phase::Chunked => (CHUNKED_PIECE, CHUNKED_AHEAD.saturating_sub(ahead)),
            Phase::Upgraded => (BODY_PIECE, BODY_PIECE),
        };
        match piece.saturating_sub(self.turn.get()) {
            _ if most == 0 => Room::Later,
            0 => Room::NextTurn,
            rest => Room::Bytes(rest.min(most)),
        }
    }

    /// So many bytes were read.
    pub(super) fn read(&self, bytes: usize) {
        self.turn.set(self.turn.get() + bytes);
        let beyond = match self.phase.get() {
            Phase::Sized(left) => {
                self.phase.set(Phase::Sized(left.saturating_sub(bytes)));
                bytes.saturating_sub(left)
            }
            Phase::Head | Phase::Chunked | Phase::Upgraded | Phase::Answer => bytes,
        };
        self.ahead.set(self.ahead.get() + beyond);
    }

    /// The reader has nothing more to read for now, and looks at what it has.
    pub(super) fn end_turn(&self) {
        self.turn.set(0);
    }

    /// Remembers a reader that was told [`Room::Later`].
    pub(super) fn wait(&self, reader: &Waker) {
        self.end_turn();
        self.reader.replace(Some(reader.clone()));
    }

    /// Whether what arrives is the head of a request.
    pub(super) fn is_in_head(&self) -> bool {
        self.phase.get() == Phase::Head
    }

    /// Whether the client takes nothing of what is to be sent.
    pub(super) fn is_blocked(&self) -> bool {
        self.is_blocked.get()
    }

    pub(super) fn set_blocked(&self, is_blocked: bool) {
        if self.is_blocked.replace(is_blocked) && !is_blocked {
            self.resume();
        }
    }

    /// A request begins to be answered. Returns its number.
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

    /// A piece of a request's body was taken by its reader.
    pub(super) fn take_body(&self, request: u64) {
        if self.request.get() == request && self.phase.get() == Phase::Chunked {
            self.ahead.set(0);
            self.resume();
        }
    }

    /// The body of a request was read, or its reader wants no more of it.
    pub(super) fn end_body(&self, request: u64) {
        if self.request.get() == request && self.phase.get() != Phase::Head {
            self.phase.set(Phase::Answer);
        }
    }

    /// The answer of a request is written, but for what waits to be sent.
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

    /// Reads all that there is room for, in turns. Returns how much that was, with `most` as its bound.
    fn flood(flow: &Flow, reader: &Waker, most: usize) -> usize {
        let mut total = 0;
        while total < most {
            match flow.room() {
                Room::Bytes(bytes) => {
                    flow.read(bytes);
                    total += bytes;
                }
                Room::NextTurn => flow.end_turn(),
                Room::Later => {
                    flow.wait(reader);
                    break;
                }
            }
        }
        total
    }

    #[test]
    fn a_turn_is_bounded_and_heads_may_be_of_any_size() {
        let flow = Flow::default();
        assert_eq!(flow.room(), Room::Bytes(HEAD_PIECE));
        flow.read(HEAD_PIECE);
        assert_eq!(flow.room(), Room::NextTurn);
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
            // The next request is one of those that were read ahead.
            flow.finish(request);
        }
        assert_eq!(total, HEAD_PIECE);
        assert_eq!(wakes.0.load(Ordering::Relaxed), 100);
        assert!(matches!(flow.room(), Room::Bytes(_)));
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
        assert!(matches!(flow.room(), Room::Bytes(_)));
    }

    #[test]
    fn a_body_is_read_to_its_end_and_little_beyond() {
        for blocked in [false, true] {
            let flow = Flow::default();
            let request = flow.begin(RequestBody::Sized(1 << 20));
            flow.set_blocked(blocked);
            let read = flood(&flow, Waker::noop(), usize::MAX);
            assert_eq!(read, (1 << 20) + HEAD_PIECE);
            flow.end_body(request);
            assert_eq!(flood(&flow, Waker::noop(), usize::MAX), 0);
        }
    }

    #[test]
    fn a_chunked_body_is_read_as_it_is_taken() {
        let flow = Flow::default();
        let request = flow.begin(RequestBody::Chunked);
        for _ in 0..10 {
            assert_eq!(flood(&flow, Waker::noop(), usize::MAX), CHUNKED_AHEAD);
            flow.take_body(request);
        }
        flow.end_body(request);
        assert_eq!(flood(&flow, Waker::noop(), usize::MAX), HEAD_PIECE);
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
