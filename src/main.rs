//! The `isol8` command.

use std::process::ExitCode;

use isol8::{backends, cli, commands};

fn main() -> ExitCode {
    env_logger::Builder::from_env(env_logger::Env::default().default_filter_or("info")).init();
    // Before any thread is started: the spawner forks.
    if backends::is_spawner() {
        return isol8_backend_native::run_spawner();
    }
    commands::run(cli::parse())
}
