//! The bytes that a guest may send on one stream.

use isol8_protocol::{GRANT_STEP, WINDOW};

/// A window that is renewed as what was sent is taken.
#[derive(Debug)]
pub(super) struct Allowance {
    /// Bytes that the guest may still send.
    left: u32,
    /// Bytes that were taken and not yet granted anew.
    taken: u32,
}

impl Default for Allowance {
    fn default() -> Self {
        Self {
            left: WINDOW,
            taken: 0,
        }
    }
}

impl Allowance {
    /// Counts what the guest sent; an error ends the connection.
    pub(super) fn spend(&mut self, bytes: usize) -> Result<(), String> {
        let size = u32::try_from(bytes).unwrap_or(u32::MAX);
        let left = self.left.checked_sub(size);
        self.left = left.ok_or_else(|| "guest sent more than its credit".to_owned())?;
        Ok(())
    }

    /// Counts bytes that were taken; returns the credit to grant, if it is time.
    pub(super) fn take(&mut self, bytes: usize) -> Option<u32> {
        let bytes = u32::try_from(bytes).unwrap_or(u32::MAX);
        self.taken = self.taken.saturating_add(bytes);
        if self.taken < GRANT_STEP {
            return None;
        }
        self.left = self.left.saturating_add(self.taken);
        Some(std::mem::take(&mut self.taken))
    }
}
