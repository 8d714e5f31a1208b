//! Reads the configuration for a command, and reports what is ignored.

use isol8_config::{Config, ConfigError, ConfigReader, Loaded, Overrides};
use log::LevelFilter;

use super::logging::is_filtered;
use super::message;
use crate::cli::CommonArgs;

/// Loads the configuration of a command that works on this machine: files in the working directory may only
/// restrict it.
pub(super) fn load_config(common: &CommonArgs) -> Result<Config, ConfigError> {
    Ok(load(common, ConfigReader::Command, None)?.config)
}

pub(super) fn load(
    common: &CommonArgs,
    reader: ConfigReader,
    port: Option<u16>,
) -> Result<Loaded, ConfigError> {
    load_over(&overrides(common, reader, port))
}

pub(super) fn overrides(common: &CommonArgs, reader: ConfigReader, port: Option<u16>) -> Overrides {
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
pub(super) fn load_over(overrides: &Overrides) -> Result<Loaded, ConfigError> {
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
pub(super) fn read(overrides: &Overrides) -> Result<Loaded, ConfigError> {
    Loaded::load(overrides, &|name| std::env::var(name).ok())
}

pub(super) fn report_ignored(loaded: &Loaded) {
    for warning in &loaded.ignored {
        message::to_stderr(&format!("{}{warning}\n", message::prefix()));
    }
}
