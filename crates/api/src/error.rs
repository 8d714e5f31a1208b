//! Errors as clients see them.

use serde::{Deserialize, Serialize};

/// Body of every answer that is not a success.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct ErrorBody {
    /// The fault, and the fix.
    pub error: String,
    /// The kind, for a program.
    pub code: ErrorCode,
}

/// Kinds of error. Their HTTP statuses stand in one table of the server.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum ErrorCode {
    /// A member or parameter is missing, of the wrong type, or out of range.
    InvalidRequest,
    /// The contract has it, this server does not offer it.
    Unsupported,
    /// The backend cannot run this runtime.
    RuntimeUnavailable,
    /// The setup script failed.
    SetupFailed,
    /// No key was sent.
    Unauthorized,
    /// The key is not one of ours.
    Forbidden,
    /// The option weakens isolation, and no policy grants it.
    PolicyDenied,
    /// No such route.
    NotFound,
    /// The route exists, not for this method.
    MethodNotAllowed,
    /// No session of that id.
    SessionNotFound,
    /// No file or directory of that path in the session's sandbox.
    FileNotFound,
    /// The request's body did not arrive in time.
    RequestTimeout,
    /// The session is bound to another runtime.
    RuntimeMismatch,
    /// The session that was to be made is there already.
    SessionExists,
    /// The session's sandbox is gone, and its state with it; the id is free again.
    SessionLost,
    /// The request's body is too large.
    PayloadTooLarge,
    /// The session has as many requests waiting, or files under way, as it may.
    TooManyRequests,
    /// The server is at its limit, or going down.
    Unavailable,
    /// The backend does not answer.
    BackendUnavailable,
    /// A bug.
    Internal,
}
