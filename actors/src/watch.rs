//! Notices the death of an idle sandbox.

use std::sync::Arc;
use std::time::Duration;

use isol8_backend::{Control, Sandbox};
use tokio::task::AbortHandle;

/// How long the removal of a sandbox is waited for. The backend tries again at shutdown and in its sweep.
const DESTROY_TIMEOUT: Duration = Duration::from_secs(60);

/// Calls back once a connection is gone, unless dropped before.
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

/// Removes a sandbox in a task of its own; the future says when that is done, however it went.
pub(crate) fn destroy(sandbox: Arc<dyn Sandbox>) -> impl Future<Output = ()> + use<> {
    let id = sandbox.id().clone();
    let removing =
        tokio::spawn(async move { tokio::time::timeout(DESTROY_TIMEOUT, sandbox.destroy()).await });
    async move {
        match removing.await {
            Ok(Ok(Ok(()))) => {}
            Ok(Ok(Err(error))) => log::warn!(sandbox:% = id, error:%; "sandbox was not removed"),
            Ok(Err(_)) => log::warn!(sandbox:% = id; "sandbox was not removed in time"),
            Err(error) => log::error!(sandbox:% = id, error:%; "removing a sandbox panicked"),
        }
    }
}
