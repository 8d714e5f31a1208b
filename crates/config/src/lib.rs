//! The configuration: what operators write in `config.toml`, checked once, as plain data.
//!
//! - [`mod@file`]: the file as it is written. Each group of sections has a module of its own, which holds the keys with
//!   their defaults, the checked values that the program works with, and what a file of the working directory may set.
//! - [`Config`]: the checked values of all sections. [`Startup`] holds those that need a restart, so that their type
//!   tells them apart; [`Config::reload`] cannot apply them.
//! - [`layers`]: reads the sources. Flags override environment variables (`ISOL8_*`), which override `config.toml`, which
//!   overrides the TypeScript product's `isol8.config.json`, which overrides the defaults.
//! - `trust`: the keys that a file of the working directory may set for a command.
//! - [`effective`]: every value in effect, with its source.
//! - [`mod@schema`]: the JSON Schema of the file.
//! - [`package_names`]: the accepted names of packages, for `prebuiltImages` as well as for requests.
//!
//! The crate holds no live objects: caches, proxies and connections are made by its users from these values.

mod backend;
pub mod certificates;
mod check;
mod config;
mod document;
pub mod effective;
mod error;
pub mod file;
pub mod images;
pub mod layers;
mod limits;
mod network;
pub mod package_names;
mod packages;
mod policy;
mod pool;
mod ports;
mod remote_code;
mod rule;
pub mod schema;
mod server;
mod startup;
mod trust;

pub use backend::{BackendChoice, DockerSettings};
pub use config::Config;
pub use error::ConfigError;
pub use file::ConfigFile;
pub use images::{ImageSettings, PrebuiltImage};
pub use layers::{Loaded, Origin, Overrides};
pub use limits::{Ceilings, Defaults, RequestLimits};
pub use packages::PackageSettings;
pub use policy::PolicySettings;
pub use pool::PoolSettings;
pub use remote_code::RemoteCodeConfig;
pub use server::{HttpSettings, ListenSettings, ShutdownSettings};
pub use startup::Startup;
pub use trust::ConfigReader;

#[cfg(test)]
mod tests;
