//! The queue of events between a run and the client that follows it.
//!
//! While the program runs, few events are queued, and the program waits for room: a slow client slows its run down and
//! costs no memory. After its timeout a run no longer waits for its client, because it occupies a sandbox and a turn.
//! The rest of its output is queued instead, up to [`MAX_LEFT_BYTES`].

use std::sync::Arc;

use isol8_api::StreamEvent;
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::{Instant, timeout_at};

use crate::error::ExecuteError;

/// Highest number of queued events while the program runs. Together with an event's size it bounds the memory of a slow
/// client. The number is larger than 1 so that a fast client can take several events at a time.
const MAX_QUEUED_EVENTS: usize = 16;

/// Highest number of bytes that are queued for a client after the end of its run: more than the windows of the
/// sandbox's connection and the program's pipes hold.
pub(super) const MAX_LEFT_BYTES: usize = 1 << 20;

/// Bytes that a queued event takes in addition to its text.
const EVENT_OVERHEAD: usize = 256;

/// Returns the bytes that a queued event takes.
pub(super) fn cost(event: &StreamEvent) -> usize {
    event.data.len() + EVENT_OVERHEAD
}

/// The sending side of a run's events. Clones share it.
#[derive(Clone, Debug)]
pub(crate) struct EventSender {
    events: UnboundedSender<Queued>,
    room: Arc<Semaphore>,
    /// Room for events after the run's end, in bytes.
    room_after_end: Arc<Semaphore>,
}

/// The receiving side of a run's events.
#[derive(Debug)]
pub(crate) struct EventReceiver {
    events: UnboundedReceiver<Queued>,
    room: Arc<Semaphore>,
}

/// A queued event, with the permit for its room.
#[derive(Debug)]
struct Queued {
    event: StreamEvent,
    _room: OwnedSemaphorePermit,
}

/// Returns both ends of a queue.
pub(crate) fn channel() -> (EventSender, EventReceiver) {
    let (sender, events) = unbounded_channel();
    let room = Arc::new(Semaphore::new(MAX_QUEUED_EVENTS));
    let sender = EventSender {
        events: sender,
        room: Arc::clone(&room),
        room_after_end: Arc::new(Semaphore::new(MAX_LEFT_BYTES)),
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
            // The client has gone.
            Ok(Err(_)) => Err(ExecuteError::Cancelled),
            Err(_) => Ok(Err(event)),
        }
    }

    /// Sends an event of a run that has ended, without waiting for its client.
    ///
    /// # Errors
    /// [`ExecuteError::Cancelled`] if more is queued for the client than [`MAX_LEFT_BYTES`].
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
    /// Returns the next event; `None` if all senders are gone.
    pub(crate) async fn recv(&mut self) -> Option<StreamEvent> {
        self.events.recv().await.map(|queued| queued.event)
    }

    /// Returns the next event, if one is queued.
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
        assert_eq!(sent, MAX_QUEUED_EVENTS);
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
        assert!(
            (MAX_LEFT_BYTES * 9 / 10..=MAX_LEFT_BYTES).contains(&kept),
            "{kept}"
        );
        assert_eq!(receiver.try_recv().unwrap().data, "first");
        assert_eq!(receiver.try_recv().unwrap().data.len(), 16 << 10);
    }

    #[tokio::test(start_paused = true)]
    async fn a_client_that_is_gone_is_waited_for_no_longer() {
        let (sender, receiver) = channel();
        for _ in 0..MAX_QUEUED_EVENTS {
            assert_eq!(sender.send(event(String::new()), soon()).await, Ok(Ok(())));
        }
        drop(receiver);
        let sent = sender.send(event(String::new()), soon()).await;
        assert_eq!(sent, Err(ExecuteError::Cancelled));
        let sent = sender.send_after_end(event(String::new()));
        assert_eq!(sent, Err(ExecuteError::Cancelled));
    }
}
