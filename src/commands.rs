//! What each command does.

mod build;
mod config;
mod doctor;
mod run;
mod serve;
mod setup;

use std::fmt::Display;
use std::process::ExitCode;

use log::LevelFilter;

use crate::cli::{Command, Common};
use crate::config::{Config, ConfigError, Loaded, Overrides};

/// A command that could not do its work; the text is for its user.
#[derive(Debug)]
struct Failure(String);

impl<E: Display> From<E> for Failure {
    fn from(error: E) -> Self {
        Self(error.to_string())
    }
}

/// Runs a command; its exit code is 1 where isol8 itself failed.
#[must_use]
pub fn run(command: Option<Command>) -> ExitCode {
    let Some(command) = command else {
        return ExitCode::SUCCESS;
    };
    let common = match &command {
        Command::Serve(serve) => &serve.common,
        Command::Run(run) => &run.common,
        Command::Setup(setup) => &setup.common,
        Command::Build(build) => &build.common,
        Command::Doctor(common) => common,
        Command::Config(config) => &config.common,
    };
    // What an operator wants to know of a server is noise around a program's output.
    log_from(match &command {
        _ if common.debug => LevelFilter::Debug,
        Command::Serve(_) => LevelFilter::Info,
        _ => LevelFilter::Warn,
    });
    let done = actix_web::rt::System::new().block_on(async {
        match command {
            Command::Serve(serve) => serve::serve(serve).await,
            Command::Run(run) => run::run(*run).await,
            Command::Setup(setup) => setup::setup(setup).await,
            Command::Build(build) => build::build(build).await,
            Command::Doctor(common) => doctor::doctor(common).await,
            Command::Config(config) => config::config(&config),
        }
    });
    done.unwrap_or_else(|Failure(text)| {
        eprintln!("isol8: {text}");
        ExitCode::FAILURE
    })
}

/// Decides what is logged, where it is set.
const FILTER: &str = "RUST_LOG";

fn is_filtered() -> bool {
    std::env::var_os(FILTER).is_some_and(|filter| !filter.is_empty())
}

/// Logs to standard error from this level on; `RUST_LOG` overrides it.
pub fn log_from(level: LevelFilter) {
    let mut logger = env_logger::Builder::new();
    match std::env::var(FILTER) {
        Ok(filter) if is_filtered() => logger.parse_filters(&filter),
        // libcontainer tells of every container and warns of controllers that a kernel lacks; its
        // failures come back as errors.
        _ => logger
            .filter_level(LevelFilter::Debug)
            .filter_module("libcgroups", LevelFilter::Off)
            .filter_module("libcontainer", LevelFilter::Off),
    };
    logger.init();
    if !is_filtered() {
        log::set_max_level(level);
    }
}

fn load_config(common: &Common, port: Option<u16>) -> Result<Config, ConfigError> {
    Ok(load(common, port)?.config)
}

fn load(common: &Common, port: Option<u16>) -> Result<Loaded, ConfigError> {
    let overrides = Overrides {
        config: common.config.clone(),
        backend: common.backend,
        port,
        debug: common.debug,
    };
    let loaded = Loaded::load(&overrides, &|name| std::env::var(name).ok())?;
    for (path, keys) in &loaded.config.unused {
        for key in keys.iter().filter(|key| **key != "$schema") {
            log::warn!(
                "{}: {key} has no meaning here and is ignored",
                path.display()
            );
        }
    }
    if loaded.config.debug && !is_filtered() {
        log::set_max_level(LevelFilter::Debug);
    }
    log::debug!(files:? = loaded.config.sources; "configuration read");
    Ok(loaded)
}
