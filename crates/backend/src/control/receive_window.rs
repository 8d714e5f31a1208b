//! Flow control for the bytes that the guest sends on one stream.

use isol8_protocol::{GRANT_STEP, WINDOW};

/// The bytes that a guest may send on a stream. Consumed bytes are granted again.
#[derive(Debug)]
pub(super) struct ReceiveWindow {
    /// Bytes that the guest may still send.
    remaining: u32,
    /// Bytes that were consumed and not yet granted again.
    consumed: u32,
}

impl Default for ReceiveWindow {
    fn default() -> Self {
        Self {
            remaining: WINDOW,
            consumed: 0,
        }
    }
}

impl ReceiveWindow {
    /// Counts bytes that the guest sent; an error closes the connection.
    pub(super) fn receive(&mut self, bytes: usize) -> Result<(), String> {
        let size = u32::try_from(bytes).unwrap_or(u32::MAX);
        let remaining = self.remaining.checked_sub(size);
        self.remaining = remaining.ok_or_else(|| "guest sent more than its credit".to_owned())?;
        Ok(())
    }

    /// Counts bytes that were consumed. Returns the bytes to grant, once they reach [`GRANT_STEP`].
    pub(super) fn consume(&mut self, bytes: usize) -> Option<u32> {
        let bytes = u32::try_from(bytes).unwrap_or(u32::MAX);
        self.consumed = self.consumed.saturating_add(bytes);
        if self.consumed < GRANT_STEP {
            return None;
        }
        self.remaining = self.remaining.saturating_add(self.consumed);
        Some(std::mem::take(&mut self.consumed))
    }
}
