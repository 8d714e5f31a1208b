//! The `isol8` command.

use std::process::ExitCode;

use isol8::{backends, cli, commands};

fn main() -> ExitCode {
    // Before any thread is started: the spawner forks.
    if backends::is_spawner() {
        commands::log_from(log::LevelFilter::Info);
        return isol8_backend_native::run_spawner();
    }
    commands::run(cli::parse())
}
