//! The events of a run, on their way to the client that follows it.
//!
//! While the program runs, few events wait here, and the program waits with them: a slow client slows its run down
//! and costs no memory. A program that has ended by its own timeout is not to wait for its client any more, because
//! it holds a sandbox and a turn: what it left in its pipes waits here instead, and that is bounded too.

use std::sync::Arc;

use isol8_api::StreamEvent;
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::{Instant, timeout_at};

use crate::error::ExecuteError;

/// Events between a run and its client. Together with an event's size it bounds what a slow client
/// costs; a fast one finds more than one at a time.
const EVENTS_UNDER_WAY: usize = 16;

/// Bytes that wait for a client after the end of its run: more than the windows of the sandbox's connection and the
/// program's pipes hold.
pub(super) const MOST_LEFT: usize = 1 << 20;

/// Bytes that an event costs beside its text.
const EVENT_OVERHEAD: usize = 256;

/// Bytes that an event costs while it waits.
pub(super) fn cost(event: &StreamEvent) -> usize {
    event.data.len() + EVENT_OVERHEAD
}

/// The sending side of a run's events. Clones share it.
#[derive(Clone, Debug)]
pub(crate) struct EventSender {
    events: UnboundedSender<Queued>,
    room: Arc<Semaphore>,
    /// In bytes.
    room_after_end: Arc<Semaphore>,
}

/// The receiving side of a run's events.
#[derive(Debug)]
pub(crate) struct EventReceiver {
    events: UnboundedReceiver<Queued>,
    room: Arc<Semaphore>,
}

/// An event, and the room that it takes until it is taken itself.
#[derive(Debug)]
struct Queued {
    event: StreamEvent,
    _room: OwnedSemaphorePermit,
}

/// Both ends.
pub(crate) fn channel() -> (EventSender, EventReceiver) {
    let (sender, events) = unbounded_channel();
    let room = Arc::new(Semaphore::new(EVENTS_UNDER_WAY));
    let sender = EventSender {
        events: sender,
        room: Arc::clone(&room),
        room_after_end: Arc::new(Semaphore::new(MOST_LEFT)),
    };
    (sender, EventReceiver { events, room })
}

impl EventSender {
    /// Sends an event as soon as there is room for it, and waits for that until `deadline`.
    ///
    /// # Errors
    /// Returns the event if there was no room in time.
    pub(super) async fn send(
        &self,
        event: StreamEvent,
        deadline: Instant,
    ) -> Result<Result<(), StreamEvent>, ExecuteError> {
        let room = Arc::clone(&self.room).acquire_owned();
        match timeout_at(deadline, room).await {
            Ok(Ok(room)) => self.put(event, room).map(Ok),
            // The client is gone.
            Ok(Err(_)) => Err(ExecuteError::Cancelled),
            Err(_) => Ok(Err(event)),
        }
    }

    /// Sends an event of a run that has ended, without waiting for its client.
    ///
    /// # Errors
    /// [`ExecuteError::Cancelled`] where more waits for the client than is kept for it.
    pub(super) fn send_after_end(&self, event: StreamEvent) -> Result<(), ExecuteError> {
        let bytes = u32::try_from(cost(&event)).unwrap_or(u32::MAX);
        let room = Arc::clone(&self.room_after_end).try_acquire_many_owned(bytes);
        self.put(event, room.map_err(|_| ExecuteError::Cancelled)?)
    }

    fn put(&self, event: StreamEvent, room: OwnedSemaphorePermit) -> Result<(), ExecuteError> {
        let queued = Queued { event, _room: room };
        self.events
            .send(queued)
            .map_err(|_| ExecuteError::Cancelled)
    }
}

impl EventReceiver {
    /// The next event; `None` where no run can send one any more.
    pub(crate) async fn recv(&mut self) -> Option<StreamEvent> {
        self.events.recv().await.map(|queued| queued.event)
    }

    /// The next event, where one waits.
    pub(crate) fn try_recv(&mut self) -> Option<StreamEvent> {
        self.events.try_recv().ok().map(|queued| queued.event)
    }
}

impl Drop for EventReceiver {
    fn drop(&mut self) {
        self.room.close();
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use isol8_api::{EventKind, Phase};

    use super::*;

    fn event(data: String) -> StreamEvent {
        StreamEvent::new(EventKind::Stdout, data, Phase::Code)
    }

    fn soon() -> Instant {
        Instant::now() + Duration::from_secs(1)
    }

    #[tokio::test(start_paused = true)]
    async fn few_events_wait_while_the_program_runs() {
        let (sender, mut receiver) = channel();
        let mut sent = 0;
        while sender
            .send(event(sent.to_string()), soon())
            .await
            .unwrap()
            .is_ok()
        {
            sent += 1;
        }
        assert_eq!(sent, EVENTS_UNDER_WAY);
        assert_eq!(receiver.recv().await.unwrap().data, "0");
        let again = sender.send(event("last".to_owned()), soon()).await;
        assert_eq!(again, Ok(Ok(())));
    }

    #[tokio::test(start_paused = true)]
    async fn what_an_ended_run_left_keeps_its_order_and_is_bounded() {
        let (sender, mut receiver) = channel();
        let first = sender.send(event("first".to_owned()), soon()).await;
        assert_eq!(first, Ok(Ok(())));
        let mut kept = 0;
        while sender.send_after_end(event("x".repeat(16 << 10))).is_ok() {
            kept += 16 << 10;
        }
        assert!((MOST_LEFT * 9 / 10..=MOST_LEFT).contains(&kept), "{kept}");
        assert_eq!(receiver.try_recv().unwrap().data, "first");
        assert_eq!(receiver.try_recv().unwrap().data.len(), 16 << 10);
    }

    #[tokio::test(start_paused = true)]
    async fn a_client_that_is_gone_is_waited_for_no_longer() {
        let (sender, receiver) = channel();
        for _ in 0..EVENTS_UNDER_WAY {
            assert_eq!(sender.send(event(String::new()), soon()).await, Ok(Ok(())));
        }
        drop(receiver);
        let sent = sender.send(event(String::new()), soon()).await;
        assert_eq!(sent, Err(ExecuteError::Cancelled));
        let sent = sender.send_after_end(event(String::new()));
        assert_eq!(sent, Err(ExecuteError::Cancelled));
    }
}
