//! The implementation of each command.

mod build;
mod config;
mod cp;
mod doctor;
mod error;
mod follow;
mod load;
mod logging;
mod login;
pub(crate) mod message;
mod run;
mod serve;
mod sessions;
mod setup;
mod shell;
mod target;
mod terminal;

use std::process::ExitCode;

use log::LevelFilter;

use crate::cli::{Command, SessionCommand};
use crate::launcher::client::Launched;
use error::CommandError;
pub use logging::log_from;
use serve::Startup;
pub(crate) use sessions::known_sessions;

/// Runs a command; the exit code is 1 if isol8 itself failed. `launched` holds what a launcher handed to this
/// process, if it is the server of one.
#[must_use]
pub fn run(command: Option<Command>, launched: Option<Result<Launched, String>>) -> ExitCode {
    let Some(command) = command else {
        return ExitCode::SUCCESS;
    };
    let is_debugged = command.common().is_some_and(|common| common.debug);
    // Log messages that the operator of a server needs would be noise around a program's output.
    log_from(match &command {
        _ if is_debugged => LevelFilter::Debug,
        Command::Serve(_) => LevelFilter::Info,
        _ => LevelFilter::Warn,
    });
    let done = match (&command, launched) {
        (Command::Serve(serve), None) => serve::launch(serve),
        (_, None) => Ok(Startup::ThisProcess(None)),
        (_, Some(launched)) => launched
            .map(|it| Startup::ThisProcess(Some(it)))
            .map_err(CommandError::from),
    };
    let done = done.and_then(|start| match start {
        Startup::Ended(code) => Ok(code),
        Startup::ThisProcess(launched) => run_in_this_process(command, launched),
    });
    done.unwrap_or_else(|CommandError(text)| {
        message::to_stderr(&format!("{}{text}\n", message::prefix()));
        ExitCode::FAILURE
    })
}

fn run_in_this_process(
    command: Command,
    launched: Option<Launched>,
) -> Result<ExitCode, CommandError> {
    actix_web::rt::System::new().block_on(async {
        match command {
            Command::Serve(serve) => serve::serve(serve, launched).await,
            Command::Run(run) => run::run(*run).await.map_err(CommandError::with_flags),
            Command::Shell(shell) => shell::shell(*shell).await.map_err(CommandError::with_flags),
            Command::Sessions(sessions) => sessions::sessions(sessions).await,
            Command::Session(SessionCommand::Delete(delete)) => sessions::delete(delete).await,
            Command::Ls(ls) => cp::ls::ls(ls).await,
            Command::Cp(cp) => cp::cp(cp).await,
            Command::Cleanup(cleanup) => sessions::cleanup(cleanup).await,
            Command::Login(login) => login::login(login).await,
            Command::Logout => login::logout(),
            Command::Setup(setup) => setup::setup(setup).await,
            Command::Build(build) => build::build(build).await,
            Command::Doctor(common) => doctor::doctor(common).await,
            Command::Config(config) => config::config(&config),
            Command::Completions(completions) => {
                completions.print()?;
                Ok(ExitCode::SUCCESS)
            }
        }
    })
}
