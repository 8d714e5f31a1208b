//! The errors of a job, and their codes in the contract.

use std::time::Duration;

use isol8_api::{ByteSize, ErrorCode, Runtime, SessionId};
use isol8_backend::{BackendError, ControlError};
use isol8_protocol::FailureKind;

/// The reason why a job has no result. A program that fails or runs out of time has a result, and is not an error.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ExecuteError {
    /// The request cannot be served; the text names what is wrong with it.
    #[error("{0}")]
    Invalid(String),
    /// The content to be written does not fit.
    #[error("sandbox is full, raise sandboxSize or tmpSize or delete files: {0}")]
    NoSpace(String),
    /// The backend cannot run the runtime; the text names the fix.
    #[error("{0}")]
    RuntimeUnavailable(String),
    /// The setup script failed.
    #[error("Setup script {0}")]
    SetupFailed(PreparationFailed),
    /// Packages could not be installed.
    #[error("installPackages {0}")]
    InstallFailed(PreparationFailed),
    /// A session cannot change its runtime.
    #[error(
        "Cannot switch runtime of session {session} from {bound} to {asked}, use another session id or delete it first"
    )]
    RuntimeMismatch {
        /// The session.
        session: SessionId,
        /// The runtime that the session was created for.
        bound: Runtime,
        /// The runtime that was asked for.
        asked: Runtime,
    },
    /// The session to be created exists already.
    #[error(
        "session {session} exists already, use it as it is, delete it first, or choose another id"
    )]
    SessionExists {
        /// The session.
        session: SessionId,
    },
    /// The session's sandbox is gone, and its state with it.
    #[error("session {session} is lost, the next request starts a new one: {reason}")]
    SessionLost {
        /// The session.
        session: SessionId,
        /// How the sandbox was lost.
        reason: String,
    },
    /// The session was deleted while the job ran or waited in it.
    #[error("session {session} was deleted")]
    SessionDeleted {
        /// The session.
        session: SessionId,
    },
    /// There is no session of that id.
    #[error("Session not found")]
    SessionNotFound,
    /// The session's sandbox has no such file; the text names it.
    #[error("{0}")]
    FileNotFound(String),
    /// The session has reached the limit of concurrent file transfers.
    #[error("session {session} has {limit} file transfers under way, retry when some have ended")]
    TooManyTransfers {
        /// The session.
        session: SessionId,
        /// Largest number of transfers at once.
        limit: usize,
    },
    /// The session has reached the limit of waiting jobs.
    #[error("session {session} has {limit} requests waiting, retry when some have ended")]
    QueueFull {
        /// The session.
        session: SessionId,
        /// Largest number of waiting jobs.
        limit: usize,
    },
    /// The server has reached the limit of sessions.
    #[error("there are {limit} sessions already, delete one first")]
    TooManySessions {
        /// Largest number of sessions.
        limit: usize,
    },
    /// The tenant has reached its limit of sessions.
    #[error("there are {limit} sessions of this tenant already, delete one first")]
    TooManySessionsOfTenant {
        /// Largest number of sessions.
        limit: usize,
    },
    /// The server has reached the limits of running and waiting jobs.
    #[error("server is at its limit, retry in {} s", .retry_after.as_secs())]
    Overloaded {
        /// Time after which a client should retry.
        retry_after: Duration,
    },
    /// The tenant has reached its limits of running and waiting jobs.
    #[error("too many requests of this tenant, retry in {} s", .retry_after.as_secs())]
    TenantOverloaded {
        /// Time after which a client should retry.
        retry_after: Duration,
    },
    /// The service is shutting down, and accepts no new work.
    #[error("server is shutting down")]
    ShuttingDown,
    /// The backend does not answer, or could not make a sandbox.
    #[error("{0}")]
    BackendUnavailable(String),
    /// The sandbox died during the job.
    #[error("sandbox was lost during the run: {0}")]
    SandboxLost(String),
    /// The client that asked has gone.
    #[error("request was cancelled")]
    Cancelled,
    /// A bug of isol8.
    #[error("internal error: {0}")]
    Internal(String),
}

/// Returns the text after a colon, or nothing if the text is empty.
fn after_colon(text: &str) -> String {
    match text {
        "" => String::new(),
        _ => format!(": {text}"),
    }
}

/// A preparation (the setup script or the installation) that failed, so that the program was not run.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{cause}{}", after_colon(.stderr))]
pub struct PreparationFailed {
    /// Exit code of the preparation.
    pub exit_code: i32,
    /// Why the preparation failed.
    pub cause: FailureCause,
    /// Standard error of the preparation; empty if a client has followed it as events.
    pub stderr: String,
}

/// Why a preparation failed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FailureCause {
    /// The preparation ended by itself, or by a signal.
    #[error("failed with exit code {0}")]
    Exit(i32),
    /// The preparation took longer than it may.
    #[error("timed out after {} ms, raise {key}", .limit.as_millis())]
    TimedOut {
        /// How long the preparation may take.
        limit: Duration,
        /// The option or configuration key that gives it more time.
        key: &'static str,
    },
    /// The kernel killed a process of the preparation for want of memory.
    #[error("ran out of memory, which is limited to {0}: raise options.memoryLimit")]
    OutOfMemory(ByteSize),
}

impl ExecuteError {
    /// Returns the contract's code for this error.
    #[must_use]
    pub fn code(&self) -> ErrorCode {
        match self {
            Self::Invalid(_) | Self::NoSpace(_) => ErrorCode::InvalidRequest,
            Self::RuntimeUnavailable(_) => ErrorCode::RuntimeUnavailable,
            Self::SetupFailed(_) | Self::InstallFailed(_) => ErrorCode::SetupFailed,
            Self::RuntimeMismatch { .. } => ErrorCode::RuntimeMismatch,
            Self::SessionExists { .. } => ErrorCode::SessionExists,
            Self::SessionLost { .. } | Self::SessionDeleted { .. } => ErrorCode::SessionLost,
            Self::SessionNotFound => ErrorCode::SessionNotFound,
            Self::FileNotFound(_) => ErrorCode::FileNotFound,
            Self::QueueFull { .. }
            | Self::TooManyTransfers { .. }
            | Self::TooManySessionsOfTenant { .. }
            | Self::TenantOverloaded { .. } => ErrorCode::TooManyRequests,
            Self::TooManySessions { .. }
            | Self::Overloaded { .. }
            | Self::ShuttingDown
            | Self::Cancelled => ErrorCode::Unavailable,
            Self::BackendUnavailable(_) | Self::SandboxLost(_) => ErrorCode::BackendUnavailable,
            Self::Internal(_) => ErrorCode::Internal,
        }
    }

    /// Returns the time after which a client should retry, if a retry can help.
    #[must_use]
    pub fn retry_after(&self) -> Option<Duration> {
        match self {
            Self::Overloaded { retry_after } | Self::TenantOverloaded { retry_after } => {
                Some(*retry_after)
            }
            Self::QueueFull { .. } | Self::TooManyTransfers { .. } => Some(Duration::from_secs(1)),
            _ => None,
        }
    }
}

impl From<&BackendError> for ExecuteError {
    fn from(error: &BackendError) -> Self {
        match error {
            BackendError::RuntimeUnavailable { .. } | BackendError::ImageUnavailable { .. } => {
                Self::RuntimeUnavailable(error.to_string())
            }
            BackendError::Unavailable(_)
            | BackendError::Create(_)
            | BackendError::Limits(_)
            | BackendError::Destroy(_)
            | BackendError::Control(_)
            | BackendError::Io { .. } => Self::BackendUnavailable(error.to_string()),
        }
    }
}

impl From<ControlError> for ExecuteError {
    fn from(error: ControlError) -> Self {
        match error {
            ControlError::Closed(reason) => Self::SandboxLost(reason),
            ControlError::TimedOut(_) => Self::SandboxLost(error.to_string()),
            ControlError::TooLarge(text) => Self::Invalid(text),
            ControlError::Failed(failure) => match failure.kind {
                FailureKind::NotFound | FailureKind::Refused | FailureKind::Exhausted => {
                    Self::Invalid(failure.message)
                }
                FailureKind::NoSpace => Self::NoSpace(failure.message),
                // A failure that the guest cannot explain makes its sandbox suspect.
                FailureKind::Internal => Self::SandboxLost(failure.message),
            },
        }
    }
}
