//! isol8: runs untrusted code in isolated containers, over HTTP and from the command line.
//!
//! This package puts the parts together and holds no logic of its own about sandboxes:
//!
//! - the command line ([`cli`], [`commands`]) and the HTTP server ([`server`]),
//! - the configuration in effect ([`active`]), whose values are read by `isol8-config`,
//! - the network of jobs ([`network`]),
//! - the images that hold packages ([`images`]),
//! - the checks for host settings that weaken sandboxes ([`host`]),
//! - the privileged half of a server that runs without privileges ([`launcher`]),
//! - the choice of a backend ([`backends`]), the only place that names concrete backends.
//!
//! Requests are executed by `isol8-actors`, and sandboxes are created by the backends.
//!
//! Read [`cli`], then [`commands`], then [`server`]. `ARCHITECTURE.md` follows one request.

// `println!` and `eprintln!` panic on a closed pipe; `commands::message` does not.
#![deny(clippy::print_stdout, clippy::print_stderr)]

use std::process::ExitCode;

use launcher::client::Launched;

pub mod active;
pub mod backends;
pub mod cli;
pub mod commands;
pub mod host;
pub mod images;
pub mod jobs;
pub mod launcher;
pub mod local;
pub mod login;
mod memory;
mod module_kind;
pub mod network;
pub mod packages;
pub mod reload;
pub mod remote_code;
pub mod server;

/// Runs the executable as the process's arguments demand. Must be called before any thread is started: the native
/// backend starts this executable again as its spawner, which forks.
#[must_use]
pub fn start() -> ExitCode {
    if backends::is_spawner() {
        commands::log_from(log::LevelFilter::Info);
        return isol8_backend_native::run_spawner(backends::spawner_grant().as_deref());
    }
    if launcher::is_server() {
        let launched = Launched::enter();
        return commands::run(
            cli::parse_from(launcher::server_arguments()),
            Some(launched),
        );
    }
    commands::run(cli::parse(), None)
}
