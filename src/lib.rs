//! isol8: runs untrusted code in isolated containers, over HTTP and from the command line.
//!
//! This package puts the parts together and holds no logic of its own about sandboxes:
//!
//! - the command line ([`cli`], [`commands`]) and the HTTP server ([`server`]),
//! - the checks for host settings that weaken sandboxes ([`host`]),
//! - the privileged half of a server that runs without privileges ([`launcher`]).
//!
//! `isol8-config` reads the configuration, `isol8-engine` turns requests into jobs and starts the backends, and
//! `isol8-actors` executes the jobs.
//!
//! Read [`cli`], then [`commands`], then [`server`]. `ARCHITECTURE.md` follows one request.

// `println!` and `eprintln!` panic on a closed pipe; `commands::message` does not.
#![deny(clippy::print_stdout, clippy::print_stderr)]

use std::process::ExitCode;

use isol8_engine::backends;
use launcher::client::Launched;

pub mod cli;
pub mod commands;
pub mod host;
pub mod launcher;
pub mod login;
mod memory;
pub mod reload;
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
