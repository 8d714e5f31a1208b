//! What the session and service routes answer.

use serde::{Deserialize, Serialize};

use crate::value::{Runtime, SessionId, TenantId};

/// `GET /health`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Health {
    /// `"ok"`.
    pub status: String,
    /// The server's version.
    pub version: String,
    /// The backend that runs sandboxes: `"native"` or `"docker"`.
    pub backend: String,
}

/// `GET /sessions`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SessionList {
    /// Every session that the caller may see.
    pub sessions: Vec<SessionInfo>,
}

/// One session.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct SessionInfo {
    /// The client's name for it.
    pub id: SessionId,
    /// Whether a request is running in it.
    pub is_active: bool,
    /// End of the last request, in milliseconds since 1970.
    pub last_accessed_at: u64,
    /// The runtime it is bound to.
    pub runtime: Runtime,
    /// Its first request, in milliseconds since 1970.
    pub created_at: u64,
    /// The sandbox it owns.
    pub container_id: String,
    /// Whose it is; only the master key is told.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tenant_id: Option<TenantId>,
}

/// `DELETE /session/{id}`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Deleted {
    /// Always true: a session that is not there is as good as deleted.
    pub ok: bool,
}
