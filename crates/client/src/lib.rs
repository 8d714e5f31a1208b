//! A client of isol8 servers for Rust programs.
//!
//! ```standalone_crate
//! # fn main() -> std::process::ExitCode { isol8_testing::example(async |url, key| {
//! use isol8_client::{ErrorCode, EventKind, ExecutionRequest, RemoteIsol8, Runtime};
//!
//! fn python(code: &str) -> ExecutionRequest {
//!     let mut request = ExecutionRequest::new(Runtime::Python);
//!     request.code = Some(code.to_owned());
//!     request
//! }
//!
//! let isol8 = RemoteIsol8::new(&url, &key)?;
//! isol8.start().await?; // Optional: checks that the server can be reached and accepts the key.
//! assert_eq!(isol8.execute(python("print(6 * 7)")).await?.stdout, "42");
//!
//! // In a session, variables and files stay until the session is stopped.
//! let demo = isol8.clone().with_session("demo".parse()?);
//! demo.execute(python("x = 41")).await?;
//! assert_eq!(demo.execute(python("print(x + 1)")).await?.stdout, "42");
//! demo.put_file("/sandbox/data.csv", "a,b\n").await?;
//! assert_eq!(demo.get_file("/sandbox/data.csv").await?, b"a,b\n");
//! demo.stop().await?;
//! let error = demo.get_file("/sandbox/data.csv").await.unwrap_err();
//! assert_eq!(error.code(), Some(ErrorCode::SessionNotFound));
//!
//! // A stream yields events while the program runs, and takes input for the program.
//! let mut run = isol8.execute_stream(python("print('Hello', input())")).await?;
//! let input = run.take_input().ok_or("no WebSocket")?;
//! input.stdin("World\n").await?;
//! let mut printed = String::new();
//! while let Some(event) = run.next().await {
//!     let event = event?;
//!     match event.kind {
//!         EventKind::Stdout => printed += &event.data,
//!         EventKind::Stderr | EventKind::Error => eprintln!("{}", event.data),
//!         EventKind::Exit => assert_eq!(event.data, "0"),
//!     }
//! }
//! assert_eq!(printed, "Hello World\n");
//! # Ok(()) }) }
//! ```
//!
//! A program that fails is a result, not an error; a call without a result returns a [`ClientError`]. Dropping the
//! future of a call, or a [`RunStream`], ends its run. A call is retried only if nothing can happen twice
//! ([`Retries`]), and has no time limit unless [`RemoteIsol8::with_deadline`] sets one. The key is in no error and no
//! debug output. Warnings go to the log, or to the function of [`RemoteIsol8::with_warnings`]. All calls need a tokio
//! runtime.
//!
//! This crate implements the contract of `isol8-api`, and leaves all checks of requests to the server. Read
//! [`RemoteIsol8`] first, then [`RunStream`].

mod client;
mod error;
mod execute;
mod files;
mod reason;
mod retry;
mod run;
mod service;
mod sse;
mod warning;
mod websocket;

pub use client::RemoteIsol8;
pub use error::ClientError;
pub use isol8_api::auth::LoggedIn;
pub use isol8_api::service::{CleanedUp, Removed};
pub use isol8_api::{
    CreateSession, DirectoryEntry, DirectoryListing, Encoding, EntryType, ErrorCode, EventKind,
    ExecuteBody, ExecutionRequest, ExecutionResult, FileContent, Health, NetworkAction,
    NetworkFilter, NetworkLogEntry, NetworkMode, Options, Phase, Runtime, SessionId, SessionInfo,
    SignalName, StreamEvent,
};
pub use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};
pub use reqwest::Body;
pub use retry::Retries;
pub use run::{RunInput, RunStream};

#[cfg(test)]
mod fake;
