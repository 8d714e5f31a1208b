//! The HTTP contract as types: what clients send, what the server answers.
//!
//! Two kinds of types live here. The *wire* types mirror the JSON, field for field, and accept
//! what older clients send ([`request`], [`result`], [`stream`], [`mod@file`], [`network`],
//! [`service`], [`error`]). The *value* types ([`value`]) hold a checked string or number; what takes
//! one never checks it again.
//!
//! This crate does no I/O, and knows neither the server nor any backend: client programs depend
//! on it alone.

pub mod auth;
mod content;
mod encoding;
pub mod error;
pub mod file;
pub mod network;
mod object;
#[cfg(feature = "openapi")]
mod openapi;
pub mod request;
pub mod result;
#[cfg(feature = "schemars")]
mod schema;
pub mod service;
pub mod stream;
pub mod value;

pub use content::FileContent;
pub use encoding::{Encoding, NotBase64};
pub use error::{ErrorBody, ErrorCode};
pub use file::{DirectoryEntry, DirectoryListing, EntryType};
pub use network::{NetworkAction, NetworkFilter, NetworkLogEntry};
pub use request::{ExecuteBody, ExecutionRequest, NetworkMode, Options};
pub use result::{ExecutionResult, ResourceUsage, Timings};
pub use service::{CreateSession, Deleted, Health, SessionInfo, SessionList};
pub use stream::{ClientMessage, Ending, EventKind, Phase, SignalName, StreamEvent};
pub use value::{ByteSize, InvalidValue, Runtime, SandboxPath, SessionId, TenantId};
