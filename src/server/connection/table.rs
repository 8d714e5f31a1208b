//! The connections of one worker: how many there may be, and which of them stand still.

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

/// How often connections are looked at, at most and at least.
const SHORTEST_TICK: Duration = Duration::from_millis(10);
const LONGEST_TICK: Duration = Duration::from_secs(1);

/// Connections that are looked at for one that may be closed in favour of a new one.
const CANDIDATES: usize = 256;

/// Bounds for the connections of all workers.
#[derive(Clone, Copy, Debug)]
pub(in crate::server) struct Bounds {
    /// Connections that may be open at once.
    pub(in crate::server) most: usize,
    /// How long the head of a request may take to arrive.
    pub(in crate::server) header_timeout: Duration,
    /// How long a client may take nothing of what is to be sent.
    pub(in crate::server) stall_timeout: Duration,
}

/// Open connections of all workers. Clones share it.
#[derive(Clone, Debug, Default)]
pub(in crate::server) struct Count(Arc<AtomicUsize>);

/// The connections of one worker.
#[derive(Debug)]
pub(in crate::server) struct Table {
    bounds: Bounds,
    tick: Duration,
    count: Count,
    /// Ticks so far: time, as exact as it has to be and without a look at the clock.
    now: Rc<Cell<u64>>,
    last_id: Cell<u64>,
    /// All of them, the oldest first.
    open: RefCell<BTreeMap<u64, Rc<Connection>>>,
    /// Connections that no request has come over, the oldest first.
    fresh: RefCell<BTreeMap<u64, Rc<Connection>>>,
}

impl Table {
    /// Makes an empty table. The table maintains its connections on the current thread, for as long as it is held.
    pub(in crate::server) fn new(bounds: Bounds, count: Count) -> Rc<Self> {
        let shortest = bounds.header_timeout.min(bounds.stall_timeout);
        let tick = (shortest / 8).clamp(SHORTEST_TICK, LONGEST_TICK);
        let table = Rc::new(Self {
            bounds,
            tick,
            count,
            now: Rc::default(),
            last_id: Cell::new(0),
            open: RefCell::default(),
            fresh: RefCell::default(),
        });
        let weak = Rc::downgrade(&table);
        rt::spawn(async move {
            let mut ticks = interval(tick);
            ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
            loop {
                ticks.tick().await;
                let Some(table) = weak.upgrade() else { return };
                table.look();
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
        // An event that follows another would wait until the client has acknowledged that, which it puts off.
        socket.set_nodelay(true)?;
        // For what the kernel still has to send when the connection is closed here.
        let stall = self.bounds.stall_timeout.as_millis();
        let stall = u32::try_from(stall).unwrap_or(u32::MAX);
        setsockopt(&socket, TcpUserTimeout, &stall)?;
        let others = self.count.0.fetch_add(1, Ordering::Relaxed);
        if others >= self.bounds.most && !self.close_one() && others >= self.hard_limit() {
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
            is_fresh: Cell::new(true),
            is_ended: Cell::new(false),
            waiting: RefCell::default(),
        });
        self.open.borrow_mut().insert(id, Rc::clone(&connection));
        self.fresh.borrow_mut().insert(id, Rc::clone(&connection));
        Ok(Some(ClientStream::new(reader, connection)))
    }

    /// Connections are spread over the workers, and not quite evenly: if none of this worker's may be closed, another
    /// worker may close one with its next connection.
    fn hard_limit(&self) -> usize {
        self.bounds.most + self.bounds.most / 8
    }

    /// Closes the oldest connection that no request has come over; without any the one that has been idle for the
    /// longest time; without any the one whose client has taken nothing for the longest time.
    fn close_one(&self) -> bool {
        let fresh = self.fresh.borrow().values().next().cloned();
        let victim = fresh.or_else(|| {
            let open = self.open.borrow();
            let candidates = || {
                open.values()
                    .take(CANDIDATES)
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

    pub(super) fn forget_fresh(&self, id: u64) {
        self.fresh.borrow_mut().remove(&id);
    }

    /// Counts a connection no longer.
    pub(super) fn remove(&self, connection: &Connection) {
        self.forget_fresh(connection.id);
        if self.open.borrow_mut().remove(&connection.id).is_some() {
            self.count.0.fetch_sub(1, Ordering::Relaxed);
        }
    }

    /// Ends connections that stand still.
    fn look(&self) {
        let now = self.now.get() + 1;
        self.now.set(now);
        let is_over = |since: u64, timeout: Duration| {
            // The first tick may have followed at once.
            let whole = now.saturating_sub(since).saturating_sub(1);
            self.tick
                .saturating_mul(u32::try_from(whole).unwrap_or(u32::MAX))
                >= timeout
        };
        for connection in self.open.borrow().values() {
            let is_past =
                |since: Option<u64>, timeout| since.is_some_and(|since| is_over(since, timeout));
            if is_past(connection.blocked_since.get(), self.bounds.stall_timeout) {
                log::debug!("connection closed: its client takes nothing");
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

    fn table(most: usize) -> Rc<Table> {
        let bounds = Bounds {
            most,
            header_timeout: TIMEOUT,
            stall_timeout: TIMEOUT,
        };
        Table::new(bounds, Count::default())
    }

    /// Returns a connection: the server's end, if it was admitted, and the client's.
    async fn connect(table: &Rc<Table>) -> (Option<ClientStream>, TcpStream) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (client, server) = futures::join!(TcpStream::connect(address), listener.accept());
        let admitted = table.admit(server.unwrap().0).unwrap();
        (admitted, client.unwrap())
    }

    async fn admitted(table: &Rc<Table>) -> (ClientStream, TcpStream) {
        let (stream, client) = connect(table).await;
        (stream.unwrap(), client)
    }

    fn is_ended(stream: &ClientStream) -> bool {
        stream.connection().is_ended.get()
    }

    /// A request has come over the connection, and is answered.
    fn answer(stream: &ClientStream) -> u64 {
        let connection = stream.connection();
        connection.note_request();
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
        blocked.connection().note_blocked();
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
        // Not the first on its connection, which actix-http looks after.
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
