//! Where the configuration comes from: defaults, files, environment and flags, one over the other.

use std::path::{Path, PathBuf};

use serde_json::{Map, Value, json};

use super::document::Document;
use super::file::ConfigFile;
use super::trust::{self, Reader};
use super::{BackendChoice, Config, ConfigError, Overrides};

/// Names an operator's file; checked before the usual places.
const PATH_VARIABLE: &str = "ISOL8_CONFIG";

/// The file that the TypeScript product reads.
const JSON_FILE: &str = "isol8.config.json";

const TOML_FILE: &str = "config.toml";

const SYSTEM_DIRECTORY: &str = "/etc/isol8";

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
    /// One text for each file of the working directory that is ignored, or of which keys are.
    pub ignored: Vec<String>,
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
        let files = Files::find(overrides, environment);
        let documents = files.trusted.iter().map(|path| Document::read(path));
        let documents = documents.collect::<Result<Vec<_>, _>>()?;
        let mut above = from_environment(environment)?;
        above.extend(from_flags(overrides));
        let state = default_state(environment);
        let mut here = Narrowed::default();
        for path in &files.untrusted {
            here.read(path, overrides.reader, &documents);
        }
        let all = [&documents[..], &here.documents].concat();
        match Self::of(&all, &above, state.clone()) {
            Err(error) if !here.documents.is_empty() => {
                // A file of the working directory keeps no command from working.
                here.ignored = vec![ignored_whole(&error)];
                let mut loaded = Self::of(&documents, &above, state)?;
                loaded.ignored = here.ignored;
                Ok(loaded)
            }
            loaded => {
                let mut loaded = loaded?;
                loaded.ignored = here.ignored;
                Ok(loaded)
            }
        }
    }

    /// A warning for each pattern that admits hosts and could match inside longer names.
    #[must_use]
    pub fn unanchored(&self) -> Vec<String> {
        let patterns = self.file.admitting_patterns().into_iter();
        let unanchored = patterns.filter(|(_, pattern)| !isol8_egress::is_anchored(pattern));
        unanchored
            .map(|(key, pattern)| {
                format!(
                    "{key}: {pattern:?} matches inside longer names too, such as those of other domains: anchor it, \
                     as in \"^pypi\\\\.org$\" or \"\\\\.example\\\\.com$\""
                )
            })
            .collect()
    }

    /// The configuration that these files make, with what stands above them.
    fn of(
        documents: &[Document],
        above: &[(Origin, Value)],
        state: PathBuf,
    ) -> Result<Self, ConfigError> {
        let mut layers = layers(documents);
        layers.extend_from_slice(above);
        let file = merged(&layers)?;
        let checked = file.clone().check(state);
        let mut config = checked.map_err(|error| locate(error, documents))?;
        config.package_cache = config.packages.cache(&config.state);
        config.sources = documents.iter().map(|it| it.path.clone()).collect();
        config.unused = documents
            .iter()
            .filter(|document| !document.unused.is_empty())
            .map(|document| (document.path.clone(), document.unused.clone()))
            .collect();
        Ok(Self {
            config,
            ignored: Vec::new(),
            file,
            layers,
        })
    }
}

/// The files of the working directory, as far as a command takes them.
#[derive(Debug, Default)]
struct Narrowed {
    documents: Vec<Document>,
    ignored: Vec<String>,
}

impl Narrowed {
    fn read(&mut self, path: &Path, reader: Reader, trusted: &[Document]) {
        let mut document = match Document::read_bounded(path) {
            Ok(document) => document,
            Err(error) => {
                self.ignored.push(ignored_whole(&error));
                return;
            }
        };
        let below = layers(&[trusted, &self.documents].concat());
        // The trusted files were read, and what was taken since is of their form.
        let without = merged(&below).and_then(|file| Ok(serde_json::to_value(file)?));
        let narrowed = trust::narrow(reader, &document.value, &without.unwrap_or_default());
        if !narrowed.refused.is_empty() {
            self.ignored
                .push(ignored_keys(path, &narrowed.refused.join(", ")));
        }
        let is_empty = narrowed.taken.as_object().is_none_or(Map::is_empty);
        document.value = narrowed.taken;
        if !is_empty {
            self.documents.push(document);
        }
    }
}

fn ignored_keys(path: &Path, keys: &str) -> String {
    let path = path.display();
    format!(
        "{path}: {keys}: ignored, because a file of the working directory can only restrict what runs on this \
         machine; with --config {path} all of it counts"
    )
}

fn ignored_whole(error: &ConfigError) -> String {
    let text = error.to_string();
    // What else would be valid is a long list, and `isol8 config` has it.
    let text = text.split(", expected one of").next().unwrap_or_default();
    format!("{text}: the file is ignored; `isol8 config` says what is wrong with it")
}

fn layers(documents: &[Document]) -> Vec<(Origin, Value)> {
    let layers = documents
        .iter()
        .map(|document| (Origin::File(document.path.clone()), document.value.clone()));
    layers.collect()
}

fn merged(layers: &[(Origin, Value)]) -> Result<ConfigFile, ConfigError> {
    // One key under a runtime leaves the runtime's other defaults alone.
    let mut merged = json!({ "runtimes": ConfigFile::default().runtimes });
    for (_, layer) in layers {
        merge(&mut merged, layer);
    }
    Ok(serde_json::from_value(merged)?)
}

/// The files of a configuration; a later one overrides an earlier one.
#[derive(Debug, Default)]
struct Files {
    /// Those of the operator, which count fully.
    trusted: Vec<PathBuf>,
    /// Those of the working directory, where they do not.
    untrusted: Vec<PathBuf>,
}

impl Files {
    /// A file that was named stands alone. Else a server takes `config.toml` of the working directory, or that
    /// of the user or the system, over the TypeScript product's file of the working directory; and a command
    /// takes the user's or the system's, and of the working directory's two files what restricts.
    fn find(overrides: &Overrides, environment: &dyn Fn(&str) -> Option<String>) -> Self {
        let named = overrides.config.clone();
        if let Some(path) = named.or_else(|| environment(PATH_VARIABLE).map(PathBuf::from)) {
            return Self {
                trusted: vec![path],
                untrusted: Vec::new(),
            };
        }
        let is_file = |path: &PathBuf| path.is_file();
        let elsewhere = operators_files(environment);
        let [theirs, ours] = [JSON_FILE, TOML_FILE].map(|name| {
            let path = overrides.directory.join(name);
            Some(path).filter(is_file)
        });
        let operators = elsewhere.iter().find(|path| path.is_file()).cloned();
        if overrides.reader == Reader::Server {
            let trusted = [theirs, ours.or(operators)].into_iter().flatten();
            return Self {
                trusted: trusted.collect(),
                untrusted: Vec::new(),
            };
        }
        // A command may be started in the operator's own directory.
        let is_operators = |path: &PathBuf| elsewhere.iter().any(|own| is_same(own, path));
        let here = [theirs, ours].into_iter().flatten();
        Self {
            trusted: operators.into_iter().collect(),
            untrusted: here.filter(|path| !is_operators(path)).collect(),
        }
    }
}

/// Where the user's and the system's file may be; the first that is there counts.
fn operators_files(environment: &dyn Fn(&str) -> Option<String>) -> Vec<PathBuf> {
    // A path that is relative would be one of the working directory.
    let directory = |name| {
        environment(name)
            .map(PathBuf::from)
            .filter(|it| it.is_absolute())
    };
    let home = directory("HOME");
    let usual = || home.as_ref().map(|home| home.join(".config"));
    let user = directory("XDG_CONFIG_HOME").or_else(usual);
    let places = [
        user.map(|it| it.join("isol8")),
        home.as_ref().map(|home| home.join(".isol8")),
        Some(PathBuf::from(SYSTEM_DIRECTORY)),
    ];
    let places = places.into_iter().flatten();
    places.map(|place| place.join(TOML_FILE)).collect()
}

fn is_same(one: &Path, other: &Path) -> bool {
    let real = |path: &Path| path.canonicalize().ok();
    real(one).is_some_and(|one| Some(one) == real(other))
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
