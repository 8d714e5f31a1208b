//! The implementation of each command.

mod build;
mod config;
mod cp;
mod doctor;
mod follow;
mod login;
pub(crate) mod message;
mod run;
mod serve;
mod sessions;
mod setup;
mod shell;
mod target;
mod terminal;

use std::fmt::Display;
use std::io::{self, Write as _};
use std::process::ExitCode;

use env_logger::fmt::{Formatter, default_kv_format};
use isol8_config::{Config, ConfigError, ConfigReader, Loaded, Overrides};
use jiff::Timestamp;
use log::{LevelFilter, Record};

use crate::cli::{Command, CommonArgs, SessionCommand, with_flags};
use crate::launcher::client::Launched;
pub(crate) use sessions::known_sessions;

/// The error of a command; the text is for its user.
#[derive(Debug)]
struct CommandError(String);

impl<E: Display> From<E> for CommandError {
    fn from(error: E) -> Self {
        Self(error.to_string())
    }
}

impl CommandError {
    /// Replaces request members, which the command made from flags, by those flags.
    fn with_flags(self) -> Self {
        Self(with_flags(&self.0).into_owned())
    }
}

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

/// The process that runs a command.
enum Startup {
    /// This process.
    ThisProcess(Option<Launched>),
    /// Another process, which has ended.
    Ended(ExitCode),
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

/// Environment variable that selects the messages to log.
const FILTER: &str = "RUST_LOG";

fn is_filtered() -> bool {
    std::env::var_os(FILTER).is_some_and(|filter| !filter.is_empty())
}

/// Logs to standard error from this level on; `RUST_LOG` overrides it.
pub fn log_from(level: LevelFilter) {
    let mut logger = env_logger::Builder::new();
    match std::env::var(FILTER) {
        Ok(filter) if is_filtered() => logger.parse_filters(&filter),
        // libcontainer logs every container and warns of controllers that the kernel lacks; its errors, and those
        // of certificates, are returned and need no log. actix-http logs an error for every client that does not
        // send HTTP; the server logs these itself, at a level for operators who want to see them.
        _ => logger
            .filter_level(LevelFilter::Debug)
            .filter_module("actix_http", LevelFilter::Off)
            .filter_module("libcgroups", LevelFilter::Off)
            .filter_module("libcontainer", LevelFilter::Off)
            .filter_module("rustls_platform_verifier", LevelFilter::Off),
    };
    logger.format(log_line);
    logger.init();
    if !is_filtered() {
        log::set_max_level(level);
    }
}

/// Formats a record: `2026-01-31T12:00:00Z [INFO] isol8::server: listening address=…`
fn log_line(line: &mut Formatter, record: &Record<'_>) -> io::Result<()> {
    let style = line.default_level_style(record.level());
    let (level, target) = (record.level(), record.target());
    let time = Timestamp::now();
    write!(
        line,
        "{time:.0} {style}[{level}]{style:#} {target}: {}",
        record.args()
    )?;
    default_kv_format(line, record.key_values())?;
    writeln!(line)
}

/// Loads the configuration of a command that works on this machine: files in the working directory may only
/// restrict it.
fn load_config(common: &CommonArgs) -> Result<Config, ConfigError> {
    Ok(load(common, ConfigReader::Command, None)?.config)
}

fn load(
    common: &CommonArgs,
    reader: ConfigReader,
    port: Option<u16>,
) -> Result<Loaded, ConfigError> {
    load_over(&overrides(common, reader, port))
}

fn overrides(common: &CommonArgs, reader: ConfigReader, port: Option<u16>) -> Overrides {
    Overrides {
        reader,
        config: common.config.clone(),
        backend: common.backend,
        port,
        debug: common.debug,
        ..Overrides::default()
    }
}

/// Reads the configuration, and reports ignored or suspicious settings on standard error.
fn load_over(overrides: &Overrides) -> Result<Loaded, ConfigError> {
    let loaded = read(overrides)?;
    report_ignored(&loaded);
    for (path, keys) in &loaded.config.unused {
        for key in keys.iter().filter(|key| **key != "$schema") {
            log::warn!(
                "{}: {key} has no meaning here and is ignored",
                path.display()
            );
        }
    }
    for warning in loaded.unanchored() {
        log::warn!("{warning}");
    }
    if loaded.config.debug && !is_filtered() {
        log::set_max_level(LevelFilter::Debug);
    }
    log::debug!(files:? = loaded.config.sources; "configuration read");
    Ok(loaded)
}

/// Reads the configuration without logging anything.
fn read(overrides: &Overrides) -> Result<Loaded, ConfigError> {
    Loaded::load(overrides, &|name| std::env::var(name).ok())
}

fn report_ignored(loaded: &Loaded) {
    for warning in &loaded.ignored {
        message::to_stderr(&format!("{}{warning}\n", message::prefix()));
    }
}
