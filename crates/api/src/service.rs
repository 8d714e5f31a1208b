//! Requests and responses of the session and service routes.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::content::FileContent;
use crate::object;
use crate::request::Options;
use crate::value::{Runtime, SessionId, TenantId};

/// Response of `GET /health`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(rename_all = "camelCase")]
pub struct Health {
    /// Always `"ok"`.
    pub status: String,
    /// Version of the server.
    pub version: String,
    /// The backend that runs sandboxes: `"native"` or `"docker"`.
    pub backend: String,
    /// The reason why this backend was chosen, without details of the host. The server's log has the details.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub backend_reason: Option<String>,
}

/// Response of `GET /sessions`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct SessionList {
    /// Every session that the caller may see.
    pub sessions: Vec<SessionInfo>,
}

/// Body of `POST /sessions`.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(rename_all = "camelCase")]
pub struct CreateSession {
    /// Name of the session; if it is missing, the server chooses a name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub id: Option<SessionId>,
    /// The runtime of the session. Aliases are accepted, as in a request.
    #[serde(deserialize_with = "Runtime::deserialize_alias")]
    pub runtime: Runtime,
    /// Sizes, image and network of the session's sandbox, and default limits of its requests: `cpuLimit`,
    /// `memoryLimit`, `pidsLimit`, `sandboxSize`, `tmpSize`, `image`, `network`. Options that apply to a single
    /// request are refused.
    #[serde(
        default,
        skip_serializing_if = "Option::is_none",
        deserialize_with = "object::optional"
    )]
    pub options: Option<Options>,
    /// Environment variables of all requests of the session. A request's own variables take precedence. The
    /// variables are set when the interpreter starts, so variables that it reads only then have an effect.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub env: BTreeMap<String, String>,
    /// Map of absolute path to content. The files are written before the response.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub files: BTreeMap<String, FileContent>,
    /// Names and values for the client's own use. Their number and size are checked; nothing uses them yet.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub metadata: BTreeMap<String, String>,
}

impl CreateSession {
    /// Returns a request for a session of this runtime, with defaults for everything else.
    #[must_use]
    pub fn new(runtime: Runtime) -> Self {
        Self {
            id: None,
            runtime,
            options: None,
            env: BTreeMap::new(),
            files: BTreeMap::new(),
            metadata: BTreeMap::new(),
        }
    }
}

/// Description of a session.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(rename_all = "camelCase")]
pub struct SessionInfo {
    /// Name of the session.
    pub id: SessionId,
    /// Whether a request of the session is running.
    pub is_active: bool,
    /// End of the last request, in milliseconds since 1970.
    pub last_accessed_at: u64,
    /// The runtime of the session.
    pub runtime: Runtime,
    /// Time of the first request, in milliseconds since 1970.
    pub created_at: u64,
    /// Id of the session's sandbox.
    pub container_id: String,
    /// Time at which the session expires unless it is used, in milliseconds since 1970. Left out if sessions do
    /// not expire.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub expires_at: Option<u64>,
    /// Tenant that the session belongs to; only in responses to the master key.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tenant_id: Option<TenantId>,
}

/// Response of `DELETE /session/{id}`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Deleted {
    /// Always true: deleting a session that does not exist succeeds.
    pub ok: bool,
}

/// Response of `GET /ready`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Ready {
    /// Whether a load balancer should send requests to this server.
    pub ready: bool,
    /// The reason if the server is not ready.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
}

/// Body of `POST /cleanup`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(default)]
pub struct Cleanup {
    /// Whether outdated images are removed as well.
    pub images: bool,
}

impl Default for Cleanup {
    fn default() -> Self {
        Self { images: true }
    }
}

/// Response of `POST /cleanup`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct CleanedUp {
    /// Whether everything was removed.
    pub ok: bool,
    /// Sessions of all tenants.
    pub sessions: Removed,
    /// Sandboxes that belonged to no living server.
    pub containers: Removed,
    /// Images that newer ones have replaced; left out if the request excluded images.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub images: Option<Removed>,
}

/// Result of removing one kind of resource.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Removed {
    /// Number of removed resources.
    pub removed: usize,
    /// Number of resources that could not be removed.
    pub failed: usize,
    /// Reasons of the failures.
    pub errors: Vec<String>,
}

impl Removed {
    /// Adds the result of another removal.
    pub fn add(&mut self, other: Self) {
        self.removed += other.removed;
        self.failed += other.failed;
        self.errors.extend(other.errors);
    }

    /// Converts the result of a removal that continues after a failure and returns the first error.
    #[must_use]
    pub fn from_result(removal: Result<usize, impl ToString>) -> Self {
        match removal {
            Ok(removed) => Self {
                removed,
                ..Self::default()
            },
            Err(error) => Self {
                failed: 1,
                errors: vec![error.to_string()],
                ..Self::default()
            },
        }
    }
}
