//! The error of a sandbox of this host that cannot be used.

use std::path::PathBuf;

use isol8_actors::ExecuteError;
use isol8_api::SessionId;
use isol8_backend::BackendError;

/// The reason why no sandbox can be used.
#[derive(Debug, thiserror::Error)]
pub enum LocalError {
    /// The backend cannot be used. The text names the fix.
    #[error(transparent)]
    Backend(#[from] BackendError),
    /// The session cannot be used.
    #[error(transparent)]
    Execute(#[from] ExecuteError),
    /// Another command uses the session.
    #[error("session {0} is in use by another command, end that first")]
    Busy(SessionId),
    /// The session's directory cannot be used.
    #[error("{path}: {source}", path = .path.display())]
    Io {
        /// The directory.
        path: PathBuf,
        /// The cause.
        source: std::io::Error,
    },
}
