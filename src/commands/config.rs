//! `isol8 config`: shows the configuration that is in effect, and the origin of each value.

use std::process::ExitCode;

use isol8_config::schema::schema;
use isol8_config::{ConfigReader, Loaded};
use serde_json::Value;

use super::error::CommandError;
use super::load::{load, overrides, read, report_ignored};
use super::message;
use crate::cli::ConfigArgs;

/// Heading of the keys outside any table.
const GENERAL: &str = "General";

pub(super) fn config(arguments: &ConfigArgs) -> Result<ExitCode, CommandError> {
    let text = if arguments.schema {
        serde_json::to_string_pretty(&schema())?
    } else {
        // Show the configuration as a server in this directory reads it; other commands ignore some of the
        // directory's own settings.
        let loaded = load(&arguments.common, ConfigReader::Server, None)?;
        report_ignored(&read(&overrides(
            &arguments.common,
            ConfigReader::Command,
            None,
        ))?);
        match arguments.json {
            true => serde_json::to_string_pretty(&loaded.contract()?)?,
            false => page(&loaded)?,
        }
    };
    message::to_stdout(&format!("{}\n", text.trim_end()));
    Ok(ExitCode::SUCCESS)
}

fn page(loaded: &Loaded) -> Result<String, CommandError> {
    let sources: Vec<String> = loaded
        .config
        .sources
        .iter()
        .map(|it| it.display().to_string())
        .collect();
    let source = match sources.is_empty() {
        true => "defaults".to_owned(),
        false => sources.join(", "),
    };
    let settings = loaded.settings()?;
    let lines: Vec<(&str, String, String)> = settings
        .iter()
        .map(|it| (it.key.as_str(), shown(&it.value), it.origin.to_string()))
        .collect();
    let keys = width(lines.iter().map(|(key, ..)| *key));
    let values = width(lines.iter().map(|(_, value, _)| value.as_str()));
    let mut page = format!("Isol8 Configuration\n\n  Source: {source}\n");
    let mut section = None;
    for (key, value, origin) in &lines {
        let title = key.split_once('.').map_or(GENERAL, |(table, _)| table);
        if section != Some(title) {
            page.push_str(&format!("\n{}\n", capitalized(title)));
            section = Some(title);
        }
        page.push_str(&format!("  {key:<keys$}  {value:<values$}  {origin}\n"));
    }
    Ok(page)
}

/// Widest text that a column is aligned to; a longer text moves only its own line.
const MAX_WIDTH: usize = 40;

fn width<'t>(column: impl Iterator<Item = &'t str>) -> usize {
    let widths = column.map(|text| text.chars().count());
    widths
        .filter(|width| *width <= MAX_WIDTH)
        .max()
        .unwrap_or(0)
}

fn shown(value: &Value) -> String {
    match value {
        Value::String(text) if !text.is_empty() => text.clone(),
        other => other.to_string(),
    }
}

/// Turns `remoteCode` into `Remote Code`.
fn capitalized(key: &str) -> String {
    let mut title = String::new();
    for letter in key.chars() {
        match title.is_empty() {
            true => title.extend(letter.to_uppercase()),
            false if letter.is_uppercase() => title.extend([' ', letter]),
            false => title.push(letter),
        }
    }
    title
}
