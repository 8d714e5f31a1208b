//! The engine: turns requests into jobs, and starts what runs them.
//!
//! - [`jobs`]: checks a request, and makes a job of it,
//! - [`Engine`]: runs a checked request,
//! - [`active`]: the configuration in effect, and the objects that are built from it,
//! - [`images`] and [`packages`]: the packages that a job asks for, in an image or installed,
//! - [`remote_code`]: code that a request names by URL,
//! - [`network`]: the network of jobs,
//! - [`backends`]: the choice of a backend, the only place that names concrete backends,
//! - [`local`]: sandboxes of this host without a server.
//!
//! Jobs are executed by `isol8-actors`. The crate knows neither HTTP nor a command line; `isol8` has both.

pub mod active;
pub mod backends;
mod engine;
pub mod images;
pub mod jobs;
pub mod local;
mod module_kind;
pub mod network;
pub mod packages;
pub mod remote_code;

pub use engine::{Engine, EngineError};
