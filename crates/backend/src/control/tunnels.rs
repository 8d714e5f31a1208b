//! The tunnels of one control connection.
//!
//! Slots bound the number of tunnels: a tunnel takes a slot when the guest opens it, and returns the slot
//! when its `Close` has been written to the guest. So memory does not grow if the user of a tunnel is slow, or if a
//! guest opens tunnels and never reads. The permits of the queue bound the data that the host sends on all tunnels
//! together.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use isol8_protocol::{MAX_TUNNELS, TunnelFrame, TunnelId};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio_util::sync::PollSemaphore;

use super::tunnel::TunnelState;

/// Most pieces of data, of at most [`CHUNK_SIZE`](isol8_protocol::CHUNK_SIZE) each, that may wait to be sent to one
/// guest. Enough to keep its socket busy.
const MAX_QUEUED_PIECES: usize = 16;

/// Every tunnel whose `Close` the host has not sent.
#[derive(Debug)]
pub(super) struct TunnelTable {
    open: Mutex<OpenTunnels>,
    slots: Arc<Semaphore>,
    room: Arc<Semaphore>,
}

#[derive(Debug, Default)]
struct OpenTunnels {
    states: HashMap<TunnelId, Arc<TunnelState>>,
    last: Option<TunnelId>,
    /// The guest is gone.
    is_closed: bool,
}

impl Default for TunnelTable {
    fn default() -> Self {
        Self {
            open: Mutex::default(),
            slots: Arc::new(Semaphore::new(MAX_TUNNELS)),
            room: Arc::new(Semaphore::new(MAX_QUEUED_PIECES)),
        }
    }
}

impl TunnelTable {
    fn lock(&self) -> MutexGuard<'_, OpenTunnels> {
        // Every change under the lock is a single operation: a panic cannot leave it half done.
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Checks that the guest may open this tunnel, and takes a slot for it; an error closes the connection.
    pub(super) fn admit(&self, id: TunnelId) -> Result<OwnedSemaphorePermit, String> {
        let mut open = self.lock();
        if open.last.is_some_and(|last| last >= id) {
            return Err("guest opened a tunnel twice".to_owned());
        }
        open.last = Some(id);
        let slot = Arc::clone(&self.slots).try_acquire_owned();
        slot.map_err(|_| format!("guest opened more than {MAX_TUNNELS} tunnels"))
    }

    pub(super) fn insert(&self, id: TunnelId) -> Arc<TunnelState> {
        let state = Arc::<TunnelState>::default();
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

    /// Passes a frame to its tunnel; an error closes the connection.
    pub(super) fn dispatch(&self, id: TunnelId, frame: TunnelFrame) -> Result<(), String> {
        let found = {
            let open = self.lock();
            if open.last.is_none_or(|last| last < id) {
                return Err("guest sent on a tunnel that it had not opened".to_owned());
            }
            open.states.get(&id).map(Arc::clone)
        };
        // A missing tunnel was dropped by its user while the frame was in transit.
        found.map_or(Ok(()), |state| state.put(frame))
    }

    /// Closes all tunnels because the guest is gone.
    pub(super) fn close_all(&self) {
        self.room.close();
        let mut open = self.lock();
        open.is_closed = true;
        open.states.values().for_each(|state| state.close());
    }
}
