//! Files of sessions that there are.

use isol8_api::file::DirectoryListing;
use isol8_api::{SandboxPath, SessionId, TenantId};

use super::Service;
use crate::error::ExecuteError;
use crate::files::{self, Download, Transfer, Upload};
use crate::job::Job;
use crate::registry;
use crate::session::SessionKey;

impl Service {
    /// Begins to write a file in a session's sandbox, beside whatever runs there.
    ///
    /// # Errors
    /// [`ExecuteError::SessionNotFound`], [`ExecuteError::SessionLost`],
    /// [`ExecuteError::TooManyTransfers`], [`ExecuteError::ShuttingDown`].
    pub async fn upload(
        &self,
        tenant: TenantId,
        session: SessionId,
        path: &SandboxPath,
    ) -> Result<Upload, ExecuteError> {
        Upload::open(self.visit(tenant, session).await?, path)
    }

    /// Uploads like [`Self::upload`], and creates a session that does not exist by a job without a program, which
    /// describes its sandbox.
    ///
    /// # Errors
    /// As [`Self::upload`] and [`Self::execute`]; [`ExecuteError::RuntimeMismatch`] if the session has another runtime.
    pub async fn upload_or_create(
        &self,
        tenant: TenantId,
        session: SessionId,
        path: &SandboxPath,
        job: Job,
    ) -> Result<Upload, ExecuteError> {
        let visit = self.visit(tenant.clone(), session.clone()).await;
        match visit {
            Err(ExecuteError::SessionNotFound) => {
                self.execute(tenant.clone(), Some(session.clone()), job)
                    .await?;
                self.upload(tenant, session, path).await
            }
            Ok(visit) if visit.runtime() != job.runtime() => Err(ExecuteError::RuntimeMismatch {
                session,
                bound: visit.runtime(),
                asked: job.runtime(),
            }),
            visit => Upload::open(visit?, path),
        }
    }

    /// Begins to read a file of a session's sandbox.
    ///
    /// # Errors
    /// As [`Self::upload`].
    pub async fn download(
        &self,
        tenant: TenantId,
        session: SessionId,
        path: &SandboxPath,
    ) -> Result<Download, ExecuteError> {
        Download::open(self.visit(tenant, session).await?, path)
    }

    /// Lists a directory of a session's sandbox.
    ///
    /// # Errors
    /// As [`Self::upload`]; also if the directory does not exist.
    pub async fn list_files(
        &self,
        tenant: TenantId,
        session: SessionId,
        path: &SandboxPath,
    ) -> Result<DirectoryListing, ExecuteError> {
        files::list(self.visit(tenant, session).await?, path).await
    }

    async fn visit(&self, tenant: TenantId, id: SessionId) -> Result<Transfer, ExecuteError> {
        let shared = &self.shared;
        let counted = self.count()?;
        let key = SessionKey { tenant, id };
        let access = shared
            .registry
            .ask(|| registry::Open(key.clone()))
            .await??;
        Ok(Transfer {
            access,
            stop: shared.stop.child_token(),
            _counted: counted,
        })
    }
}
