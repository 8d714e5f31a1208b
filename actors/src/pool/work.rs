//! Tasks for slow work: making, resetting and removing sandboxes. A panic in one is reported as an error, to the pool
//! that runs by then.

use std::sync::Arc;
use std::time::Duration;

use isol8_api::TenantId;
use isol8_backend::{BackendError, Limits, SandboxSpec};
use tokio::time::{Instant, timeout};

use super::message::{Acquire, Cleaned, Create, Created, PoolError, Removed};
use super::{Lease, Pool, PooledSandbox, Strategy};
use crate::run::SandboxHistory;
use crate::supervisor::WeakSupervised;
use crate::watch::destroy;

/// How long making a used sandbox new may take, limits included. The connection's own bound on a
/// reset is shorter.
const CLEAN_TIMEOUT: Duration = Duration::from_secs(60);

impl Pool {
    /// Starts to make a sandbox, for an order or ahead of time.
    pub(super) fn create(&self, spec: SandboxSpec, order: Option<u64>) {
        let spec = SandboxSpec {
            single_use: self.own.config.strategy == Strategy::Secure,
            ..spec
        };
        let backend = Arc::clone(&self.backend);
        let limit = self.own.config.create_timeout;
        let wanted = spec.clone();
        let closing = self.own.closing.clone();
        let begun = Instant::now();
        let making = async move {
            let making = timeout(limit, backend.create(&wanted));
            match closing.run_until_cancelled(making).await {
                Some(Ok(made)) => made.map_err(|error| PoolError::Backend(Arc::new(error))),
                Some(Err(_)) => Err(PoolError::TimedOut(limit)),
                None => Err(PoolError::Closed),
            }
        };
        self.own.handle().report(making, move |made| Created {
            made: made.unwrap_or(Err(PoolError::Panicked)),
            spec,
            order,
            took: begun.elapsed(),
        });
    }

    /// Makes a used sandbox as new.
    pub(super) fn reset(&self, held: PooledSandbox, owner: TenantId) {
        let limits = self.own.config.sandbox.limits;
        let used = held.clone();
        let closing = self.own.closing.clone();
        let begun = Instant::now();
        let cleaning = async move {
            let cleaning = timeout(CLEAN_TIMEOUT, cleaned(used, limits));
            match closing.run_until_cancelled(cleaning).await {
                Some(Ok(cleaned)) => cleaned.map_err(|error| error.to_string()),
                Some(Err(_)) => Err(format!("not done within {} s", CLEAN_TIMEOUT.as_secs())),
                None => Err("pool is shutting down".to_owned()),
            }
        };
        self.own.handle().report(cleaning, move |cleaned| Cleaned {
            cleaned: cleaned.unwrap_or_else(|panic| Err(panic.to_string())),
            held,
            owner,
            took: begun.elapsed(),
        });
    }

    /// Removes a sandbox.
    pub(super) fn destroy(&mut self, held: PooledSandbox) {
        let gone = destroy(held.sandbox);
        self.own.destroying += 1;
        self.own.handle().report(gone, |_| Removed);
    }
}

/// Gives a leased sandbox the limits that were asked for, or has another one made.
pub(super) async fn fit(mut lease: Lease, wanted: Acquire, pool: WeakSupervised<Pool>) {
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

async fn cleaned(mut held: PooledSandbox, limits: Limits) -> Result<PooledSandbox, BackendError> {
    held.sandbox.control().reset().await?;
    held.set_limits(limits).await?;
    // Usage between the end of the last run and the reset does not belong to the next run.
    let usage = held.sandbox.usage().await.ok();
    held.memory = SandboxHistory {
        usage,
        unreported_loss: false,
    };
    Ok(held)
}
