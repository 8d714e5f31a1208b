//! The HTTP contract as types: requests of clients and responses of the server.
//!
//! This crate has two kinds of types. The *wire* types mirror the JSON, field for field, and accept
//! requests of older clients ([`request`], [`result`], [`stream`], [`mod@file`], [`network`],
//! [`service`], [`error`]). The *value* types ([`value`]) hold a checked string or number, which need not be checked
//! again.
//!
//! This crate does no I/O, and depends neither on the server nor on any backend: client programs need
//! only this crate.

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
pub use value::{
    ByteSize, InvalidValue, Runtime, SandboxPath, SessionId, TenantId, UnknownRuntime,
};
