//! The connections of clients: how many there may be, how long each may stand still, how much of its input is read
//! ahead, and whether its client is still there.
//!
//! `stream` is the socket as actix-http sees it, `flow` decides how much may be read, `table` keeps count and
//! closes what stands still, and `request` tells the connection of the requests that come over it.

mod flow;
mod request;
mod stream;
mod table;

use std::cell::{Cell, RefCell};
use std::future::poll_fn;
use std::os::fd::AsRawFd as _;
use std::rc::{Rc, Weak};
use std::task::{Poll, Waker};

use actix_web::HttpRequest;
use isol8_actors::ExecuteError;
use nix::sys::socket::{Shutdown, shutdown};
use tokio::io::Interest;
use tokio::net::tcp::OwnedWriteHalf;

use flow::Flow;
pub(super) use request::{ActiveBody, begin};
pub(super) use stream::ClientStream;
pub(super) use table::{Bounds, Count, Table};

/// Answer to a client that does not finish the head of a request, where nothing else is being sent.
const REQUEST_TIMEOUT: &[u8] =
    b"HTTP/1.1 408 Request Timeout\r\ncontent-length: 0\r\nconnection: close\r\n\r\n";

/// The connection of a client. Everything about it happens on the thread of its worker.
#[derive(Debug)]
pub(super) struct Connection {
    id: u64,
    /// Also what tells of the client's end: actix-http looks at a connection again only when it has an answer to
    /// send, so a client that goes away while its program runs would not be noticed.
    writer: OwnedWriteHalf,
    flow: Flow,
    table: Weak<Table>,
    /// The table's time, in its ticks.
    clock: Rc<Cell<u64>>,
    /// Start of the head that is arriving; `None` if none is arriving.
    head_since: Cell<Option<u64>>,
    /// Time since which the client takes nothing of the answer; `None` if the client takes all.
    blocked_since: Cell<Option<u64>>,
    /// When something was last read or written.
    active_at: Cell<u64>,
    /// Whether a request has ever come over it whole.
    is_fresh: Cell<bool>,
    is_ended: Cell<bool>,
    /// The task that waits for [`Self::end`].
    waiting: RefCell<Option<Waker>>,
}

impl Connection {
    /// Bytes arrived.
    fn note_read(&self, bytes: usize) {
        let now = self.now();
        self.active_at.set(now);
        if bytes > 0 && self.flow.is_in_head() && self.head_since.get().is_none() {
            self.head_since.set(Some(now));
        }
        self.flow.read(bytes);
    }

    /// The client took something of what is to be sent.
    fn note_written(&self) {
        self.active_at.set(self.now());
        self.blocked_since.set(None);
        self.flow.set_blocked(false);
    }

    /// The client takes nothing of what is to be sent.
    fn note_blocked(&self) {
        if self.blocked_since.get().is_none() {
            self.blocked_since.set(Some(self.now()));
        }
        self.flow.set_blocked(true);
    }

    /// A request has arrived, but for its body.
    fn note_request(&self) {
        self.head_since.set(None);
        if self.is_fresh.replace(false)
            && let Some(table) = self.table.upgrade()
        {
            table.forget_fresh(self.id);
        }
    }

    fn now(&self) -> u64 {
        self.clock.get()
    }

    /// Ends the connection: whatever is done for its client is dropped.
    fn end(&self) {
        if self.is_ended.replace(true) {
            return;
        }
        // Data that the kernel still holds for the client is dropped as well.
        let _ = self.writer.as_ref().set_zero_linger();
        self.wake();
    }

    /// Ends a connection whose client does not finish a request's head, and tells it so.
    fn end_slow_head(&self) {
        if self.flow.is_blocked() || self.writer.try_write(REQUEST_TIMEOUT).is_err() {
            return self.end();
        }
        self.is_ended.set(true);
        self.wake();
    }

    fn wake(&self) {
        if let Some(waiting) = self.waiting.take() {
            waiting.wake();
        }
    }

    /// Waits until the server has ended the connection.
    pub(super) async fn ended(&self) {
        poll_fn(|context| {
            if self.is_ended.get() {
                return Poll::Ready(());
            }
            let mut waiting = self.waiting.borrow_mut();
            match &mut *waiting {
                Some(waker) => waker.clone_from(context.waker()),
                None => *waiting = Some(context.waker().clone()),
            }
            Poll::Pending
        })
        .await;
    }

    /// The stream of the connection is gone. Requests that are still at work keep the descriptor open; the client
    /// is not to wait for them.
    fn close(self: &Rc<Self>) {
        if let Some(table) = self.table.upgrade() {
            table.remove(self);
        }
        if Rc::strong_count(self) > 1 {
            let _ = shutdown(self.writer.as_ref().as_raw_fd(), Shutdown::Both);
        }
    }

    /// Waits until the client has closed its half.
    async fn closed_by_client(&self) {
        // Priority is never asked of the kernel, so this waits for the end of the input and for nothing else, and
        // takes no readiness from the reader. An error is no less of an end.
        let _ = self.writer.ready(Interest::PRIORITY).await;
    }
}

/// Does the work for as long as the client is there. As with other servers, one that closes its
/// half of the connection counts as gone.
///
/// # Errors
/// The work's own; [`ExecuteError::Cancelled`] once the client is gone.
pub async fn while_connected<T, E: From<ExecuteError>>(
    request: &HttpRequest,
    work: impl Future<Output = Result<T, E>>,
) -> Result<T, E> {
    tokio::select! {
        biased;
        done = work => done,
        () = closed(request) => Err(ExecuteError::Cancelled.into()),
    }
}

/// Waits until the client is gone.
pub async fn closed(request: &HttpRequest) {
    match request.conn_data::<Rc<Connection>>() {
        Some(connection) => connection.closed_by_client().await,
        // A test's request has no connection.
        None => std::future::pending().await,
    }
}
