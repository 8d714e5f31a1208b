//! The tunnels of one connection.
//!
//! The number of tunnels is bounded by the slots: a tunnel takes one when the guest opens it, and gives it back when
//! its `Close` was written to the guest. So neither tunnels whose user is slow nor a guest that opens and never reads
//! can make anything grow. Bytes that the host sends on all of them together are bounded by the room in the queue.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use isol8_protocol::{MAX_TUNNELS, TunnelFrame, TunnelId};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio_util::sync::PollSemaphore;

use super::tunnel::State;

/// Pieces of data, of at most [`CHUNK_SIZE`](isol8_protocol::CHUNK_SIZE), that may wait to be sent to one
/// guest. Enough for its socket to be kept busy.
const ROOM: usize = 16;

/// Every tunnel whose `Close` the host has not sent.
#[derive(Debug)]
pub(super) struct Table {
    open: Mutex<Open>,
    slots: Arc<Semaphore>,
    room: Arc<Semaphore>,
}

#[derive(Debug, Default)]
struct Open {
    states: HashMap<TunnelId, Arc<State>>,
    last: Option<TunnelId>,
    /// The guest is gone.
    is_closed: bool,
}

impl Default for Table {
    fn default() -> Self {
        Self {
            open: Mutex::default(),
            slots: Arc::new(Semaphore::new(MAX_TUNNELS)),
            room: Arc::new(Semaphore::new(ROOM)),
        }
    }
}

impl Table {
    fn lock(&self) -> MutexGuard<'_, Open> {
        // Every change under the lock is a single operation: a panic cannot leave it half done.
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Checks that the guest may open this one; an error ends the connection.
    pub(super) fn admit(&self, id: TunnelId) -> Result<OwnedSemaphorePermit, String> {
        let mut open = self.lock();
        if open.last.is_some_and(|last| last >= id) {
            return Err("guest opened a tunnel twice".to_owned());
        }
        open.last = Some(id);
        let slot = Arc::clone(&self.slots).try_acquire_owned();
        slot.map_err(|_| format!("guest opened more than {MAX_TUNNELS} tunnels"))
    }

    pub(super) fn insert(&self, id: TunnelId) -> Arc<State> {
        let state = Arc::<State>::default();
        let mut open = self.lock();
        if open.is_closed {
            state.close();
        }
        open.states.insert(id, Arc::clone(&state));
        state
    }

    pub(super) fn remove(&self, id: TunnelId) {
        self.lock().states.remove(&id);
    }

    pub(super) fn room(&self) -> PollSemaphore {
        PollSemaphore::new(Arc::clone(&self.room))
    }

    /// Hands a frame to its tunnel; an error ends the connection.
    pub(super) fn dispatch(&self, id: TunnelId, frame: TunnelFrame) -> Result<(), String> {
        let found = {
            let open = self.lock();
            if open.last.is_none_or(|last| last < id) {
                return Err("guest sent on a tunnel that it had not opened".to_owned());
            }
            open.states.get(&id).map(Arc::clone)
        };
        // A tunnel that is not found was dropped by its user while frames were under way.
        found.map_or(Ok(()), |state| state.put(frame))
    }

    /// The guest is gone, and with it all of them.
    pub(super) fn close_all(&self) {
        self.room.close();
        let mut open = self.lock();
        open.is_closed = true;
        open.states.values().for_each(|state| state.close());
    }
}
