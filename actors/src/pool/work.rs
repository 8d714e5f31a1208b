//! Tasks for slow work: creating, resetting and removing sandboxes. A panic in a task is reported as an error to the
//! pool that runs by then.

use std::sync::Arc;
use std::time::Duration;

use isol8_api::TenantId;
use isol8_backend::{BackendError, Limits, SandboxSpec};
use tokio::time::{Instant, timeout};

use super::message::{Acquire, Create, Created, PoolError, Removed, ResetEnded};
use super::{Lease, Pool, Strategy};
use crate::sandbox::{PooledSandbox, SandboxHistory, destroy};
use crate::supervisor::WeakSupervised;

/// How long the reset of a sandbox may take, including its limits. The connection's own timeout of a reset is shorter.
const RESET_TIMEOUT: Duration = Duration::from_secs(60);

impl Pool {
    /// Starts to create a sandbox, for the request of a pending creation or ahead of time.
    pub(super) fn create(&self, spec: SandboxSpec, pending: Option<u64>) {
        let spec = SandboxSpec {
            single_use: self.state.config.strategy == Strategy::Secure,
            ..spec
        };
        let backend = Arc::clone(&self.backend);
        let limit = self.state.config.create_timeout;
        let wanted = spec.clone();
        let closing = self.state.closing.clone();
        let started = Instant::now();
        let making = async move {
            let making = timeout(limit, backend.create(&wanted));
            match closing.run_until_cancelled(making).await {
                Some(Ok(made)) => made.map_err(|error| PoolError::Backend(Arc::new(error))),
                Some(Err(_)) => Err(PoolError::TimedOut(limit)),
                None => Err(PoolError::Closed),
            }
        };
        self.state.handle().report(making, move |made| Created {
            made: made.unwrap_or(Err(PoolError::Panicked)),
            spec,
            pending,
            took: started.elapsed(),
        });
    }

    /// Starts to reset a used sandbox, so that it is as new.
    pub(super) fn reset(&self, held: PooledSandbox, owner: TenantId) {
        let limits = self.state.config.sandbox.limits;
        let dirty = held.clone();
        let closing = self.state.closing.clone();
        let started = Instant::now();
        let resetting = async move {
            let resetting = timeout(RESET_TIMEOUT, reset(dirty, limits));
            match closing.run_until_cancelled(resetting).await {
                Some(Ok(result)) => result.map_err(|error| error.to_string()),
                Some(Err(_)) => Err(format!("not done within {} s", RESET_TIMEOUT.as_secs())),
                None => Err("pool is shutting down".to_owned()),
            }
        };
        self.state
            .handle()
            .report(resetting, move |result| ResetEnded {
                result: result.unwrap_or_else(|panic| Err(panic.to_string())),
                held,
                owner,
                took: started.elapsed(),
            });
    }

    /// Starts to remove a sandbox.
    pub(super) fn destroy(&mut self, held: PooledSandbox) {
        let gone = destroy(held.sandbox);
        self.state.destroying += 1;
        self.state.handle().report(gone, |_| Removed);
    }

    /// Applies the requested limits to a leased sandbox. If that fails, another sandbox is created.
    pub(super) async fn apply_limits(
        mut lease: Lease,
        wanted: Acquire,
        pool: WeakSupervised<Self>,
    ) {
        match lease.held.set_limits(wanted.spec.limits).await {
            Ok(()) => {
                // If the requester is gone, the lease returns the sandbox when it is dropped.
                let _ = wanted.reply.send(Ok(lease));
            }
            Err(error) => {
                log::warn!(sandbox:% = lease.held.sandbox.id(), error:%; "limits could not be changed");
                lease.discard();
                pool.do_send(Create(wanted));
            }
        }
    }
}

async fn reset(mut held: PooledSandbox, limits: Limits) -> Result<PooledSandbox, BackendError> {
    held.sandbox.control().reset().await?;
    held.set_limits(limits).await?;
    // The next run must not be charged with usage between the last run and the reset.
    let usage = held.sandbox.usage().await.ok();
    held.history = SandboxHistory {
        usage,
        unreported_loss: false,
    };
    Ok(held)
}
