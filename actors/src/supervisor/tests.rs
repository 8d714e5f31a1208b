//! Actors that panic, and callers that do not notice the panic.

use std::sync::atomic::AtomicU64;
use std::sync::{Arc, Mutex};

use actix::prelude::*;

use super::{ActorGone, StateGuard, Supervised, WeakSupervised};

/// Adds up numbers, and records the sum with which each actor started.
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
async fn a_restarted_actor_goes_on_with_the_state_of_the_one_before() {
    let setup = counter();
    assert_eq!(setup.counter.ask(|| Add(1)).await, Ok(1));
    setup.counter.do_send(Add(13));
    // This message is lost: it is in the mailbox of the actor that panics.
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
async fn a_recipient_reaches_the_restarted_actor_and_keeps_no_actor_alive() {
    let setup = counter();
    let slot = Arc::downgrade(&setup.counter.slot);
    let recipient = WeakSupervised { slot: slot.clone() }.recipient();
    recipient.do_send(Add(1));
    recipient.do_send(Add(13));
    assert_eq!(setup.counter.ask(|| Add(2)).await, Ok(3));
    recipient.do_send(Add(4));
    assert_eq!(setup.counter.ask(|| Add(1)).await, Ok(8));
    assert_eq!(*setup.started.lock().unwrap(), [0, 1]);
    drop(setup.counter);
    assert!(slot.upgrade().is_none());
    recipient.do_send(Add(1));
}

#[actix::test]
async fn an_actor_ends_with_its_last_handle() {
    let setup = counter();
    setup.counter.ask(|| Add(1)).await.unwrap();
    let weak = Arc::downgrade(&setup.counter.slot);
    drop(setup.counter);
    for _ in 0..10 {
        tokio::task::yield_now().await;
    }
    assert!(weak.upgrade().is_none());
    assert_eq!(*setup.started.lock().unwrap(), [0], "no restarted actor");
}
