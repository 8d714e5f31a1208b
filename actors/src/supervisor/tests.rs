//! Actors that panic, and callers that do not notice.

use std::sync::atomic::AtomicU64;
use std::sync::{Arc, Mutex};

use actix::prelude::*;

use super::{ActorGone, StateGuard, Supervised};

/// Counts, and remembers what it was told last.
struct Counter {
    count: StateGuard<Self, u32>,
    started: Arc<Mutex<Vec<u32>>>,
}

impl Actor for Counter {
    type Context = Context<Self>;

    fn started(&mut self, _: &mut Self::Context) {
        self.started.lock().unwrap().push(*self.count);
    }
}

#[derive(Message)]
#[rtype(result = "u32")]
struct Add(u32);

impl Handler<Add> for Counter {
    type Result = u32;

    fn handle(&mut self, Add(number): Add, _: &mut Self::Context) -> u32 {
        assert!(number != 13, "as the test wants it");
        *self.count += number;
        *self.count
    }
}

struct Setup {
    counter: Supervised<Counter>,
    started: Arc<Mutex<Vec<u32>>>,
    restarts: Arc<AtomicU64>,
}

fn counter() -> Setup {
    tokio::time::pause();
    let (started, restarts): (Arc<Mutex<Vec<u32>>>, Arc<AtomicU64>) = Default::default();
    let log = Arc::clone(&started);
    let counter = Supervised::start("counter", Arc::clone(&restarts), 0, move |count| {
        let started = Arc::clone(&log);
        Counter { count, started }
    });
    Setup {
        counter,
        started,
        restarts,
    }
}

#[actix::test]
async fn a_successor_goes_on_with_what_its_predecessor_had() {
    let setup = counter();
    assert_eq!(setup.counter.ask(|| Add(1)).await, Ok(1));
    setup.counter.do_send(Add(13));
    // Sent before the panic is noticed, and right behind it.
    setup.counter.do_send(Add(1));
    assert_eq!(setup.counter.ask(|| Add(2)).await, Ok(3));
    setup.counter.do_send(Add(1));
    assert_eq!(setup.counter.ask(|| Add(1)).await, Ok(5));
    assert_eq!(*setup.started.lock().unwrap(), [0, 1]);
}

#[actix::test]
async fn a_message_that_always_panics_is_given_up_and_harms_no_other() {
    let setup = counter();
    assert_eq!(setup.counter.ask(|| Add(4)).await, Ok(4));
    assert_eq!(setup.counter.ask(|| Add(13)).await, Err(ActorGone));
    assert_eq!(setup.counter.ask(|| Add(1)).await, Ok(5));
    let restarts = setup.restarts.load(std::sync::atomic::Ordering::Relaxed);
    assert_eq!(restarts, super::ATTEMPTS as u64);
}

#[actix::test]
async fn an_actor_ends_with_its_last_handle() {
    let setup = counter();
    setup.counter.ask(|| Add(1)).await.unwrap();
    let weak = Arc::downgrade(&setup.counter.post);
    drop(setup.counter);
    for _ in 0..10 {
        tokio::task::yield_now().await;
    }
    assert!(weak.upgrade().is_none());
    assert_eq!(*setup.started.lock().unwrap(), [0], "no restarted actor");
}
