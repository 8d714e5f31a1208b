//! Where the configuration comes from: defaults, files, environment and flags, one over the other.

use std::path::{Path, PathBuf};

use serde_json::{Value, json};

use super::document::Document;
use super::file::ConfigFile;
use super::{BackendChoice, Config, ConfigError, Overrides};

/// Names an operator's file; checked before the usual places.
const PATH_VARIABLE: &str = "ISOL8_CONFIG";

/// The file that the TypeScript product reads.
const JSON_FILE: &str = "isol8.config.json";

/// Where a value came from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Origin {
    /// Nobody said anything else.
    Default,
    /// A file.
    File(PathBuf),
    /// A variable of the environment.
    Environment(&'static str),
    /// A flag of the command line.
    Flag(&'static str),
}

impl std::fmt::Display for Origin {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Default => f.write_str("default"),
            Self::File(path) => write!(f, "file {}", path.display()),
            Self::Environment(name) => write!(f, "environment {name}"),
            Self::Flag(name) => write!(f, "flag {name}"),
        }
    }
}

/// The checked configuration, and where it came from.
#[derive(Clone, Debug)]
pub struct Loaded {
    /// What the program works with.
    pub config: Config,
    /// What the files, the environment and the flags say together.
    pub(super) file: ConfigFile,
    /// What each of them says; a later one overrides an earlier one.
    pub(super) layers: Vec<(Origin, Value)>,
}

impl Loaded {
    /// Reads the configuration. `environment` looks up a variable.
    ///
    /// # Errors
    /// [`ConfigError`].
    pub fn load(
        overrides: &Overrides,
        environment: &dyn Fn(&str) -> Option<String>,
    ) -> Result<Self, ConfigError> {
        let documents = find_files(overrides, environment)
            .iter()
            .map(|path| Document::read(path))
            .collect::<Result<Vec<_>, _>>()?;
        let mut layers: Vec<_> = documents
            .iter()
            .map(|document| (Origin::File(document.path.clone()), document.value.clone()))
            .collect();
        layers.extend(from_environment(environment)?);
        layers.extend(from_flags(overrides));
        // One key under a runtime leaves the runtime's other defaults alone.
        let mut merged = json!({ "runtimes": ConfigFile::default().runtimes });
        for (_, layer) in &layers {
            merge(&mut merged, layer);
        }
        let file: ConfigFile = serde_json::from_value(merged)?;
        let checked = file.clone().check(match &overrides.default_state {
            Some(state) => state.clone(),
            None => default_state(environment),
        });
        let mut config = checked.map_err(|error| locate(error, &documents))?;
        config.package_cache = config.packages.cache(&config.state);
        config.sources = documents.iter().map(|it| it.path.clone()).collect();
        config.unused = documents
            .into_iter()
            .filter(|document| !document.unused.is_empty())
            .map(|document| (document.path, document.unused))
            .collect();
        Ok(Self {
            config,
            file,
            layers,
        })
    }
}

/// A file that was named stands alone; else the TypeScript product's, and ours over it.
fn find_files(overrides: &Overrides, environment: &dyn Fn(&str) -> Option<String>) -> Vec<PathBuf> {
    let named = overrides.config.clone();
    if let Some(path) = named.or_else(|| environment(PATH_VARIABLE).map(PathBuf::from)) {
        return vec![path];
    }
    let home = environment("HOME").map(|home| Path::new(&home).join(".isol8/config.toml"));
    let ours = [Some(PathBuf::from("config.toml")), home];
    let ours = ours.into_iter().flatten().find(|path| path.is_file());
    let theirs = Some(PathBuf::from(JSON_FILE)).filter(|path| path.is_file());
    [theirs, ours].into_iter().flatten().collect()
}

fn from_environment(
    environment: &dyn Fn(&str) -> Option<String>,
) -> Result<Vec<(Origin, Value)>, ConfigError> {
    let mut layers = Vec::new();
    let mut add = |name, value| layers.push((Origin::Environment(name), value));
    let wrong = |key, given, expected| ConfigError::OutOfRange {
        key,
        given,
        expected,
    };
    if let Some(given) = environment("ISOL8_BACKEND") {
        let backend: Result<BackendChoice, _> = given.parse();
        let backend = backend.map_err(|expected| wrong("ISOL8_BACKEND", given, expected))?;
        add("ISOL8_BACKEND", json!({ "backend": backend }));
    }
    if let Some(given) = environment("ISOL8_STATE_DIR") {
        add("ISOL8_STATE_DIR", json!({ "stateDir": given }));
    }
    for key in ["PORT", "ISOL8_PORT"] {
        if let Some(given) = environment(key) {
            let expected = || "expected a port, 0 to 65535".to_owned();
            let port: Result<u16, _> = given.parse();
            let port = port.map_err(|_| wrong(key, given, expected()))?;
            add(key, json!({ "server": { "port": port } }));
        }
    }
    Ok(layers)
}

fn from_flags(overrides: &Overrides) -> Vec<(Origin, Value)> {
    let backend = overrides
        .backend
        .map(|backend| json!({ "backend": backend }));
    let port = overrides
        .port
        .map(|port| json!({ "server": { "port": port } }));
    let debug = overrides.debug.then(|| json!({ "debug": true }));
    [("--backend", backend), ("--port", port), ("--debug", debug)]
        .into_iter()
        .filter_map(|(name, value)| Some((Origin::Flag(name), value?)))
        .collect()
}

/// Whether the members of a key are one value, and not keys of their own: its forms exclude one another.
pub(super) fn is_whole(key: &str) -> bool {
    key == "poolSize"
}

/// Puts one layer over what is below it. Tables are merged; everything else, lists too, is replaced.
fn merge(below: &mut Value, above: &Value) {
    let (Value::Object(below), Value::Object(above)) = (below, above) else {
        return;
    };
    for (key, value) in above {
        match below.get_mut(key) {
            Some(inner) if inner.is_object() && value.is_object() && !is_whole(key) => {
                merge(inner, value);
            }
            _ => {
                below.insert(key.clone(), value.clone());
            }
        }
    }
}

/// Adds file and line to an error about a value that a file has.
fn locate(error: ConfigError, documents: &[Document]) -> ConfigError {
    let ConfigError::OutOfRange {
        key,
        given,
        expected,
    } = &error
    else {
        return error;
    };
    let message = format!(" = {given}: {expected}");
    let found = documents
        .iter()
        .rev()
        .find_map(|it| it.fault(key, &message));
    found.unwrap_or(error)
}

/// A place whose files may be executed, which `/run` and `/tmp` often forbid: the guest is there.
fn default_state(environment: &dyn Fn(&str) -> Option<String>) -> PathBuf {
    let user = |variable: &str| environment(variable).filter(|value| !value.is_empty());
    if nix::unistd::geteuid().is_root() {
        return PathBuf::from("/var/lib/isol8");
    }
    if let Some(state) = user("XDG_STATE_HOME") {
        return Path::new(&state).join("isol8");
    }
    match user("HOME") {
        Some(home) => Path::new(&home).join(".local/state/isol8"),
        None => PathBuf::from("/var/tmp/isol8"),
    }
}
