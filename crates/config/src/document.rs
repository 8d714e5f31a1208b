//! One configuration file: its values, and the lines of its keys for error messages.

use std::fmt;
use std::fs;
use std::io::{self, Read as _};
use std::path::{Path, PathBuf};

use serde::Deserializer;
use serde::de::{DeserializeSeed, Error as _, IgnoredAny, MapAccess, Visitor};
use serde_json::Value;

use crate::error::ConfigError;
use crate::file::ConfigFile;

/// Keys of the TypeScript product's file that this program ignores.
pub(super) const UNUSED: [&str; 5] = [
    "$schema",
    "audit",
    "auth",
    "security",
    "defaults.readonlyRootFs",
];

/// Largest file in bytes that is read from a working directory.
const MAX_SIZE: u64 = 1 << 20;

/// A file that was read, with known keys and values of the right types only.
#[derive(Clone, Debug)]
pub(super) struct Document {
    pub(super) path: PathBuf,
    pub(super) value: Value,
    /// Keys that were removed from the value, because this program does not use them.
    pub(super) unused: Vec<&'static str>,
    text: String,
    format: Format,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Format {
    Toml,
    Json,
}

/// Syntax error in TOML or JSON.
struct Malformed {
    line: usize,
    message: String,
}

impl Document {
    /// Reads a file: as JSON if its name ends with `.json`, otherwise as TOML.
    ///
    /// # Errors
    /// [`ConfigError::Unreadable`], or [`ConfigError::Invalid`] with the line.
    pub(super) fn read(path: &Path) -> Result<Self, ConfigError> {
        let text = fs::read_to_string(path).map_err(|source| ConfigError::Unreadable {
            path: path.to_owned(),
            source,
        })?;
        Self::parse(path, text)
    }

    /// Reads a file that may come from an untrusted author, and refuses one that is too large for a configuration.
    ///
    /// # Errors
    /// As [`Self::read`].
    pub(super) fn read_bounded(path: &Path) -> Result<Self, ConfigError> {
        let mut text = String::new();
        let read = fs::File::open(path).and_then(|file| {
            let read = file.take(MAX_SIZE + 1).read_to_string(&mut text)?;
            match read as u64 > MAX_SIZE {
                true => Err(io::Error::other(format!("larger than {MAX_SIZE} bytes"))),
                false => Ok(()),
            }
        });
        read.map_err(|source| ConfigError::Unreadable {
            path: path.to_owned(),
            source,
        })?;
        Self::parse(path, text)
    }

    fn parse(path: &Path, text: String) -> Result<Self, ConfigError> {
        let format = match path.extension() {
            Some(extension) if extension == "json" => Format::Json,
            _ => Format::Toml,
        };
        let parsed = format.parse(&text);
        let mut value = parsed.map_err(|Malformed { line, message }| ConfigError::Invalid {
            path: path.to_owned(),
            line,
            message,
        })?;
        let mut unused = Vec::new();
        if format == Format::Json {
            unused = UNUSED
                .into_iter()
                .filter(|key| take(&mut value, key))
                .collect();
        }
        let document = Self {
            path: path.to_owned(),
            value,
            unused,
            text,
            format,
        };
        document.check_types()?;
        Ok(document)
    }

    /// Returns an error about a key of this file, with its line; `None` if the file does not have the key.
    pub(super) fn error_at(&self, key: &str, message: &str) -> Option<ConfigError> {
        let key = self.spelled_out(key)?;
        Some(ConfigError::Invalid {
            path: self.path.clone(),
            line: self.line_of(&key)?,
            message: format!("{key}{message}"),
        })
    }

    fn check_types(&self) -> Result<(), ConfigError> {
        let Err(error) = serde_path_to_error::deserialize::<_, ConfigFile>(&self.value) else {
            return Ok(());
        };
        let message = error.inner().to_string();
        let mut key = error.path().to_string();
        // For an unknown key, the path of the error ends with the key's table.
        if let Some(unknown) = unknown_name(&message, "unknown field")
            && key.rsplit('.').next() != Some(unknown)
        {
            key = match key.as_str() {
                "." | "" => unknown.to_owned(),
                table => format!("{table}.{unknown}"),
            };
        }
        let message = format!(": {}", with_suggestion(&message));
        // The path of a list's element ends with an index; only the list has a line.
        let written = key.split('[').next().unwrap_or(&key);
        Err(self
            .error_at(written, &message)
            .unwrap_or_else(|| ConfigError::Invalid {
                path: self.path.clone(),
                line: 1,
                message: format!("{key}{message}"),
            }))
    }

    /// Returns the key with its `*` replaced by a name of this file; `None` if no name fits, or several do.
    fn spelled_out(&self, key: &str) -> Option<String> {
        let Some((table, name)) = key.split_once(".*.") else {
            return Some(key.to_owned());
        };
        let tables = self.value.get(table)?.as_object()?;
        let mut found = tables.iter().filter(|(_, inner)| inner.get(name).is_some());
        let (only, _) = found.next().filter(|_| found.next().is_none())?;
        Some(format!("{table}.{only}.{name}"))
    }

    /// Returns the line of a key, counted from 1.
    fn line_of(&self, key: &str) -> Option<usize> {
        let names: Vec<&str> = key.split('.').collect();
        let locator = KeyLocator(&names);
        match self.format {
            Format::Toml => {
                let text = toml::Deserializer::parse(&self.text).ok()?;
                let found = locator.deserialize(text).err()?;
                Some(line_at(&self.text, found.span()?.start))
            }
            Format::Json => {
                let mut text = serde_json::Deserializer::from_str(&self.text);
                Some(locator.deserialize(&mut text).err()?.line())
            }
        }
    }
}

impl Format {
    fn parse(self, text: &str) -> Result<Value, Malformed> {
        match self {
            Self::Toml => toml::from_str(text).map_err(|error| Malformed {
                line: line_at(text, error.span().map_or(0, |span| span.start)),
                message: error.message().to_owned(),
            }),
            Self::Json => serde_json::from_str(text).map_err(|error| {
                let message = error.to_string();
                let position = format!(" at line {} column {}", error.line(), error.column());
                Malformed {
                    line: error.line().max(1),
                    message: message.trim_end_matches(&position).to_owned(),
                }
            }),
        }
    }
}

fn line_at(text: &str, offset: usize) -> usize {
    let before = &text.as_bytes()[..offset.min(text.len())];
    1 + before.iter().filter(|byte| **byte == b'\n').count()
}

/// Removes a key from a value, and returns whether the value had it.
fn take(value: &mut Value, key: &str) -> bool {
    let (table, name) = match key.rsplit_once('.') {
        Some((table, name)) => (value.get_mut(table), name),
        None => (Some(value), key),
    };
    let table = table.and_then(Value::as_object_mut);
    table.is_some_and(|table| table.remove(name).is_some())
}

/// Deserializes a file up to a key, and fails there on purpose: the error has the position of the key, in either format.
struct KeyLocator<'p>(&'p [&'p str]);

impl<'de> DeserializeSeed<'de> for KeyLocator<'_> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        match self.0 {
            [] => Err(D::Error::custom("here")),
            _ => deserializer.deserialize_any(self),
        }
    }
}

impl<'de> Visitor<'de> for KeyLocator<'_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a table")
    }

    fn visit_map<M: MapAccess<'de>>(self, mut map: M) -> Result<(), M::Error> {
        while let Some(name) = map.next_key::<String>()? {
            match self.0 {
                [first, rest @ ..] if *first == name => map.next_value_seed(KeyLocator(rest))?,
                _ => {
                    map.next_value::<IgnoredAny>()?;
                }
            }
        }
        Ok(())
    }
}

/// Returns the unknown name from serde's error text, which quotes it first.
fn unknown_name<'m>(message: &'m str, kind: &str) -> Option<&'m str> {
    message.strip_prefix(kind)?.split('`').nth(1)
}

/// Adds the most similar valid name to serde's text about an unknown name. The text quotes the unknown name first, and
/// then the valid ones.
fn with_suggestion(message: &str) -> String {
    let mut quoted = message.split('`').skip(1).step_by(2);
    let Some(unknown) = quoted.next().filter(|_| message.starts_with("unknown")) else {
        return message.to_owned();
    };
    let distance = |name: &&str| strsim::damerau_levenshtein(unknown, name);
    match quoted.min_by_key(distance) {
        Some(nearest) if distance(&nearest) <= 3 => {
            format!("{message}; did you mean `{nearest}`?")
        }
        _ => message.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn error(name: &str, text: &str) -> String {
        let parsed = Document::parse(Path::new(name), text.to_owned());
        parsed.unwrap_err().to_string()
    }

    #[test]
    fn a_fault_is_told_with_file_line_key_and_the_nearest_name_in_both_formats() {
        for (name, text) in [
            ("config.toml", "debug = true\n[defaults]\ntimeoutMS = 5\n"),
            (
                "isol8.config.json",
                "{\"debug\": true, \"defaults\": {\n\n\"timeoutMS\": 5}}",
            ),
        ] {
            let error = error(name, text);
            let begin = format!("{name}:3: defaults.timeoutMS: unknown field `timeoutMS`");
            assert!(error.starts_with(&begin), "{error}");
            assert!(error.ends_with("did you mean `timeoutMs`?"), "{error}");
        }
    }

    #[test]
    fn the_line_of_a_value_of_the_wrong_type_is_that_of_its_key() {
        for (name, text, expected) in [
            (
                "c.toml",
                "\n[defaults]\nmemoryLimit = \"lots\"",
                "c.toml:3: defaults.memoryLimit: \"lots\" is not a size",
            ),
            (
                "c.json",
                "{\"defaults\":\n{\"memoryLimit\": \"lots\"}}",
                "c.json:2: defaults.memoryLimit: \"lots\" is not a size",
            ),
            ("c.toml", "a.b = 1\n", "c.toml:1: a: unknown field `a`"),
            (
                "c.toml",
                "[network]\nblacklist = [\n\"a\",\n1]",
                "c.toml:2: network.blacklist: invalid type: integer `1`",
            ),
            (
                "c.toml",
                "\nbackend = \"dokcer\"",
                "c.toml:2: backend: unknown variant `dokcer`",
            ),
        ] {
            let error = error(name, text);
            assert!(error.starts_with(expected), "{error}");
        }
    }

    #[test]
    fn text_that_is_neither_is_refused_with_its_line() {
        let error_toml = error("c.toml", "debug = true\nport = \n");
        assert!(error_toml.starts_with("c.toml:2: "), "{error_toml}");
        let error_json = error("c.json", "{\"debug\": true,\n}");
        assert_eq!(error_json, "c.json:2: trailing comma");
    }

    #[test]
    fn only_the_other_products_own_keys_are_left_out_and_only_of_its_file() {
        let text = "{\"audit\": {\"enabled\": true}, \"defaults\": {\"readonlyRootFs\": true}}";
        let document = Document::parse(Path::new("c.json"), text.to_owned()).unwrap();
        assert_eq!(document.unused, ["audit", "defaults.readonlyRootFs"]);
        assert_eq!(document.value, serde_json::json!({"defaults": {}}));
        assert!(error("c.json", "{\"audits\": {}}").contains("unknown field `audits`"));
        assert!(error("c.toml", "[audit]\n").contains("unknown field `audit`"));
    }
}
