//! The connections of one worker: limits their number, and closes those that stall.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::io;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use actix_web::rt;
use actix_web::rt::net::TcpStream;
use nix::sys::socket::setsockopt;
use nix::sys::socket::sockopt::TcpUserTimeout;
use tokio::time::{MissedTickBehavior, interval};

use super::Connection;
use super::flow::Flow;
use super::stream::ClientStream;

/// Shortest interval at which connections are checked.
const MIN_TICK: Duration = Duration::from_millis(10);

/// Longest interval at which connections are checked.
const MAX_TICK: Duration = Duration::from_secs(1);

/// Connections among which one is searched that may be closed in favour of a new one, the oldest first.
const MAX_CANDIDATES: usize = 256;

/// Limits for the connections of all workers.
#[derive(Clone, Copy, Debug)]
pub(in crate::server) struct ConnectionLimits {
    /// Connections that may be open at once.
    pub(in crate::server) most: usize,
    /// Time in which the head of a request has to arrive.
    pub(in crate::server) header_timeout: Duration,
    /// Time for which a client may accept no data.
    pub(in crate::server) stall_timeout: Duration,
}

/// The number of open connections of all workers. Clones share it.
#[derive(Clone, Debug, Default)]
pub(in crate::server) struct ConnectionCount(Arc<AtomicUsize>);

/// The connections of one worker.
#[derive(Debug)]
pub(in crate::server) struct ConnectionTable {
    bounds: ConnectionLimits,
    tick: Duration,
    count: ConnectionCount,
    /// Number of ticks so far: a time that costs no call of the clock, and is precise enough for the timeouts.
    now: Rc<Cell<u64>>,
    last_id: Cell<u64>,
    /// All connections by their ids, the oldest first.
    open: RefCell<BTreeMap<u64, Rc<Connection>>>,
    /// Connections over which no complete request head has arrived, the oldest first.
    unused: RefCell<BTreeMap<u64, Rc<Connection>>>,
}

impl ConnectionTable {
    /// Makes an empty table. A task on the current thread checks its connections at every tick, until the table is
    /// dropped.
    pub(in crate::server) fn new(bounds: ConnectionLimits, count: ConnectionCount) -> Rc<Self> {
        let shortest = bounds.header_timeout.min(bounds.stall_timeout);
        let tick = (shortest / 8).clamp(MIN_TICK, MAX_TICK);
        let table = Rc::new(Self {
            bounds,
            tick,
            count,
            now: Rc::default(),
            last_id: Cell::new(0),
            open: RefCell::default(),
            unused: RefCell::default(),
        });
        let weak = Rc::downgrade(&table);
        rt::spawn(async move {
            let mut ticks = interval(tick);
            ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
            loop {
                ticks.tick().await;
                let Some(table) = weak.upgrade() else { return };
                table.close_stalled();
            }
        });
        table
    }

    /// Admits a new connection. If the limit is reached, an idle connection is closed for it; returns `None` if all are
    /// active.
    ///
    /// # Errors
    /// If the socket cannot be set up.
    pub(in crate::server) fn admit(
        self: &Rc<Self>,
        socket: TcpStream,
    ) -> io::Result<Option<ClientStream>> {
        // With Nagle's algorithm, an event would wait until the client has acknowledged the one before, and clients delay
        // acknowledgements.
        socket.set_nodelay(true)?;
        // Bounds how long the kernel tries to send remaining data after the connection is closed.
        let stall = self.bounds.stall_timeout.as_millis();
        let stall = u32::try_from(stall).unwrap_or(u32::MAX);
        setsockopt(&socket, TcpUserTimeout, &stall)?;
        let others = self.count.0.fetch_add(1, Ordering::Relaxed);
        if others >= self.bounds.most && !self.evict_one() && others >= self.hard_limit() {
            self.count.0.fetch_sub(1, Ordering::Relaxed);
            return Ok(None);
        }
        let (reader, writer) = socket.into_split();
        let id = self.last_id.get() + 1;
        self.last_id.set(id);
        let connection = Rc::new(Connection {
            id,
            writer,
            flow: Flow::default(),
            table: Rc::downgrade(self),
            clock: Rc::clone(&self.now),
            head_since: Cell::new(None),
            blocked_since: Cell::new(None),
            active_at: Cell::new(self.now.get()),
            is_unused: Cell::new(true),
            is_ended: Cell::new(false),
            waiting: RefCell::default(),
        });
        self.open.borrow_mut().insert(id, Rc::clone(&connection));
        self.unused.borrow_mut().insert(id, Rc::clone(&connection));
        Ok(Some(ClientStream::new(reader, connection)))
    }

    /// Returns the number of connections at which a new one is refused. Connections are not spread evenly over the
    /// workers: if this worker has none that may be closed, another worker can close one of its own at its next
    /// connection. So an eighth more than the limit is allowed for a moment.
    fn hard_limit(&self) -> usize {
        self.bounds.most + self.bounds.most / 8
    }

    /// Closes one connection in favour of a new one, and returns whether one was found. In this order:
    /// - the oldest connection over which no request has come;
    /// - the connection that has been idle for longest;
    /// - the connection whose client has accepted no data for longest.
    fn evict_one(&self) -> bool {
        let unused = self.unused.borrow().values().next().cloned();
        let victim = unused.or_else(|| {
            let open = self.open.borrow();
            let candidates = || {
                open.values()
                    .take(MAX_CANDIDATES)
                    .filter(|one| !one.is_ended.get())
            };
            let idle = candidates().filter(|one| one.flow.is_in_head() && !one.flow.is_blocked());
            let blocked = candidates().filter(|one| one.flow.is_blocked());
            let longest = idle.min_by_key(|one| one.active_at.get());
            longest
                .or_else(|| blocked.min_by_key(|one| one.blocked_since.get()))
                .cloned()
        });
        let Some(victim) = victim else { return false };
        log::debug!("connection closed in favour of a new one");
        self.remove(&victim);
        victim.end();
        true
    }

    pub(super) fn forget_unused(&self, id: u64) {
        self.unused.borrow_mut().remove(&id);
    }

    /// Removes a connection from the table and from the count.
    pub(super) fn remove(&self, connection: &Connection) {
        self.forget_unused(connection.id);
        if self.open.borrow_mut().remove(&connection.id).is_some() {
            self.count.0.fetch_sub(1, Ordering::Relaxed);
        }
    }

    /// Starts the next tick, and ends connections that have stalled for longer than their timeout.
    fn close_stalled(&self) {
        let now = self.now.get() + 1;
        self.now.set(now);
        let is_over = |since: u64, timeout: Duration| {
            // The first tick may have followed immediately, so it does not count.
            let whole = now.saturating_sub(since).saturating_sub(1);
            self.tick
                .saturating_mul(u32::try_from(whole).unwrap_or(u32::MAX))
                >= timeout
        };
        for connection in self.open.borrow().values() {
            let is_past =
                |since: Option<u64>, timeout| since.is_some_and(|since| is_over(since, timeout));
            if is_past(connection.blocked_since.get(), self.bounds.stall_timeout) {
                log::debug!("connection closed: its client accepts no data");
                connection.end();
            } else if connection.flow.is_in_head()
                && is_past(connection.head_since.get(), self.bounds.header_timeout)
            {
                log::debug!("connection closed: a request's head did not arrive in time");
                connection.end_slow_head();
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use actix_web::rt::net::TcpListener;
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    use tokio::time::{sleep, timeout};

    use super::*;
    use crate::server::connection::flow::RequestBody;

    const TIMEOUT: Duration = Duration::from_millis(200);

    fn table(most: usize) -> Rc<ConnectionTable> {
        let bounds = ConnectionLimits {
            most,
            header_timeout: TIMEOUT,
            stall_timeout: TIMEOUT,
        };
        ConnectionTable::new(bounds, ConnectionCount::default())
    }

    /// Opens a connection. Returns the server's end, if it was admitted, and the client's.
    async fn connect(table: &Rc<ConnectionTable>) -> (Option<ClientStream>, TcpStream) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (client, server) = futures::join!(TcpStream::connect(address), listener.accept());
        let admitted = table.admit(server.unwrap().0).unwrap();
        (admitted, client.unwrap())
    }

    async fn admitted(table: &Rc<ConnectionTable>) -> (ClientStream, TcpStream) {
        let (stream, client) = connect(table).await;
        (stream.unwrap(), client)
    }

    fn is_ended(stream: &ClientStream) -> bool {
        stream.connection().is_ended.get()
    }

    /// Starts a request on a connection, and returns its number.
    fn answer(stream: &ClientStream) -> u64 {
        let connection = stream.connection();
        connection.on_request();
        connection.flow.begin(RequestBody::Empty)
    }

    #[actix_web::test]
    async fn the_oldest_connection_that_does_nothing_gives_way() {
        let table = table(3);
        let (idle, _idle) = admitted(&table).await;
        let (first, _first) = admitted(&table).await;
        let (second, _second) = admitted(&table).await;
        let request = answer(&idle);
        idle.connection().flow.finish(request);

        let (third, _third) = admitted(&table).await;
        assert!(is_ended(&first) && !is_ended(&idle) && !is_ended(&second));
        let (busy, _busy) = admitted(&table).await;
        assert!(is_ended(&second) && !is_ended(&idle) && !is_ended(&third));
        answer(&busy);
        answer(&third);
        let (last, _last) = admitted(&table).await;
        assert!(is_ended(&idle) && !is_ended(&busy) && !is_ended(&third));
        answer(&last);

        let (refused, _refused) = connect(&table).await;
        assert!(refused.is_none());
        drop(last);
        assert!(connect(&table).await.0.is_some());
    }

    #[actix_web::test]
    async fn a_client_that_takes_nothing_gives_way_where_all_others_are_at_work() {
        let table = table(2);
        let (busy, _busy) = admitted(&table).await;
        let (blocked, _blocked) = admitted(&table).await;
        answer(&busy);
        answer(&blocked);
        blocked.connection().on_blocked();
        let (new, _new) = admitted(&table).await;
        assert!(is_ended(&blocked) && !is_ended(&busy) && !is_ended(&new));
    }

    #[actix_web::test]
    async fn a_client_that_takes_nothing_is_given_up_in_time_and_one_that_takes_little_is_not() {
        let table = table(9);
        let (mut stalled, _client) = admitted(&table).await;
        let (mut slow, mut reader) = admitted(&table).await;
        let started = Instant::now();
        let slowly = async {
            let mut piece = vec![0; 1 << 20];
            loop {
                sleep(TIMEOUT / 4).await;
                reader.read_exact(&mut piece).await.unwrap();
            }
        };
        let bytes = vec![0; 64 << 20];
        let connection = Rc::clone(stalled.connection());
        tokio::select! {
            () = connection.ended() => {}
            written = stalled.write_all(&bytes) => panic!("{written:?}"),
            written = slow.write_all(&bytes) => panic!("{written:?}"),
            () = slowly => {}
        }
        assert!(started.elapsed() >= TIMEOUT, "{:?}", started.elapsed());
        assert!(!is_ended(&slow));
    }

    #[actix_web::test]
    async fn a_head_that_does_not_end_is_answered_for() {
        let table = table(9);
        let (mut stream, mut client) = admitted(&table).await;
        // actix-http has its own timeout for the first request of a connection, so this is the second one.
        let request = answer(&stream);
        stream.connection().flow.finish(request);
        let connection = Rc::clone(stream.connection());
        client.write_all(b"GET /heal").await.unwrap();
        let mut buffer = [0; 100];
        assert_eq!(stream.read(&mut buffer).await.unwrap(), 9);
        timeout(Duration::from_secs(10), connection.ended())
            .await
            .unwrap();
        drop((stream, connection));
        let mut answered = String::new();
        client.read_to_string(&mut answered).await.unwrap();
        assert!(answered.starts_with("HTTP/1.1 408 "), "{answered}");
    }

    #[actix_web::test]
    async fn a_client_that_is_gone_is_noticed_with_input_unread_and_with_none() {
        for sent in [&b"more"[..], b""] {
            let table = table(9);
            let (stream, mut client) = admitted(&table).await;
            let connection = Rc::clone(stream.connection());
            client.write_all(sent).await.unwrap();
            let gone = connection.closed_by_client();
            assert!(timeout(Duration::from_millis(50), gone).await.is_err());
            drop(client);
            let gone = connection.closed_by_client();
            timeout(Duration::from_secs(10), gone).await.unwrap();
        }
    }
}
