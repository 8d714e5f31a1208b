//! Error responses.

use serde::{Deserialize, Serialize};

/// Body of every error response.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct ErrorBody {
    /// The problem and the fix, for display.
    pub error: String,
    /// The machine-readable kind.
    pub code: ErrorCode,
}

/// Kinds of error. A single table in the server defines their HTTP statuses.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum ErrorCode {
    /// A member or parameter is missing, of the wrong type, or out of range.
    InvalidRequest,
    /// The feature is part of the contract, but not offered by this server.
    Unsupported,
    /// The backend cannot run this runtime.
    RuntimeUnavailable,
    /// The setup script failed.
    SetupFailed,
    /// The request has no API key.
    Unauthorized,
    /// The API key is not valid.
    Forbidden,
    /// The option weakens isolation, and no policy permits it.
    PolicyDenied,
    /// The route does not exist.
    NotFound,
    /// The route does not accept this method.
    MethodNotAllowed,
    /// A session with this id does not exist.
    SessionNotFound,
    /// A file or directory with this path does not exist in the session's sandbox.
    FileNotFound,
    /// The body of the request did not arrive in time.
    RequestTimeout,
    /// The session is bound to another runtime.
    RuntimeMismatch,
    /// A session with the id of the new session already exists.
    SessionExists,
    /// The session's sandbox and state are lost; the id can be used for a new session.
    SessionLost,
    /// The body of the request is too large.
    PayloadTooLarge,
    /// The session has reached its limit of waiting requests or file transfers.
    TooManyRequests,
    /// The server is at its capacity limit, or shutting down.
    Unavailable,
    /// The backend does not answer.
    BackendUnavailable,
    /// An internal error, which is a bug of the server.
    Internal,
}
