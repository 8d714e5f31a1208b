//! Access to the files of one session, on a server or on this host.

use std::pin::Pin;

use futures::TryStreamExt as _;
use isol8_api::{DirectoryListing, ErrorCode, SandboxPath, SessionId, TenantId};
use isol8_client::{Body, ClientError, RemoteIsol8};
use isol8_engine::local::LocalService;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio_util::io::ReaderStream;

use crate::commands::error::CommandError;
use crate::commands::target::Target;

/// Size of the chunks in which content is passed on, in bytes.
const CHUNK_SIZE: usize = 64 << 10;

/// Source of a file's content.
pub(super) type Content = Pin<Box<dyn AsyncRead + Send>>;

/// A session whose files are copied. Must be closed.
#[derive(Debug)]
pub(super) enum SessionFiles {
    Remote(RemoteIsol8),
    Local(Box<LocalService>, SessionId),
}

impl SessionFiles {
    /// Opens the session's files.
    ///
    /// # Errors
    /// Returns an error if this host has no such session. A server reports a missing session at the first file.
    pub(super) async fn open(target: &Target, session: SessionId) -> Result<Self, CommandError> {
        match target {
            Target::Remote(server) => Ok(Self::Remote(server.clone().with_session(session))),
            Target::Local(config) => match LocalService::existing(config, session.clone()).await? {
                Some(local) => Ok(Self::Local(Box::new(local), session)),
                None => {
                    Err(format!("Session not found: {session} does not exist on this host").into())
                }
            },
        }
    }

    pub(super) async fn close(self) -> Result<(), CommandError> {
        if let Self::Local(local, _) = self {
            local.end().await?;
        }
        Ok(())
    }

    pub(super) async fn list(&self, path: &str) -> Result<DirectoryListing, CommandError> {
        match self {
            Self::Remote(server) => Ok(server.list_files(path).await?),
            Self::Local(local, id) => {
                let path = SandboxPath::directory(path).map_err(|error| with_path(path, error))?;
                let listing = local
                    .service()
                    .list_files(TenantId::master(), id.clone(), &path);
                Ok(listing.await?)
            }
        }
    }

    /// Returns whether the path is a directory. A file or a missing path is not.
    pub(super) async fn is_directory(&self, path: &str) -> Result<bool, CommandError> {
        let code = match self {
            Self::Remote(server) => match server.list_files(path).await {
                Ok(_) => return Ok(true),
                Err(error) => (error.code(), CommandError::from(error)),
            },
            Self::Local(local, id) => {
                let path = SandboxPath::directory(path).map_err(|error| with_path(path, error))?;
                let listing = local
                    .service()
                    .list_files(TenantId::master(), id.clone(), &path);
                match listing.await {
                    Ok(_) => return Ok(true),
                    Err(error) => (Some(error.code()), CommandError::from(error)),
                }
            }
        };
        match code {
            (Some(ErrorCode::FileNotFound | ErrorCode::InvalidRequest), _) => Ok(false),
            (_, failure) => Err(failure),
        }
    }

    pub(super) async fn put(&self, path: &str, content: Content) -> Result<(), CommandError> {
        match self {
            Self::Remote(server) => {
                let pieces = ReaderStream::with_capacity(content, CHUNK_SIZE);
                let written = server.put_file(path, Body::wrap_stream(pieces)).await;
                written.map_err(|error| with_path(path, error))
            }
            Self::Local(local, id) => {
                let target = path.parse().map_err(|error| with_path(path, error))?;
                write(local, id, &target, content).await
            }
        }
    }

    pub(super) async fn get(
        &self,
        path: &str,
        to: &mut (impl AsyncWrite + Unpin),
    ) -> Result<(), CommandError> {
        match self {
            Self::Remote(server) => {
                let pieces = server.get_file_stream(path).await;
                let pieces = pieces.map_err(|error| with_path(path, error))?;
                let mut pieces = std::pin::pin!(pieces);
                while let Some(piece) = pieces
                    .try_next()
                    .await
                    .map_err(|error: ClientError| with_path(path, error))?
                {
                    to.write_all(&piece).await?;
                }
            }
            Self::Local(local, id) => {
                let source: SandboxPath = path.parse().map_err(|error| with_path(path, error))?;
                let service = local.service();
                let mut download = service
                    .download(TenantId::master(), id.clone(), &source)
                    .await?;
                while let Some(piece) = download.next().await? {
                    to.write_all(&piece).await?;
                }
            }
        }
        Ok(to.flush().await?)
    }
}

async fn write(
    local: &LocalService,
    id: &SessionId,
    path: &SandboxPath,
    mut content: Content,
) -> Result<(), CommandError> {
    let service = local.service();
    let mut upload = service.upload(TenantId::master(), id.clone(), path).await?;
    let mut piece = vec![0; CHUNK_SIZE];
    loop {
        let count = content.read(&mut piece).await?;
        let Some(read) = piece.get(..count).filter(|read| !read.is_empty()) else {
            return Ok(upload.finish().await?);
        };
        upload.write(read).await?;
    }
}

fn with_path(path: &str, error: impl std::fmt::Display) -> CommandError {
    CommandError(format!("{path}: {error}"))
}
