//! Restarts an actor after a panic. The restarted actor takes over the state.
//!
//! Actix's own supervisor does not survive a panic in a handler: the actor's task ends, and its mailbox closes. So this
//! supervisor holds a factory of the actor rather than the actor. An actor keeps all that it knows and owns in a
//! [`StateGuard`], which hands the state over when the actor is dropped for any reason. Tasks report by a message to
//! the handle, which reaches the actor that runs by then. Messages in the mailbox of an actor that panics are lost.

use std::fmt;
use std::ops::{Deref, DerefMut};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Weak};
use std::time::Duration;

use actix::dev::ToEnvelope;
use actix::prelude::*;
use tokio::runtime::Handle;
use tokio::sync::{oneshot, watch};
use tokio::task::JoinError;
use tokio::time::{Instant, timeout};

/// How often a message that gets no answer is sent. The bound ends the panics of a message that makes every actor
/// panic.
pub(crate) const ATTEMPTS: usize = 4;

/// How long a sender waits for a restarted actor.
const RESTART_TIMEOUT: Duration = Duration::from_secs(5);

/// Pause before the second restart in a row; doubled with each further restart. The first restart has no pause.
const BACK_OFF: Duration = Duration::from_millis(10);

/// Longest pause before a restart; shorter than [`RESTART_TIMEOUT`].
const MAX_BACK_OFF: Duration = Duration::from_secs(1);

/// A restart counts as in a row with the one before if the actor has run for less than this time between them.
const STABLE_AFTER: Duration = Duration::from_secs(60);

/// The error of a message without an answer: the actor panics again and again, or has ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ActorGone;

/// A handle to the actor that runs at the moment. The actor ends when its last handle is dropped.
pub struct Supervised<A: Actor> {
    slot: Arc<ActorSlot<A>>,
}

/// A handle that does not keep its actor running.
pub(crate) struct WeakSupervised<A: Actor> {
    slot: Weak<ActorSlot<A>>,
}

/// A handle for messages of type `M` that does not keep its actor running, and does not name the type of the actor. So
/// the sender's module need not import the receiver's.
///
/// Actix's [`Recipient`] is bound to one actor, and would lose the messages after a restart.
pub(crate) struct WeakRecipient<M>(Arc<dyn Fn(M) + Send + Sync>);

/// Holds the address of the current actor.
struct ActorSlot<A: Actor> {
    name: &'static str,
    current: watch::Sender<Option<Addr<A>>>,
}

/// The state `S` of an actor, with the actor's own handle. If the actor is dropped for any reason, the restarted actor
/// gets the state.
pub(crate) struct StateGuard<A: Actor, S: Default> {
    state: S,
    handoff: Option<oneshot::Sender<S>>,
    slot: Weak<ActorSlot<A>>,
}

impl<A: Actor, S: Default> StateGuard<A, S> {
    /// Returns the actor's own handle.
    pub(crate) fn handle(&self) -> WeakSupervised<A> {
        WeakSupervised {
            slot: Weak::clone(&self.slot),
        }
    }
}

impl<A: Actor, S: Default> Deref for StateGuard<A, S> {
    type Target = S;

    fn deref(&self) -> &S {
        &self.state
    }
}

impl<A: Actor, S: Default> DerefMut for StateGuard<A, S> {
    fn deref_mut(&mut self) -> &mut S {
        &mut self.state
    }
}

impl<A: Actor, S: Default> Drop for StateGuard<A, S> {
    fn drop(&mut self) {
        if let Some(handoff) = self.handoff.take() {
            // Without a supervisor no actor is restarted, and the state is dropped.
            let _ = handoff.send(std::mem::take(&mut self.state));
        }
    }
}

impl<A: Actor<Context = Context<A>>> Supervised<A> {
    /// Starts an actor on the current arbiter, and restarts it after each panic. `make` creates an actor; `restarts`
    /// counts the restarts.
    pub(crate) fn start<S: Default + Send + 'static>(
        name: &'static str,
        restarts: Arc<AtomicU64>,
        state: S,
        mut make: impl FnMut(StateGuard<A, S>) -> A + 'static,
    ) -> Self {
        let (current, _) = watch::channel(None);
        let slot = Arc::new(ActorSlot { name, current });
        let weak = Arc::downgrade(&slot);
        let mut start_actor = move |state| {
            let slot = weak.upgrade()?;
            let (handoff, handed_over) = oneshot::channel();
            let guard = StateGuard {
                state,
                handoff: Some(handoff),
                slot: Weak::clone(&weak),
            };
            let address = make(guard).start();
            slot.current.send_replace(Some(address));
            Some(handed_over)
        };
        let mut handed_over = start_actor(state);
        actix::spawn(async move {
            let mut in_a_row = 0;
            while let Some(ended) = handed_over {
                let started = Instant::now();
                // Every actor hands over its state, except at the end of the actix system.
                let Ok(state) = ended.await else { return };
                in_a_row = if started.elapsed() < STABLE_AFTER {
                    in_a_row + 1
                } else {
                    0
                };
                tokio::time::sleep(pause(in_a_row)).await;
                handed_over = start_actor(state);
                if handed_over.is_some() {
                    restarts.fetch_add(1, Ordering::Relaxed);
                    log::error!(actor = name, in_a_row; "actor panicked, and was restarted");
                }
            }
        });
        Self { slot }
    }

    /// Sends a message that needs no answer. If the actor has just panicked, the restarted actor gets the message.
    pub(crate) fn do_send<M>(&self, message: M)
    where
        M: Message + Send + 'static,
        M::Result: Send,
        A: Handler<M>,
        A::Context: ToEnvelope<A, M>,
    {
        match self.slot.current_addr() {
            Some(address) => address.do_send(message),
            None => {
                let slot = Arc::clone(&self.slot);
                // Outside of a runtime no actor runs.
                if let Ok(runtime) = Handle::try_current() {
                    runtime.spawn(async move {
                        if let Some(address) = slot.wait_current_addr().await {
                            address.do_send(message);
                        }
                    });
                }
            }
        }
    }

    /// Sends a message and waits for the answer. If the actor panics before it answers, the message is sent again to
    /// the restarted actor.
    ///
    /// # Errors
    /// [`ActorGone`] if the actor panics again and again, or has ended.
    pub async fn ask<M>(&self, message: impl Fn() -> M) -> Result<M::Result, ActorGone>
    where
        M: Message + Send + 'static,
        M::Result: Send,
        A: Handler<M>,
        A::Context: ToEnvelope<A, M>,
    {
        for _ in 0..ATTEMPTS {
            let address = match self.slot.current_addr() {
                Some(address) => address,
                None => self.slot.wait_current_addr().await.ok_or(ActorGone)?,
            };
            if let Ok(answer) = address.send(message()).await {
                return Ok(answer);
            }
        }
        log::error!(actor = self.slot.name; "actor panics again and again");
        Err(ActorGone)
    }
}

impl<A: Actor<Context = Context<A>>> ActorSlot<A> {
    /// Returns the address of the actor, if it runs.
    fn current_addr(&self) -> Option<Addr<A>> {
        self.current.borrow().clone().filter(Addr::connected)
    }

    /// Returns the address as soon as an actor runs; `None` after [`RESTART_TIMEOUT`].
    async fn wait_current_addr(&self) -> Option<Addr<A>> {
        let mut current = self.current.subscribe();
        let is_connected =
            |address: &Option<Addr<A>>| address.as_ref().is_some_and(Addr::connected);
        let found = timeout(RESTART_TIMEOUT, current.wait_for(is_connected)).await;
        found.ok()?.ok()?.clone()
    }
}

fn pause(in_a_row: u32) -> Duration {
    match in_a_row {
        0 | 1 => Duration::ZERO,
        many => BACK_OFF
            .saturating_mul(1 << (many - 2).min(16))
            .min(MAX_BACK_OFF),
    }
}

impl<A: Actor<Context = Context<A>>> WeakSupervised<A> {
    pub(crate) fn upgrade(&self) -> Option<Supervised<A>> {
        Some(Supervised {
            slot: self.slot.upgrade()?,
        })
    }

    /// Sends like [`Supervised::do_send`] if the actor still exists.
    pub(crate) fn do_send<M>(&self, message: M)
    where
        M: Message + Send + 'static,
        M::Result: Send,
        A: Handler<M>,
        A::Context: ToEnvelope<A, M>,
    {
        if let Some(handle) = self.upgrade() {
            handle.do_send(message);
        }
    }

    /// Returns a handle that accepts only messages of type `M`.
    pub(crate) fn recipient<M>(self) -> WeakRecipient<M>
    where
        M: Message + Send + 'static,
        M::Result: Send,
        A: Handler<M>,
        A::Context: ToEnvelope<A, M>,
    {
        WeakRecipient(Arc::new(move |message| self.do_send(message)))
    }

    /// As [`WeakRecipient::report`].
    pub(crate) fn report<T, M>(
        self,
        work: impl Future<Output = T> + Send + 'static,
        message: impl FnOnce(Result<T, JoinError>) -> M + Send + 'static,
    ) where
        T: Send + 'static,
        M: Message + Send + 'static,
        M::Result: Send,
        A: Handler<M>,
        A::Context: ToEnvelope<A, M>,
    {
        self.recipient().report(work, message);
    }
}

impl<M: 'static> WeakRecipient<M> {
    /// Sends like [`Supervised::do_send`] if the actor still exists.
    pub(crate) fn do_send(&self, message: M) {
        (self.0)(message);
    }

    /// Runs work in a task of its own, in which a panic is only an error, and reports the outcome to the actor that
    /// runs by then.
    pub(crate) fn report<T: Send + 'static>(
        self,
        work: impl Future<Output = T> + Send + 'static,
        message: impl FnOnce(Result<T, JoinError>) -> M + Send + 'static,
    ) {
        let working = tokio::spawn(work);
        tokio::spawn(async move { self.do_send(message(working.await)) });
    }
}

impl<A: Actor> Clone for Supervised<A> {
    fn clone(&self) -> Self {
        Self {
            slot: Arc::clone(&self.slot),
        }
    }
}

impl<A: Actor> Clone for WeakSupervised<A> {
    fn clone(&self) -> Self {
        Self {
            slot: Weak::clone(&self.slot),
        }
    }
}

impl<M> Clone for WeakRecipient<M> {
    fn clone(&self) -> Self {
        Self(Arc::clone(&self.0))
    }
}

impl<M> fmt::Debug for WeakRecipient<M> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("WeakRecipient")
    }
}

impl<A: Actor> fmt::Debug for Supervised<A> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Supervised({})", self.slot.name)
    }
}

impl<A: Actor> fmt::Debug for WeakSupervised<A> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("WeakSupervised")
    }
}

impl<A: Actor, S: Default + fmt::Debug> fmt::Debug for StateGuard<A, S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.state.fmt(f)
    }
}

/// Counters of the actors that panicked and were restarted.
#[derive(Clone, Debug, Default)]
pub(crate) struct Restarts {
    pub(crate) pool: Arc<AtomicU64>,
    pub(crate) registry: Arc<AtomicU64>,
    /// All sessions together.
    pub(crate) sessions: Arc<AtomicU64>,
    pub(crate) pruner: Arc<AtomicU64>,
}

#[cfg(test)]
mod tests;
