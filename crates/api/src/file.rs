//! Requests and responses of the file routes.

use std::fmt;

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use serde::de::{Error, Visitor};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::value::{SandboxPath, SessionId};

/// Bytes that are base64 in JSON.
#[derive(Clone, PartialEq, Eq)]
pub struct Base64(pub Vec<u8>);

impl fmt::Debug for Base64 {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Base64({} bytes)", self.0.len())
    }
}

impl Serialize for Base64 {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&BASE64_STANDARD.encode(&self.0))
    }
}

impl<'de> Deserialize<'de> for Base64 {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_str(Base64Visitor)
    }
}

/// Decodes the borrowed text, without copying it first.
struct Base64Visitor;

impl Visitor<'_> for Base64Visitor {
    type Value = Base64;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a string")
    }

    fn visit_str<E: Error>(self, text: &str) -> Result<Base64, E> {
        BASE64_STANDARD
            .decode(text)
            .map(Base64)
            .map_err(|error| E::custom(format_args!("not base64: {error}")))
    }
}

/// Body of `POST /file`. Every member is required; the fields of this type are optional so that the response can
/// name the first missing member.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(rename_all = "camelCase")]
pub struct WriteFile {
    /// The session to whose sandbox the file is written.
    #[serde(default)]
    #[cfg_attr(feature = "openapi", schema(required = true, nullable = false))]
    pub session_id: Option<SessionId>,
    /// Path of the file. Parent directories are created; an existing file is replaced.
    #[serde(default)]
    #[cfg_attr(feature = "openapi", schema(required = true, nullable = false))]
    pub path: Option<SandboxPath>,
    /// The complete content.
    #[serde(default)]
    #[cfg_attr(feature = "openapi", schema(required = true, nullable = false))]
    pub content: Option<Base64>,
}

/// Response to a written file.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Written {
    /// Always true.
    pub ok: bool,
}

/// Response of `GET /file`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct FileBody {
    /// The complete content.
    pub content: Base64,
}

/// Response of `GET /session/{id}/files`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct DirectoryListing {
    /// Entries of the directory, sorted by name.
    pub entries: Vec<DirectoryEntry>,
    /// Whether the directory has more than 10,000 entries, so that some are missing here.
    pub truncated: bool,
}

impl DirectoryListing {
    /// Most entries of one response.
    pub const MAX_ENTRIES: usize = 10_000;
}

/// An entry of a directory.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct DirectoryEntry {
    /// The name. Bytes that are not UTF-8 are replaced by U+FFFD.
    pub name: String,
    /// Type of the entry; a link is not followed.
    #[serde(rename = "type")]
    pub kind: EntryType,
    /// Size in bytes.
    pub size: u64,
    /// Permission bits as four octal digits, for example `"0644"`.
    pub mode: String,
    /// Last change of the content, in milliseconds since 1970.
    pub mtime: i64,
}

/// Kinds of directory entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(rename_all = "lowercase")]
pub enum EntryType {
    /// A regular file.
    File,
    /// A directory.
    Directory,
    /// A symbolic link.
    Symlink,
    /// A pipe, a socket or a device.
    Other,
}
