//! Runs checked requests.

use isol8_actors::{ExecuteError, Input, JobStream, Service};
use isol8_api::{ExecutionResult, TenantId};

use crate::active::ActiveConfig;
use crate::jobs::{JobError, ParsedRequest};
use crate::remote_code::RemoteCode;

/// Runs checked requests, whose code it fetches if they name it by URL.
#[derive(Clone, Debug)]
pub struct Engine {
    service: Service,
    remote_code: RemoteCode,
}

/// The reason why a request has no result.
#[derive(Debug, thiserror::Error)]
pub enum EngineError {
    /// The code cannot be fetched.
    #[error(transparent)]
    Job(#[from] JobError),
    /// The job could not be run.
    #[error(transparent)]
    Execute(#[from] ExecuteError),
}

impl Engine {
    /// Returns an engine that runs jobs with this service, and caches fetched code in this many bytes.
    #[must_use]
    pub fn new(service: Service, code_cache_bytes: u64) -> Self {
        Self {
            service,
            remote_code: RemoteCode::new(code_cache_bytes),
        }
    }

    /// Returns the service, which owns the sessions.
    #[must_use]
    pub fn service(&self) -> &Service {
        &self.service
    }

    /// Runs a request, and returns its events. Dropping the stream ends the run.
    ///
    /// # Errors
    /// Returns a [`JobError`] if the code cannot be fetched. Later errors are events.
    pub async fn submit(
        &self,
        request: ParsedRequest,
        tenant: TenantId,
        input: Option<Input>,
        config: &ActiveConfig,
    ) -> Result<JobStream, JobError> {
        let (job, session) = self.remote_code.complete(request, config).await?;
        Ok(self.service.execute_stream(tenant, session, job, input))
    }

    /// Runs a request, and returns its result. Dropping the future ends the run.
    ///
    /// # Errors
    /// Returns an [`EngineError`] if the request has no result.
    pub async fn execute(
        &self,
        request: ParsedRequest,
        tenant: TenantId,
        config: &ActiveConfig,
    ) -> Result<ExecutionResult, EngineError> {
        let (job, session) = self.remote_code.complete(request, config).await?;
        Ok(self.service.execute(tenant, session, job).await?)
    }
}
