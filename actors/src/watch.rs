//! Notices the death of an idle sandbox.

use isol8_backend::Control;
use tokio::task::AbortHandle;

/// Calls a function when a sandbox's connection is closed. Dropping the watch cancels it.
#[derive(Debug)]
pub(crate) struct DeathWatch(AbortHandle);

impl DeathWatch {
    pub(crate) fn new(control: &Control, died: impl FnOnce(String) + Send + 'static) -> Self {
        let control = control.clone();
        let watching = tokio::spawn(async move { died(control.closed().await) });
        Self(watching.abort_handle())
    }
}

impl Drop for DeathWatch {
    fn drop(&mut self) {
        self.0.abort();
    }
}
