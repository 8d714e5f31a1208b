//! The actors of isol8: who owns a sandbox, and when it may be used by whom.
//!
//! The server and the command line use a [`Service`]. The service admits a validated [`Job`], and hands it to the
//! session that the request names, or runs it in a sandbox of the pool. Actors keep state and decide; they never wait.
//! Work that takes time (making a sandbox, running a program, cleaning up) is a task of its own with a deadline. A
//! panic in such a task ends that task only.
//!
//! This crate knows neither HTTP nor any concrete backend. Read in this order: [`job`] (what is
//! asked for), [`network`], [`run`] (one job in one sandbox), [`stream`] (following it), [`pool`] (sandboxes that wait for work),
//! [`session`] and [`registry`] (sandboxes that keep state), [`pruner`], [`admission`], [`service`].

pub mod admission;
pub mod error;
pub mod files;
pub mod job;
pub mod network;
pub mod pool;
pub mod pruner;
pub mod registry;
pub mod run;
pub mod service;
pub mod session;
pub mod stream;

mod loss;
mod supervisor;
mod watch;

pub use error::{ExecuteError, FailureCause, PreparationFailed};
pub use isol8_protocol::{Signal, TerminalSize};
pub use job::{FileExtension, Install, Job, NamedLimits, Program};
pub use network::Network;
pub use run::{Input, InputSender};
pub use service::{Service, ServiceConfig, ServiceState};
pub use stream::JobStream;
pub use supervisor::{ActorGone, Supervised};
