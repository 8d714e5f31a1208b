//! The connections of clients. The server bounds how many there are, how long each may stall, and how much of its input
//! is read ahead; and it notices when a client disconnects.
//!
//! - `stream`: the socket as actix-http sees it.
//! - `flow`: decides how much may be read now.
//! - `table`: counts connections, and closes stalled ones.
//! - `request`: reports the start and end of each request to its connection.

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
pub(super) use request::{ActiveBody, track_request};
pub(super) use stream::ClientStream;
pub(super) use table::{ConnectionCount, ConnectionLimits, ConnectionTable};

/// Response to a client that does not finish the head of a request in time. Sent only if no other response is being
/// sent.
const REQUEST_TIMEOUT: &[u8] =
    b"HTTP/1.1 408 Request Timeout\r\ncontent-length: 0\r\nconnection: close\r\n\r\n";

/// The connection of a client. A connection is used only on the thread of its worker.
#[derive(Debug)]
pub(super) struct Connection {
    id: u64,
    /// The writing half, which also reports that the client has disconnected. actix-http does not poll a connection
    /// while a handler runs, so it would not notice a client that disconnects during a run.
    writer: OwnedWriteHalf,
    flow: Flow,
    table: Weak<ConnectionTable>,
    /// Current time of the table, in ticks.
    clock: Rc<Cell<u64>>,
    /// Tick at which the first byte of the current request's head arrived; `None` between heads.
    head_since: Cell<Option<u64>>,
    /// Tick since which the client accepts no data; `None` if the client accepts all.
    blocked_since: Cell<Option<u64>>,
    /// Tick of the last read or write.
    active_at: Cell<u64>,
    /// Whether no complete request head has arrived yet.
    is_unused: Cell<bool>,
    is_ended: Cell<bool>,
    /// The task that waits in [`Self::ended`].
    waiting: RefCell<Option<Waker>>,
}

impl Connection {
    /// Notes that bytes were read.
    fn on_read(&self, bytes: usize) {
        let now = self.now();
        self.active_at.set(now);
        if bytes > 0 && self.flow.is_in_head() && self.head_since.get().is_none() {
            self.head_since.set(Some(now));
        }
        self.flow.read(bytes);
    }

    /// Notes that the client accepted data.
    fn on_written(&self) {
        self.active_at.set(self.now());
        self.blocked_since.set(None);
        self.flow.set_blocked(false);
    }

    /// Notes that the client accepts no data for now.
    fn on_blocked(&self) {
        if self.blocked_since.get().is_none() {
            self.blocked_since.set(Some(self.now()));
        }
        self.flow.set_blocked(true);
    }

    /// Notes that the head of a request has arrived whole.
    fn on_request(&self) {
        self.head_since.set(None);
        if self.is_unused.replace(false)
            && let Some(table) = self.table.upgrade()
        {
            table.forget_unused(self.id);
        }
    }

    fn now(&self) -> u64 {
        self.clock.get()
    }

    /// Ends the connection. The work for its client is dropped.
    fn end(&self) {
        if self.is_ended.replace(true) {
            return;
        }
        // The kernel discards the data that it has not sent yet.
        let _ = self.writer.as_ref().set_zero_linger();
        self.wake();
    }

    /// Ends a connection whose client does not finish a request's head, with a 408 response if one can be sent.
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

    /// Closes the connection after its stream was dropped. Requests that are still running keep the descriptor open, so
    /// the socket is shut down explicitly: the client must not wait for them.
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
        // tokio never registers the socket for priority events, so this waits for the end of the input alone, and consumes
        // no readiness of the reader. An error ends the connection as well.
        let _ = self.writer.ready(Interest::PRIORITY).await;
    }
}

/// Does work until the client disconnects. As in other servers, a client that closes its half of the connection counts
/// as disconnected.
///
/// # Errors
/// The errors of the work; [`ExecuteError::Cancelled`] if the client disconnects.
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

/// Waits until the client disconnects.
pub async fn closed(request: &HttpRequest) {
    match request.conn_data::<Rc<Connection>>() {
        Some(connection) => connection.closed_by_client().await,
        // Only requests of tests have no connection.
        None => std::future::pending().await,
    }
}
