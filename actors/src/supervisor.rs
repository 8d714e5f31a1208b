//! Keeps an actor alive: after a panic a new actor is made, which takes over the state.
//!
//! Actix's own supervisor does not survive a panic in a handler: the actor's task ends, and its mailbox closes. So this
//! one holds the factory of the actor rather than the actor. An actor keeps its state (all that it knows and owns) in a
//! [`StateGuard`], which hands the state to the restarted actor when the actor is dropped for any reason. Tasks report by a
//! message to the handle, which reaches the actor that runs by then.

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

/// How often a message without an answer is sent. A message that makes the actor panic must not do so forever.
pub(crate) const ATTEMPTS: usize = 4;

/// How long a sender waits for a restarted actor.
const RESTART_TIMEOUT: Duration = Duration::from_secs(5);

/// Pause before the second restart in a row; doubled with each further one. The first is at once.
const BACK_OFF: Duration = Duration::from_millis(10);

/// Longest such pause; shorter than the senders' patience.
const MAX_BACK_OFF: Duration = Duration::from_secs(1);

/// An actor that has lived for this long has not failed in a row.
const STABLE_AFTER: Duration = Duration::from_secs(60);

/// No actor answers: it panics again and again, or has ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ActorGone;

/// A handle to whichever actor lives at the moment. The actor ends with the last of them.
pub struct Supervised<A: Actor> {
    post: Arc<ActorSlot<A>>,
}

/// A handle that does not keep its actor alive.
pub(crate) struct WeakSupervised<A: Actor> {
    post: Weak<ActorSlot<A>>,
}

/// The place where the address of the current actor is found.
struct ActorSlot<A: Actor> {
    name: &'static str,
    current: watch::Sender<Option<Addr<A>>>,
}

/// An actor's state, `E`, and its own handle. If the actor is dropped for any reason, the restarted actor gets the
/// state.
pub(crate) struct StateGuard<A: Actor, E: Default> {
    state: E,
    handoff: Option<oneshot::Sender<E>>,
    post: Weak<ActorSlot<A>>,
}

impl<A: Actor, E: Default> StateGuard<A, E> {
    /// The actor's own handle.
    pub(crate) fn handle(&self) -> WeakSupervised<A> {
        WeakSupervised {
            post: Weak::clone(&self.post),
        }
    }
}

impl<A: Actor, E: Default> Deref for StateGuard<A, E> {
    type Target = E;

    fn deref(&self) -> &E {
        &self.state
    }
}

impl<A: Actor, E: Default> DerefMut for StateGuard<A, E> {
    fn deref_mut(&mut self) -> &mut E {
        &mut self.state
    }
}

impl<A: Actor, E: Default> Drop for StateGuard<A, E> {
    fn drop(&mut self) {
        if let Some(handoff) = self.handoff.take() {
            // Without a supervisor there is no restarted actor, and what was owned is dropped.
            let _ = handoff.send(std::mem::take(&mut self.state));
        }
    }
}

impl<A: Actor<Context = Context<A>>> Supervised<A> {
    /// Starts an actor on the current arbiter, and the restarted actors after it. `make` puts one together;
    /// `restarts` counts the restarted actors.
    pub(crate) fn start<E: Default + Send + 'static>(
        name: &'static str,
        restarts: Arc<AtomicU64>,
        state: E,
        mut make: impl FnMut(StateGuard<A, E>) -> A + 'static,
    ) -> Self {
        let (current, _) = watch::channel(None);
        let post = Arc::new(ActorSlot { name, current });
        let weak = Arc::downgrade(&post);
        let mut place = move |state| {
            let post = weak.upgrade()?;
            let (handoff, left) = oneshot::channel();
            let life = StateGuard {
                state,
                handoff: Some(handoff),
                post: Weak::clone(&weak),
            };
            let address = make(life).start();
            post.current.send_replace(Some(address));
            Some(left)
        };
        let mut left = place(state);
        actix::spawn(async move {
            let mut in_a_row = 0;
            while let Some(ended) = left {
                let begun = Instant::now();
                // Every actor hands over its state; if the whole system ends, no one is left to take it.
                let Ok(state) = ended.await else { return };
                in_a_row = if begun.elapsed() < STABLE_AFTER {
                    in_a_row + 1
                } else {
                    0
                };
                tokio::time::sleep(pause(in_a_row)).await;
                left = place(state);
                if left.is_some() {
                    restarts.fetch_add(1, Ordering::Relaxed);
                    log::error!(actor = name, in_a_row; "actor panicked, and was restarted");
                }
            }
        });
        Self { post }
    }

    /// Sends a message that needs no answer. If the actor has just panicked, the restarted actor gets the message.
    pub(crate) fn do_send<M>(&self, message: M)
    where
        M: Message + Send + 'static,
        M::Result: Send,
        A: Handler<M>,
        A::Context: ToEnvelope<A, M>,
    {
        match self.post.living() {
            Some(address) => address.do_send(message),
            None => {
                let post = Arc::clone(&self.post);
                // Outside of a runtime no actor is left.
                if let Ok(runtime) = Handle::try_current() {
                    runtime.spawn(async move {
                        if let Some(address) = post.wait_living().await {
                            address.do_send(message);
                        }
                    });
                }
            }
        }
    }

    /// Asks, and asks the restarted actor where the actor panics before it answers.
    ///
    /// # Errors
    /// [`ActorGone`] where the actor panics again and again, or has ended.
    pub async fn ask<M>(&self, message: impl Fn() -> M) -> Result<M::Result, ActorGone>
    where
        M: Message + Send + 'static,
        M::Result: Send,
        A: Handler<M>,
        A::Context: ToEnvelope<A, M>,
    {
        for _ in 0..ATTEMPTS {
            let address = match self.post.living() {
                Some(address) => address,
                None => self.post.wait_living().await.ok_or(ActorGone)?,
            };
            if let Ok(answer) = address.send(message()).await {
                return Ok(answer);
            }
        }
        log::error!(actor = self.post.name; "actor panics again and again");
        Err(ActorGone)
    }
}

impl<A: Actor<Context = Context<A>>> ActorSlot<A> {
    /// The address, where the actor lives.
    fn living(&self) -> Option<Addr<A>> {
        self.current.borrow().clone().filter(Addr::connected)
    }

    /// The address, once the actor lives.
    async fn wait_living(&self) -> Option<Addr<A>> {
        let mut current = self.current.subscribe();
        let is_living = |address: &Option<Addr<A>>| address.as_ref().is_some_and(Addr::connected);
        let found = timeout(RESTART_TIMEOUT, current.wait_for(is_living)).await;
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
            post: self.post.upgrade()?,
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

    /// Runs work in a task of its own, in which a panic is only an error, and reports the outcome to the actor that
    /// runs by then.
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
        let working = tokio::spawn(work);
        tokio::spawn(async move { self.do_send(message(working.await)) });
    }
}

impl<A: Actor> Clone for Supervised<A> {
    fn clone(&self) -> Self {
        Self {
            post: Arc::clone(&self.post),
        }
    }
}

impl<A: Actor> Clone for WeakSupervised<A> {
    fn clone(&self) -> Self {
        Self {
            post: Weak::clone(&self.post),
        }
    }
}

impl<A: Actor> fmt::Debug for Supervised<A> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Supervised({})", self.post.name)
    }
}

impl<A: Actor> fmt::Debug for WeakSupervised<A> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("WeakSupervised")
    }
}

impl<A: Actor, E: Default + fmt::Debug> fmt::Debug for StateGuard<A, E> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.state.fmt(f)
    }
}

/// How often actors panicked and were restarted.
#[derive(Clone, Debug, Default)]
pub(crate) struct Restarts {
    pub(crate) pool: Arc<AtomicU64>,
    pub(crate) registry: Arc<AtomicU64>,
    /// All of them together.
    pub(crate) sessions: Arc<AtomicU64>,
    pub(crate) pruner: Arc<AtomicU64>,
}

#[cfg(test)]
mod tests;
