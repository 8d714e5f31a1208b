//! The sources of the configuration: defaults, files, environment and flags. Each overrides the ones before.

use std::path::{Path, PathBuf};

use serde_json::{Map, Value, json};

use crate::backend::BackendChoice;
use crate::config::Config;
use crate::document::Document;
use crate::error::ConfigError;
use crate::file::ConfigFile;
use crate::pool::is_whole;
use crate::trust::{self, ConfigReader};

/// The environment variable that names a configuration file. It takes precedence over the usual paths.
const PATH_VARIABLE: &str = "ISOL8_CONFIG";

/// The file that the TypeScript product reads.
const JSON_FILE: &str = "isol8.config.json";

const TOML_FILE: &str = "config.toml";

const SYSTEM_DIRECTORY: &str = "/etc/isol8";

/// Environment variables with the host's bundle of certificates for some program, the most general first.
const BUNDLE_VARIABLES: [&str; 5] = [
    "SSL_CERT_FILE",
    "REQUESTS_CA_BUNDLE",
    "CURL_CA_BUNDLE",
    "PIP_CERT",
    "NODE_EXTRA_CA_CERTS",
];

/// Values that override the files, and directories in which files are searched.
#[derive(Clone, Debug, Default)]
pub struct Overrides {
    /// The program that reads the configuration.
    pub reader: ConfigReader,
    /// The working directory; empty for the process's own.
    pub directory: PathBuf,
    /// `--config`.
    pub config: Option<PathBuf>,
    /// `--backend`.
    pub backend: Option<BackendChoice>,
    /// `--port`.
    pub port: Option<u16>,
    /// `--debug`.
    pub debug: bool,
    /// The state directory if none is configured; `None` for the usual one of this user.
    pub default_state: Option<PathBuf>,
}

/// The source of a value.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Origin {
    /// The built-in default.
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

/// The checked configuration and its sources.
#[derive(Clone, Debug)]
pub struct Loaded {
    /// The checked configuration.
    pub config: Config,
    /// Warnings, one for each file of the working directory that is ignored as a whole or in part.
    pub ignored: Vec<String>,
    /// The values of all sources together.
    pub(super) file: ConfigFile,
    /// The values of each source; a later one overrides an earlier one.
    pub(super) layers: Vec<(Origin, Value)>,
}

impl Loaded {
    /// Reads the configuration. `environment` looks up a variable.
    ///
    /// # Errors
    /// Returns a [`ConfigError`] if a file cannot be read, or a value is not valid.
    pub fn load(
        overrides: &Overrides,
        environment: &dyn Fn(&str) -> Option<String>,
    ) -> Result<Self, ConfigError> {
        let files = Files::find(overrides, environment);
        let documents = files.trusted.iter().map(|path| Document::read(path));
        let documents = documents.collect::<Result<Vec<_>, _>>()?;
        let mut above = from_environment(environment)?;
        above.extend(from_flags(overrides));
        let around = OuterLayers {
            below: from_host(environment),
            above,
        };
        let state = match &overrides.default_state {
            Some(state) => state.clone(),
            None => default_state(environment),
        };
        let mut here = UntrustedFiles::default();
        for path in &files.untrusted {
            here.read(path, overrides.reader, &documents);
        }
        let all = [&documents[..], &here.documents].concat();
        match Self::of(&all, &around, state.clone()) {
            Err(error) if !here.documents.is_empty() => {
                // An invalid file in the working directory must not keep commands from working.
                here.ignored = vec![ignored_whole(&error)];
                let mut loaded = Self::of(&documents, &around, state)?;
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

    /// Returns a warning for each pattern that admits hosts and could match inside longer names.
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

    /// Merges and checks these files together with the layers around them.
    fn of(
        documents: &[Document],
        around: &OuterLayers,
        state: PathBuf,
    ) -> Result<Self, ConfigError> {
        let layers = [&around.below[..], &layers(documents)[..], &around.above[..]].concat();
        let file = merged(&layers)?;
        let checked = file.clone().check(state);
        let mut config = checked.map_err(|error| locate(error, documents))?;
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

impl Config {
    /// Reads the configuration. `environment` looks up a variable.
    ///
    /// # Errors
    /// Returns a [`ConfigError`] if a file cannot be read, or a value is not valid.
    pub fn load(
        overrides: &Overrides,
        environment: &dyn Fn(&str) -> Option<String>,
    ) -> Result<Self, ConfigError> {
        Ok(Loaded::load(overrides, environment)?.config)
    }
}

/// The layers below the files (defaults of the host), and above them (environment and flags).
#[derive(Debug, Default)]
struct OuterLayers {
    below: Vec<(Origin, Value)>,
    above: Vec<(Origin, Value)>,
}

/// The files of the working directory, reduced to the keys that a command accepts from them.
#[derive(Debug, Default)]
struct UntrustedFiles {
    documents: Vec<Document>,
    ignored: Vec<String>,
}

impl UntrustedFiles {
    fn read(&mut self, path: &Path, reader: ConfigReader, trusted: &[Document]) {
        let mut document = match Document::read_bounded(path) {
            Ok(document) => document,
            Err(error) => {
                self.ignored.push(ignored_whole(&error));
                return;
            }
        };
        let below = layers(&[trusted, &self.documents].concat());
        // The merge cannot fail: the trusted files are valid, and so are the values accepted since.
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
        "{path}: {keys}: ignored, because a file in the working directory can only restrict what runs on this \
         machine; to apply all of it, pass --config {path}"
    )
}

fn ignored_whole(error: &ConfigError) -> String {
    let text = error.to_string();
    // serde lists all valid names, which is long; `isol8 config` shows them.
    let text = text.split(", expected one of").next().unwrap_or_default();
    format!("{text}: the file is ignored; run `isol8 config` to see its errors")
}

fn layers(documents: &[Document]) -> Vec<(Origin, Value)> {
    let layers = documents
        .iter()
        .map(|document| (Origin::File(document.path.clone()), document.value.clone()));
    layers.collect()
}

fn merged(layers: &[(Origin, Value)]) -> Result<ConfigFile, ConfigError> {
    // Runtimes start with their defaults, so that a file that sets one key of a runtime keeps the others.
    let mut merged = json!({ "runtimes": ConfigFile::default().runtimes });
    for (_, layer) in layers {
        merge(&mut merged, layer);
    }
    Ok(serde_json::from_value(merged)?)
}

/// The paths of the configuration files; a later file overrides an earlier one.
#[derive(Debug, Default)]
struct Files {
    /// Files of the operator, which may set every key.
    trusted: Vec<PathBuf>,
    /// Files of the working directory, which may only restrict.
    untrusted: Vec<PathBuf>,
}

impl Files {
    /// Finds the files:
    /// - A file that was named is the only one.
    /// - A server reads `config.toml` of the working directory, or else of the user or the system. Below it is the
    ///   TypeScript product's file of the working directory.
    /// - A command reads the user's or the system's file, and the restricting keys of both files of the working directory.
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
        if overrides.reader == ConfigReader::Server {
            let trusted = [theirs, ours.or(operators)].into_iter().flatten();
            return Self {
                trusted: trusted.collect(),
                untrusted: Vec::new(),
            };
        }
        // If the working directory is one of the operator's own, its file is trusted already.
        let is_operators = |path: &PathBuf| elsewhere.iter().any(|own| is_same(own, path));
        let here = [theirs, ours].into_iter().flatten();
        Self {
            trusted: operators.into_iter().collect(),
            untrusted: here.filter(|path| !is_operators(path)).collect(),
        }
    }
}

/// Returns the possible paths of the user's and the system's file. The first that exists is used.
fn operators_files(environment: &dyn Fn(&str) -> Option<String>) -> Vec<PathBuf> {
    // A relative path would lead into the working directory.
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

/// Returns the layer of defaults that come from the host's environment rather than from this program.
fn from_host(environment: &dyn Fn(&str) -> Option<String>) -> Vec<(Origin, Value)> {
    let named = BUNDLE_VARIABLES.into_iter().find_map(|name| {
        let path = environment(name).filter(|path| Path::new(path).is_file())?;
        let value = json!({ "images": { "caBundle": path } });
        Some((Origin::Environment(name), value))
    });
    named.into_iter().collect()
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

/// Merges a layer over the one below. Tables are merged; all other values, including lists, are replaced.
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

/// Adds the file and line to an error about a value, if the value comes from a file.
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
        .find_map(|it| it.error_at(key, &message));
    found.unwrap_or(error)
}

/// Returns the default state directory. The guest's executable is in it, so the file system must allow execution, which
/// `/run` and `/tmp` often forbid.
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

#[cfg(test)]
mod tests {
    use std::fs;

    use isol8_api::NetworkMode;

    use super::*;

    /// A home directory and a working directory with files.
    struct TestDirectories {
        directory: tempfile::TempDir,
    }

    impl TestDirectories {
        fn with(files: &[(&str, &str)]) -> Self {
            let directory = tempfile::tempdir().unwrap();
            fs::create_dir(directory.path().join("here")).unwrap();
            for (name, text) in files {
                let path = directory.path().join(name);
                fs::create_dir_all(path.parent().unwrap()).unwrap();
                fs::write(path, text).unwrap();
            }
            Self { directory }
        }

        fn load(&self, reader: ConfigReader) -> Result<Loaded, ConfigError> {
            self.load_in(reader, "here")
        }

        fn load_in(&self, reader: ConfigReader, directory: &str) -> Result<Loaded, ConfigError> {
            let overrides = Overrides {
                reader,
                directory: self.directory.path().join(directory),
                ..Overrides::default()
            };
            let home = self.directory.path().join("home");
            let home = home.to_str().unwrap();
            Loaded::load(&overrides, &|name| {
                (name == "HOME").then(|| home.to_owned())
            })
        }
    }

    const LOOSE: &str = "stateDir = \"/elsewhere\"\nmaxConcurrent = 3\n\
                         [defaults]\nnetwork = \"host\"\nmemoryLimit = \"64m\"\n\
                         [policy]\nnetwork = [\"none\", \"host\"]\n[network]\nblacklist = [\"^x$\"]";

    #[test]
    fn a_command_takes_of_its_working_directory_what_restricts_and_names_the_rest() {
        for file in ["here/config.toml", "here/isol8.config.json"] {
            let text = match file.ends_with("json") {
                true => toml::from_str::<Value>(LOOSE).unwrap().to_string(),
                false => LOOSE.to_owned(),
            };
            let directories = TestDirectories::with(&[(file, &text)]);
            let loaded = directories.load(ConfigReader::Command).unwrap();
            assert_eq!(
                loaded.config.policy.networks,
                [NetworkMode::None, NetworkMode::Filtered]
            );
            assert_eq!(loaded.config.defaults.network, NetworkMode::None);
            assert_ne!(loaded.config.startup.state, Path::new("/elsewhere"));
            assert_eq!(
                loaded.config.defaults.sandbox.limits.memory.to_string(),
                "64m"
            );
            assert_eq!(loaded.config.network.blacklist, ["^x$"]);
            let [warning] = &loaded.ignored[..] else {
                panic!("{:?}", loaded.ignored)
            };
            let keys = ["stateDir", "defaults.network", "policy.network"];
            assert!(keys.iter().all(|key| warning.contains(key)), "{warning}");
            assert!(!warning.contains("maxConcurrent"), "{warning}");
            assert!(warning.contains("--config "), "{warning}");
            // A server's own directory counts fully, and so does a file that is named.
            let server = directories.load(ConfigReader::Server).unwrap();
            assert_eq!(
                (server.config.admission.max_concurrent, server.ignored.len()),
                (3, 0)
            );
            assert_eq!(server.config.defaults.network, NetworkMode::Host);
            let named = Overrides {
                reader: ConfigReader::Command,
                config: Some(directories.directory.path().join(file)),
                ..Overrides::default()
            };
            let named = Loaded::load(&named, &|_| None).unwrap();
            assert_eq!(named.config.defaults.network, NetworkMode::Host);
        }
    }

    #[test]
    fn images_trust_the_hosts_bundle_unless_the_configuration_says_otherwise() {
        let directory = tempfile::tempdir().unwrap();
        let bundle = directory.path().join("ca.pem");
        fs::write(&bundle, "").unwrap();
        let own = directory.path().join("config.toml");
        let load = |variables: &[(&str, &Path)], text: &str| {
            fs::write(&own, text).unwrap();
            let overrides = Overrides {
                config: Some(own.clone()),
                ..Overrides::default()
            };
            let lookup = |name: &str| {
                let mut found = variables.iter().filter(|(known, _)| *known == name);
                found
                    .next()
                    .map(|(_, path)| path.to_str().unwrap().to_owned())
            };
            Loaded::load(&overrides, &lookup)
                .unwrap()
                .config
                .startup
                .docker
                .ca_bundle
        };
        let missing = directory.path().join("missing.pem");
        for name in BUNDLE_VARIABLES {
            assert_eq!(load(&[(name, &bundle)], ""), Some(bundle.clone()), "{name}");
            assert_eq!(load(&[(name, &missing)], ""), None, "{name}");
        }
        let both = [("CURL_CA_BUNDLE", &*bundle), ("SSL_CERT_FILE", &*own)];
        assert_eq!(load(&both, ""), Some(own.clone()));
        assert_eq!(load(&both, "images.caBundle = \"\""), None);
        let other = load(&both, "images.caBundle = \"/other.pem\"");
        assert_eq!(other, Some("/other.pem".into()));
    }

    #[test]
    fn a_file_that_is_no_configuration_of_ours_is_named_and_ignored() {
        for (text, expected) in [
            (
                "baseURL = \"https://example.org\"\ntitle = \"A site\"",
                "config.toml:1: baseURL",
            ),
            (
                "[cleanup]\nautoPrun = true",
                "config.toml:2: cleanup.autoPrun",
            ),
            ("no = [toml", "config.toml:1: "),
            ("maxConcurrent = \"many\"", "config.toml:1: maxConcurrent"),
            // A value of the right type that contradicts another key.
            (
                "[ceilings]\nmemoryLimit = \"1m\"",
                "defaults.memoryLimit = 512m",
            ),
            (&"#".repeat(2 << 20), "larger than"),
        ] {
            let directories = TestDirectories::with(&[("here/config.toml", text)]);
            let loaded = directories.load(ConfigReader::Command).unwrap();
            let [warning] = &loaded.ignored[..] else {
                panic!("{text:.40}: {:?}", loaded.ignored)
            };
            assert!(warning.contains(expected), "{warning}");
            assert!(warning.len() < 400, "{warning}");
            let defaults = TestDirectories::with(&[])
                .load(ConfigReader::Command)
                .unwrap();
            assert_eq!(loaded.file, defaults.file);
        }
    }

    #[test]
    fn the_users_and_the_systems_directory_count_fully() {
        let text =
            "[policy]\nnetwork = [\"host\"]\n[defaults]\nnetwork = \"host\"\nmemoryLimit = \"64m\"";
        for file in ["home/.config/isol8/config.toml", "home/.isol8/config.toml"] {
            let directories = TestDirectories::with(&[
                (file, text),
                ("here/config.toml", "defaults.memoryLimit = \"32m\""),
            ]);
            let loaded = directories.load(ConfigReader::Command).unwrap();
            assert_eq!(loaded.config.defaults.network, NetworkMode::Host);
            assert_eq!(
                loaded.config.defaults.sandbox.limits.memory.to_string(),
                "32m"
            );
            assert_eq!(loaded.ignored, [""; 0]);
            // In the operator's own directory, its file is the operator's.
            let own = file.rsplit_once('/').unwrap().0;
            let loaded = directories.load_in(ConfigReader::Command, own).unwrap();
            assert_eq!(loaded.config.defaults.network, NetworkMode::Host);
            assert_eq!(loaded.ignored, [""; 0]);
        }
        let places = operators_files(&|name| match name {
            "HOME" => Some("/home/me".to_owned()),
            "XDG_CONFIG_HOME" => Some("relative".to_owned()),
            _ => None,
        });
        let places: Vec<_> = places.iter().map(|it| it.to_str().unwrap()).collect();
        assert_eq!(
            places,
            [
                "/home/me/.config/isol8/config.toml",
                "/home/me/.isol8/config.toml",
                "/etc/isol8/config.toml"
            ]
        );
    }

    #[test]
    fn setup_builds_what_its_working_directory_asks_for() {
        let text = "dependencies = { python = [\"six\"] }\n[[prebuiltImages]]\ntag = \"a:b\"\nruntime = \"bash\"";
        let directories = TestDirectories::with(&[("here/config.toml", text)]);
        let setup = directories.load(ConfigReader::Setup).unwrap();
        assert_eq!(
            (
                setup.config.startup.images.prebuilt.len(),
                setup.ignored.len()
            ),
            (1, 0)
        );
        let command = directories.load(ConfigReader::Command).unwrap();
        assert_eq!(command.config.startup.images.prebuilt.len(), 0);
        assert!(command.ignored[0].contains("prebuiltImages"));
        assert_eq!(command.config.startup.images.dependencies.len(), 1);
    }

    #[test]
    fn a_pattern_that_admits_hosts_and_is_not_anchored_is_warned_of() {
        for (key, text) in [
            (
                "network.whitelist",
                "[network]\nwhitelist = [\"^a$\", 'example\\.com']",
            ),
            (
                "remoteCode.allowedHosts",
                "[remoteCode]\nallowedHosts = ['example\\.com', '^b$']",
            ),
        ] {
            let directories = TestDirectories::with(&[("here/config.toml", text)]);
            let warnings = directories.load(ConfigReader::Server).unwrap().unanchored();
            let [warning] = &warnings[..] else {
                panic!("{warnings:?}")
            };
            let begin = format!("{key}: \"example\\\\.com\" matches inside longer names");
            assert!(warning.starts_with(&begin), "{warning}");
        }
        // The schema has no other key whose patterns admit hosts.
        let schema = crate::schema::schema().to_string();
        assert_eq!(
            schema.matches("Regular expressions on host names").count(),
            2
        );
        let fine = "[network]\nwhitelist = ['^a$', '\\.b$']\nblacklist = ['c']";
        let directories = TestDirectories::with(&[("here/config.toml", fine)]);
        assert_eq!(
            directories.load(ConfigReader::Server).unwrap().unanchored(),
            [""; 0]
        );
    }
}
