//! Going on with what an earlier process left.

use std::sync::Arc;
use std::time::Duration;

use futures::stream::{self, StreamExt as _};

use crate::claim::{Claim, Claims};
use crate::error::BackendError;
use crate::sandbox::Sandbox;
use crate::spec::SandboxId;

/// Sandboxes that are connected to at the same time.
const AT_ONCE: usize = 8;

/// The fate of a sandbox that was claimed under an earlier process.
#[derive(Clone, Debug)]
pub struct Adopted {
    /// The claim of its owner.
    pub claim: Claim,
    /// Since it was last used.
    pub idle: Duration,
    /// The sandbox, with the limits that its claim names, or why it is lost.
    pub sandbox: Result<Arc<dyn Sandbox>, String>,
}

/// Adopts all claimed sandboxes. `connect` is the backend's part: it finds a sandbox and connects to its guest, and
/// removes it if that fails. Sandboxes that cannot be used any more are removed here.
///
/// # Errors
/// If the claims cannot be read.
pub async fn adopt<F>(
    claims: Claims,
    connect: impl Fn(SandboxId) -> F,
) -> Result<Vec<Adopted>, BackendError>
where
    F: Future<Output = Result<Arc<dyn Sandbox>, String>>,
{
    // A disk may let its reader wait.
    let found = tokio::task::spawn_blocking(move || claims.all()).await;
    let found = found.map_err(|error| BackendError::Create(format!("adoption: {error}")))?;
    let adopting = found.into_iter().map(|(id, claim, idle)| {
        let connecting = connect(id);
        async move {
            let sandbox = match connecting.await {
                Ok(sandbox) => go_on(sandbox, &claim).await,
                lost => lost,
            };
            Adopted {
                claim,
                idle,
                sandbox,
            }
        }
    });
    let adopted = stream::iter(adopting).buffer_unordered(AT_ONCE);
    Ok(adopted.collect().await)
}

async fn go_on(sandbox: Arc<dyn Sandbox>, claim: &Claim) -> Result<Arc<dyn Sandbox>, String> {
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
