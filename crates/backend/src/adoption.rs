//! Adoption: a new process takes over the claimed sandboxes of a process that has ended.

use std::sync::Arc;
use std::time::Duration;

use futures::stream::{self, StreamExt as _};

use crate::claim::{Claim, Claims};
use crate::error::BackendError;
use crate::sandbox::Sandbox;
use crate::spec::SandboxId;

/// Sandboxes that are adopted at the same time.
const MAX_CONCURRENT_ADOPTIONS: usize = 8;

/// The outcome of adopting one sandbox that was claimed under an earlier process.
#[derive(Clone, Debug)]
pub struct Adopted {
    /// The session that the sandbox belongs to.
    pub claim: Claim,
    /// Time since the last use of the sandbox.
    pub idle: Duration,
    /// The sandbox with the limits that its claim names, or the reason why it is lost.
    pub sandbox: Result<Arc<dyn Sandbox>, String>,
}

/// Adopts all claimed sandboxes. The backend supplies `connect`, which finds a sandbox and connects to its
/// guest, and removes the sandbox if that fails. This function removes the other sandboxes that cannot be used
/// any more: those that a run was interrupted in, and those that refuse their limits.
///
/// # Errors
/// [`BackendError::Create`] if the task that reads the claims panics.
pub async fn adopt<F>(
    claims: Claims,
    connect: impl Fn(SandboxId) -> F,
) -> Result<Vec<Adopted>, BackendError>
where
    F: Future<Output = Result<Arc<dyn Sandbox>, String>>,
{
    // Reading from a disk may block.
    let found = tokio::task::spawn_blocking(move || claims.all()).await;
    let found = found.map_err(|error| BackendError::Create(format!("adoption: {error}")))?;
    let adopting = found.into_iter().map(|(id, claim, idle)| {
        let connecting = connect(id);
        async move {
            let sandbox = match connecting.await {
                Ok(sandbox) => restore(sandbox, &claim).await,
                lost => lost,
            };
            Adopted {
                claim,
                idle,
                sandbox,
            }
        }
    });
    let adopted = stream::iter(adopting).buffer_unordered(MAX_CONCURRENT_ADOPTIONS);
    Ok(adopted.collect().await)
}

/// Restores the limits of a sandbox, or destroys it and returns the reason.
async fn restore(sandbox: Arc<dyn Sandbox>, claim: &Claim) -> Result<Arc<dyn Sandbox>, String> {
    let lost = if sandbox.control().was_interrupted() {
        "the server ended during a run".to_owned()
    } else {
        match sandbox.set_limits(&claim.spec.limits).await {
            Ok(()) => return Ok(sandbox),
            Err(error) => error.to_string(),
        }
    };
    if let Err(error) = sandbox.destroy().await {
        log::warn!(sandbox:% = sandbox.id(), error:%; "lost sandbox was not removed");
    }
    Err(lost)
}
