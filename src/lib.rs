//! isol8: runs untrusted code in isolated containers, over HTTP and from the command line.
//!
//! This package puts the parts together and holds no logic of its own about sandboxes: the
//! command line ([`cli`], [`commands`]), the configuration ([`config`]), the HTTP server
//! ([`server`]), the network of jobs ([`network`]), and the only place that knows which backends there are ([`backends`]). What a
//! request means is in `isol8-actors`; how a sandbox is made, in the backends.
//!
//! Read [`cli`], then [`commands`], then [`server`]. `ARCHITECTURE.md` follows one request.

pub mod backends;
pub mod cli;
pub mod commands;
pub mod config;
pub mod jobs;
pub mod local;
pub mod network;
pub mod packages;
pub mod reload;
pub mod remote_code;
pub mod server;
