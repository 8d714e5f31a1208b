//! Sandboxes of this host without a server: one for a single run.

use isol8_actors::pool::{PoolSize, Strategy};
use isol8_actors::{Input, Job, JobStream, Service, ServiceConfig};
use isol8_api::TenantId;
use isol8_backend::BackendError;

use crate::backends::{self, Purpose};
use crate::config::Config;

/// What a command runs programs in.
#[derive(Debug)]
pub struct Local {
    service: Service,
}

impl Local {
    /// Starts what makes a sandbox for each run, and removes it afterwards.
    ///
    /// # Errors
    /// [`BackendError`], which names the fix.
    pub async fn start(config: &Config) -> Result<Self, BackendError> {
        let backend = backends::start(config, Purpose::Command).await?;
        Ok(Self {
            service: Service::start(backend, service_without_pool(config)),
        })
    }

    /// Runs a job. Dropping the stream ends it.
    #[must_use]
    pub fn stream(&self, job: Job, input: Option<Input>) -> JobStream {
        self.service
            .execute_stream(TenantId::master(), None, job, input)
    }

    /// Removes what is not to stay.
    ///
    /// # Errors
    /// What the backend could not remove.
    pub async fn end(self) -> Result<(), BackendError> {
        self.service.shutdown().await
    }
}

/// A service that makes one sandbox when it is asked for, and none ahead of time.
pub(crate) fn service_without_pool(config: &Config) -> ServiceConfig {
    let mut service = config.service();
    service.pool.sizes.clear();
    service.pool.size = PoolSize::fixed(0, 0);
    service.pool.strategy = Strategy::Secure;
    service
}
