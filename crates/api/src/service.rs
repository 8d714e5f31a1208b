//! Answers of the session and service routes.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::content::FileContent;
use crate::object;
use crate::request::Options;
use crate::value::{Runtime, SessionId, TenantId};

/// `GET /health`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(rename_all = "camelCase")]
pub struct Health {
    /// `"ok"`.
    pub status: String,
    /// The server's version.
    pub version: String,
    /// The backend that runs sandboxes: `"native"` or `"docker"`.
    pub backend: String,
    /// Why it is that backend, without details of the host, which the log has.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub backend_reason: Option<String>,
}

/// `GET /sessions`.
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
    /// The session's name; without one the server chooses a name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub id: Option<SessionId>,
    /// The runtime that it is bound to. Aliases are accepted, as in a request.
    #[serde(deserialize_with = "Runtime::deserialize_alias")]
    pub runtime: Runtime,
    /// Sizes, image and network of its sandbox, and limits for those of its requests that name none: `cpuLimit`,
    /// `memoryLimit`, `pidsLimit`, `sandboxSize`, `tmpSize`, `image`, `network`. Options that belong to a single
    /// request are refused.
    #[serde(
        default,
        skip_serializing_if = "Option::is_none",
        deserialize_with = "object::optional"
    )]
    pub options: Option<Options>,
    /// Environment of all its requests; one that sets the same variable goes first. Variables that an interpreter
    /// reads at its start are there then.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub env: BTreeMap<String, String>,
    /// Absolute path to content; written before the answer.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub files: BTreeMap<String, FileContent>,
    /// Names and texts of the client's own. Their number and size are checked; nothing uses them yet.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub metadata: BTreeMap<String, String>,
}

impl CreateSession {
    /// A session of this runtime, and nothing more.
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

/// A session.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
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
    /// When the session ends if it stays idle, in milliseconds since 1970; left out if sessions do not end by
    /// themselves.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub expires_at: Option<u64>,
    /// The tenant that owns the session; shown to the master key only.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tenant_id: Option<TenantId>,
}

/// `DELETE /session/{id}`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Deleted {
    /// Always true: a session that is not there is as good as deleted.
    pub ok: bool,
}

/// `GET /ready`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Ready {
    /// Whether requests are best sent here.
    pub ready: bool,
    /// Why not, where they are not.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
}

/// Body of `POST /cleanup`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(default)]
pub struct Cleanup {
    /// Whether outdated images go as well.
    pub images: bool,
}

impl Default for Cleanup {
    fn default() -> Self {
        Self { images: true }
    }
}

/// Answer of `POST /cleanup`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct CleanedUp {
    /// Whether nothing is left.
    pub ok: bool,
    /// Sessions of all tenants.
    pub sessions: Removed,
    /// Sandboxes without an owner.
    pub containers: Removed,
    /// Images that a newer one has replaced; left out where they were not asked for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub images: Option<Removed>,
}

/// The removals of one kind.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Removed {
    /// How many are gone.
    pub removed: usize,
    /// How many are left.
    pub failed: usize,
    /// Why.
    pub errors: Vec<String>,
}

impl Removed {
    /// Adds what another removal came to.
    pub fn add(&mut self, other: Self) {
        self.removed += other.removed;
        self.failed += other.failed;
        self.errors.extend(other.errors);
    }

    /// Returns the outcome of a removal that reports its first failure and goes on.
    #[must_use]
    pub fn by(removal: Result<usize, impl ToString>) -> Self {
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
