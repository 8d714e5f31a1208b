//! A sandbox, and the facts about it that its owner keeps: the pool while the sandbox is idle or leased, then the
//! session that takes it over.

use std::sync::Arc;
use std::time::Duration;

use isol8_backend::{BackendError, Limits, Sandbox, SandboxSpec, SandboxUsage};
use tokio::time::{Instant, timeout};

/// How long changing limits may take: a few writes to files of the kernel, or one engine call.
const LIMITS_TIMEOUT: Duration = Duration::from_secs(10);

/// How long the removal of a sandbox is waited for. The backend tries again at shutdown and in its sweep.
const DESTROY_TIMEOUT: Duration = Duration::from_secs(60);

/// A sandbox, and what is known about it.
#[derive(Clone, Debug)]
pub struct PooledSandbox {
    /// The sandbox.
    pub sandbox: Arc<dyn Sandbox>,
    /// When the sandbox was created.
    pub made: Instant,
    /// The specification that the sandbox was created for, with the limits that apply now.
    pub spec: SandboxSpec,
    /// Facts about its last run.
    pub history: SandboxHistory,
}

impl PooledSandbox {
    /// Applies `limits`, unless they apply already.
    ///
    /// # Errors
    /// After an error some of the old limits may still apply, so the sandbox should be destroyed.
    pub async fn set_limits(&mut self, limits: Limits) -> Result<(), BackendError> {
        if self.spec.limits == limits {
            return Ok(());
        }
        timeout(LIMITS_TIMEOUT, self.sandbox.set_limits(&limits))
            .await
            .map_err(|_| BackendError::Limits("no answer in time".to_owned()))??;
        self.spec.limits = limits;
        Ok(())
    }
}

/// Facts about a sandbox that its owner keeps between runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SandboxHistory {
    /// Usage at the last measurement; `None` if it is not known.
    pub usage: Option<SandboxUsage>,
    /// Set if the interpreter's state was lost and no result has reported that yet.
    pub unreported_loss: bool,
}

impl SandboxHistory {
    /// Returns the history of a sandbox that was just created.
    #[must_use]
    pub fn unused() -> Self {
        Self {
            usage: Some(SandboxUsage::default()),
            unreported_loss: false,
        }
    }

    /// Returns the history of a sandbox whose last run ended in an unknown state.
    #[must_use]
    pub fn unknown() -> Self {
        Self {
            usage: None,
            unreported_loss: true,
        }
    }
}

/// Removes a sandbox in a task of its own. The future completes when the removal has ended, with success or not.
pub(crate) fn destroy(sandbox: Arc<dyn Sandbox>) -> impl Future<Output = ()> + use<> {
    let id = sandbox.id().clone();
    let removing = tokio::spawn(async move { timeout(DESTROY_TIMEOUT, sandbox.destroy()).await });
    async move {
        match removing.await {
            Ok(Ok(Ok(()))) => {}
            Ok(Ok(Err(error))) => log::warn!(sandbox:% = id, error:%; "sandbox was not removed"),
            Ok(Err(_)) => log::warn!(sandbox:% = id; "sandbox was not removed in time"),
            Err(error) => log::error!(sandbox:% = id, error:%; "removing a sandbox panicked"),
        }
    }
}
