//! Why a job has no result, and what that is called in the contract.

use std::time::Duration;

use isol8_api::{ByteSize, ErrorCode, Runtime, SessionId};
use isol8_backend::{BackendError, ControlError};
use isol8_protocol::FailureKind;

/// A job that has no result. A program that fails or runs out of time is a result, not an error.
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
        /// The runtime that it was made for.
        bound: Runtime,
        /// The runtime that was asked for.
        asked: Runtime,
    },
    /// A session that was to be made is there already.
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
    /// As many files of the session are under way as may be.
    #[error("session {session} has {limit} file transfers under way, retry when some have ended")]
    TooManyTransfers {
        /// The session.
        session: SessionId,
        /// Largest number of transfers at once.
        limit: usize,
    },
    /// The session has as many jobs waiting as it may.
    #[error("session {session} has {limit} requests waiting, retry when some have ended")]
    QueueFull {
        /// The session.
        session: SessionId,
        /// Largest number of waiting jobs.
        limit: usize,
    },
    /// As many sessions as there may be.
    #[error("there are {limit} sessions already, delete one first")]
    TooManySessions {
        /// Largest number of sessions.
        limit: usize,
    },
    /// As many sessions of one tenant as there may be.
    #[error("there are {limit} sessions of this tenant already, delete one first")]
    TooManySessionsOfTenant {
        /// Largest number of sessions.
        limit: usize,
    },
    /// As many jobs run and wait as may.
    #[error("server is at its limit, retry in {} s", .retry_after.as_secs())]
    Overloaded {
        /// When it may be different.
        retry_after: Duration,
    },
    /// As many of the tenant's jobs run and wait as may.
    #[error("too many requests of this tenant, retry in {} s", .retry_after.as_secs())]
    TenantOverloaded {
        /// When it may be different.
        retry_after: Duration,
    },
    /// The service takes no new work.
    #[error("server is shutting down")]
    ShuttingDown,
    /// The backend does not answer, or could not make a sandbox.
    #[error("{0}")]
    BackendUnavailable(String),
    /// The sandbox died under the job.
    #[error("sandbox was lost during the run: {0}")]
    SandboxLost(String),
    /// The client that asked has gone.
    #[error("request was cancelled")]
    Cancelled,
    /// A bug.
    #[error("internal error: {0}")]
    Internal(String),
}

/// Nothing, or the text behind what introduces it.
fn after_colon(text: &str) -> String {
    match text {
        "" => String::new(),
        _ => format!(": {text}"),
    }
}

/// How a preparation (the setup script or the installation) failed, so that the program was not run.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{cause}{}", after_colon(.stderr))]
pub struct PreparationFailed {
    /// Exit code of the preparation.
    pub exit_code: i32,
    /// Why it ended so.
    pub cause: FailureCause,
    /// Standard error of the preparation; empty where a client followed it.
    pub stderr: String,
}

/// Why a preparation failed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FailureCause {
    /// The program ended by itself, or by a signal.
    #[error("failed with exit code {0}")]
    Exit(i32),
    /// Its time was over.
    #[error("timed out after {} ms, raise {key}", .limit.as_millis())]
    TimedOut {
        /// The time that it had.
        limit: Duration,
        /// The option or key that gives it more.
        key: &'static str,
    },
    /// The kernel ended a part of it for want of memory.
    #[error("ran out of memory, which is limited to {0}: raise options.memoryLimit")]
    OutOfMemory(ByteSize),
}

impl ExecuteError {
    /// The contract's name for this error.
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

    /// When to try again, where that helps.
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
