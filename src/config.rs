//! The configuration: what operators write in `config.toml`, checked once.
//!
//! [`mod@file`] is the file as it is written; [`Config`] is what the program works with. Flags override
//! environment variables (`ISOL8_*`), which override the file, which overrides the defaults.

pub mod file;
pub mod network;
mod policy;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use isol8_actors::ServiceConfig;
use isol8_actors::admission::AdmissionConfig;
use isol8_actors::pool::{PoolConfig, PoolSize, SandboxDefaults, Strategy};
use isol8_actors::pruner::PrunerConfig;
use isol8_actors::registry::RegistryConfig;
use isol8_api::{ByteSize, NetworkMode, Runtime};
use isol8_backend::{Kernels, Limits};
use isol8_egress::{Egress, EgressConfig};

pub use file::{BackendChoice, ConfigFile};
pub use network::RemoteCodeConfig;

/// Names an operator's file; checked before the usual places.
const PATH_VARIABLE: &str = "ISOL8_CONFIG";

/// The configuration could not be used; the text names the place, the key and the fix.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file could not be read.
    #[error("{path}: {source}", path = .path.display())]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// Why not.
        source: std::io::Error,
    },
    /// The file is not valid.
    #[error("{}:{line}: {message}", .path.display())]
    Invalid {
        /// The file.
        path: PathBuf,
        /// Line of the fault, from 1.
        line: usize,
        /// What was expected, and the nearest valid name.
        message: String,
    },
    /// A value is out of its range, wherever it came from.
    #[error("{key} = {given}: {expected}")]
    OutOfRange {
        /// The key or variable.
        key: &'static str,
        /// What it was set to.
        given: String,
        /// What is valid.
        expected: String,
    },
}

/// The checked configuration.
#[derive(Clone, Debug)]
pub struct Config {
    /// The file it came from, if any.
    pub source: Option<PathBuf>,
    /// Which backend to run sandboxes on.
    pub backend: BackendChoice,
    /// Where instances keep their sandboxes' directories.
    pub state: PathBuf,
    /// Address to listen on.
    pub host: String,
    /// Port to listen on.
    pub port: u16,
    /// Largest request body in bytes.
    pub max_body: usize,
    /// Largest WebSocket message in bytes, but for the one that says what to run.
    pub max_message: usize,
    /// How long a WebSocket may take to say what to run.
    pub message_within: Duration,
    /// How long a client may take to send a request's line and headers.
    pub header_timeout: Duration,
    /// How long a body may take to arrive.
    pub body_timeout: Duration,
    /// How long a connection is kept for the next request.
    pub keep_alive: Duration,
    /// How often a WebSocket's client is pinged while its run goes on.
    pub ping_every: Duration,
    /// Runs at once, and requests that wait for their turn.
    pub admission: AdmissionConfig,
    /// When idle sessions end.
    pub cleanup: PrunerConfig,
    /// How long runs may go on once the server was told to end.
    pub shutdown_grace: Duration,
    /// Whether sessions outlive a server that was told to end.
    pub keep_sessions: bool,
    /// How long sessions outlive a server that is gone.
    pub adoptable_for: Duration,
    /// Origins whose pages may call the server from a browser.
    pub cors_origins: Vec<String>,
    /// How long the result of a request with an idempotency key is kept.
    pub idempotency: Duration,
    /// Sessions that may exist at once.
    pub max_sessions: usize,
    /// Of these, sessions of one tenant.
    pub max_sessions_per_tenant: usize,
    /// Requests that may wait for one session.
    pub session_queue: usize,
    /// What happens to a used sandbox.
    pub strategy: Strategy,
    /// How many sandboxes wait.
    pub pools: BTreeMap<Runtime, PoolSize>,
    /// How old a waiting sandbox may become.
    pub pool_max_age: Duration,
    /// How many sandboxes of a runtime are made ahead at the same time.
    pub pool_refill_width: usize,
    /// How interpreters are kept booted.
    pub kernels: Kernels,
    /// What a request gets that asks for nothing.
    pub defaults: Defaults,
    /// What a request may ask for at most.
    pub ceilings: Ceilings,
    /// How much a request may bring.
    pub limits: RequestLimits,
    /// The kinds of network that requests may ask for.
    pub networks: Vec<NetworkMode>,
    /// Hosts that packages of each runtime are installed from.
    pub registries: BTreeMap<Runtime, Vec<String>>,
    /// The Docker backend's settings.
    pub docker: DockerSettings,
    /// Where the native backend's unpacked roots are; `None` for the host's own programs.
    pub images_root: Option<PathBuf>,
    /// What is reached through the network, by sandboxes and for clients.
    pub network: EgressConfig,
    /// What reaches it, by these rules.
    pub egress: Egress,
    /// Code that is fetched for requests. A changed configuration has another one.
    pub remote_code: Arc<RemoteCodeConfig>,
}

/// What a request gets that asks for nothing.
#[derive(Clone, Debug, PartialEq)]
pub struct Defaults {
    /// Milliseconds until a run is ended.
    pub timeout_ms: u64,
    /// How far its programs reach.
    pub network: NetworkMode,
    /// Limits and sizes.
    pub sandbox: SandboxDefaults,
    /// Bytes kept of each output stream.
    pub max_output_size: u64,
}

/// What a request may ask for at most. More is an error, never silently less.
#[derive(Clone, Debug, PartialEq)]
pub struct Ceilings {
    /// Milliseconds until a run is ended.
    pub timeout_ms: u64,
    /// Cores, memory and processes.
    pub limits: Limits,
    /// Size of `/sandbox` and of `/tmp`, each.
    pub tmpfs_size: ByteSize,
    /// Bytes kept of each output stream.
    pub max_output_size: u64,
}

/// How much one request may bring. More is an error.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RequestLimits {
    /// Files in it, and files that it asks for, each.
    pub files: usize,
    /// Bytes of a path in a sandbox.
    pub path_length: usize,
    /// Variables of the environment.
    pub variables: usize,
    /// Bytes of one of them, name and value.
    pub variable_bytes: usize,
    /// Bytes of all of them together.
    pub environment_bytes: usize,
}

/// The Docker backend's settings.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DockerSettings {
    /// The engine's address; `None` for `DOCKER_HOST` or the usual socket.
    pub host: Option<String>,
    /// The image of each runtime that is not to have the one that `isol8 setup` builds.
    pub images: BTreeMap<Runtime, String>,
    /// The image that runtime images build on.
    pub base: String,
    /// Whether that is bootstrapped from Debian's packages without trying to pull it.
    pub bootstrap: bool,
    /// Certificates that runtime images trust beside their own.
    pub ca_bundle: Option<PathBuf>,
}

/// What overrides the file.
#[derive(Clone, Debug, Default)]
pub struct Overrides {
    /// `--config`.
    pub config: Option<PathBuf>,
    /// `--backend`.
    pub backend: Option<BackendChoice>,
    /// `--port`.
    pub port: Option<u16>,
}

impl Config {
    /// Reads the configuration. `environment` looks up a variable.
    ///
    /// # Errors
    /// [`ConfigError`].
    pub fn load(
        overrides: &Overrides,
        environment: &dyn Fn(&str) -> Option<String>,
    ) -> Result<Self, ConfigError> {
        let source = find_file(overrides, environment);
        let file = match &source {
            Some(path) => ConfigFile::read(path)?,
            None => ConfigFile::default(),
        };
        let mut config = file.check(default_state(environment))?;
        config.source = source;
        config.apply_environment(environment)?;
        if let Some(backend) = overrides.backend {
            config.backend = backend;
        }
        if let Some(port) = overrides.port {
            config.port = port;
        }
        Ok(config)
    }

    /// Takes over from the configuration before it what a running server cannot change. Returns the
    /// keys where that makes a difference.
    pub fn keep_fixed(&mut self, before: &Self) -> Vec<&'static str> {
        let mut kept = Vec::new();
        let mut keep = |key, differs| {
            if differs {
                kept.push(key);
            }
        };
        keep("backend", self.backend != before.backend);
        keep("stateDir", self.state != before.state);
        keep("server.host", self.host != before.host);
        keep("server.port", self.port != before.port);
        keep(
            "server.corsOrigins",
            self.cors_origins != before.cors_origins,
        );
        self.cors_origins.clone_from(&before.cors_origins);
        let key = "server.headerTimeoutMs";
        keep(key, self.header_timeout != before.header_timeout);
        self.header_timeout = before.header_timeout;
        keep("server.keepAliveMs", self.keep_alive != before.keep_alive);
        self.keep_alive = before.keep_alive;
        keep("runtimes", self.kernels != before.kernels);
        keep("docker", self.docker != before.docker);
        keep("images.root", self.images_root != before.images_root);
        self.images_root.clone_from(&before.images_root);
        keep("network", self.network != before.network);
        self.network.clone_from(&before.network);
        self.egress.clone_from(&before.egress);
        keep(
            "remoteCode.cacheMaxBytes",
            self.remote_code.keep_bytes != before.remote_code.keep_bytes,
        );
        let shutdown = |config: &Self| {
            let Self {
                shutdown_grace,
                keep_sessions,
                adoptable_for,
                ..
            } = *config;
            (shutdown_grace, keep_sessions, adoptable_for)
        };
        keep("shutdown", shutdown(self) != shutdown(before));
        (self.shutdown_grace, self.keep_sessions, self.adoptable_for) = shutdown(before);
        self.backend = before.backend;
        self.state.clone_from(&before.state);
        self.host.clone_from(&before.host);
        self.port = before.port;
        self.kernels.clone_from(&before.kernels);
        self.docker.clone_from(&before.docker);
        kept
    }

    /// What the service needs of it.
    #[must_use]
    pub fn service(&self) -> ServiceConfig {
        ServiceConfig {
            pool: PoolConfig {
                strategy: self.strategy,
                sizes: self.pools.clone(),
                max_age: self.pool_max_age,
                refill_width: self.pool_refill_width,
                sandbox: self.defaults.sandbox,
                ..PoolConfig::default()
            },
            sessions: RegistryConfig {
                max_sessions: self.max_sessions,
                max_sessions_per_tenant: self.max_sessions_per_tenant,
                queue_limit: self.session_queue,
            },
            admission: self.admission.clone(),
            pruner: self.cleanup,
            shutdown_grace: self.shutdown_grace,
            keep_sessions: self.keep_sessions,
        }
    }

    fn apply_environment(
        &mut self,
        environment: &dyn Fn(&str) -> Option<String>,
    ) -> Result<(), ConfigError> {
        if let Some(given) = environment("ISOL8_BACKEND") {
            self.backend = given.parse().map_err(|expected| ConfigError::OutOfRange {
                key: "ISOL8_BACKEND",
                given,
                expected,
            })?;
        }
        if let Some(given) = environment("ISOL8_STATE_DIR") {
            self.state = given.into();
        }
        for key in ["PORT", "ISOL8_PORT"] {
            if let Some(given) = environment(key) {
                self.port = given.parse().map_err(|_| ConfigError::OutOfRange {
                    key,
                    given,
                    expected: "expected a port, 0 to 65535".to_owned(),
                })?;
            }
        }
        Ok(())
    }
}

fn find_file(
    overrides: &Overrides,
    environment: &dyn Fn(&str) -> Option<String>,
) -> Option<PathBuf> {
    if let Some(path) = &overrides.config {
        return Some(path.clone());
    }
    if let Some(path) = environment(PATH_VARIABLE) {
        return Some(path.into());
    }
    let home = environment("HOME").map(|home| Path::new(&home).join(".isol8/config.toml"));
    [Some(PathBuf::from("config.toml")), home]
        .into_iter()
        .flatten()
        .find(|path| path.is_file())
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

#[cfg(test)]
mod tests {
    use super::*;

    fn load(text: &str, environment: &[(&str, &str)]) -> Result<Config, ConfigError> {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("config.toml");
        std::fs::write(&path, text).unwrap();
        let overrides = Overrides {
            config: Some(path),
            ..Overrides::default()
        };
        let lookup = |name: &str| {
            let found = environment.iter().find(|(known, _)| *known == name);
            found.map(|(_, value)| (*value).to_owned())
        };
        Config::load(&overrides, &lookup)
    }

    #[test]
    fn flags_override_the_environment_which_overrides_the_file() {
        let text = "[server]\nport = 1";
        assert_eq!(load(text, &[]).unwrap().port, 1);
        let both = [("PORT", "2"), ("ISOL8_PORT", "3")];
        assert_eq!(load(text, &both[..1]).unwrap().port, 2);
        assert_eq!(load(text, &both).unwrap().port, 3);
        let overrides = Overrides {
            port: Some(4),
            ..Overrides::default()
        };
        let lookup = |name: &str| (name == "ISOL8_PORT").then(|| "3".to_owned());
        assert_eq!(Config::load(&overrides, &lookup).unwrap().port, 4);
    }

    #[test]
    fn an_unknown_key_is_named_with_its_line_and_the_nearest_valid_one() {
        let error = load("backend = \"native\"\n[defaults]\ntimeoutMS = 5\n", &[]).unwrap_err();
        let text = error.to_string();
        assert!(text.contains("config.toml:3: "), "{text}");
        assert!(text.contains("timeoutMS"), "{text}");
        assert!(text.contains("did you mean `timeoutMs`?"), "{text}");
    }

    #[test]
    fn a_bad_value_says_what_was_expected() {
        let error = load("[defaults]\nmemoryLimit = \"lots\"", &[]).unwrap_err();
        assert!(
            error.to_string().contains("\"lots\" is not a size"),
            "{error}"
        );
        let error = load("backend = \"podman\"", &[]).unwrap_err();
        assert!(error.to_string().contains("auto"), "{error}");
        let error = load("", &[("ISOL8_PORT", "x")]).unwrap_err();
        assert_eq!(
            error.to_string(),
            "ISOL8_PORT = x: expected a port, 0 to 65535"
        );
    }

    #[test]
    fn what_is_wrong_with_the_network_names_its_key() {
        for (text, expected) in [
            (
                "[network]\nwhitelist = [\"a\", \"(b\"]",
                "network.whitelist = (b: not a usable",
            ),
            (
                "[network]\nblacklist = [\"*\"]",
                "network.blacklist = *: not a usable",
            ),
            (
                "[network]\nallowedCidrs = [\"10/8\"]",
                "network.allowedCidrs = 10/8: expected",
            ),
            (
                "[network]\nmaxConnections = 0",
                "network.maxConnections = 0: expected 1",
            ),
            (
                "[remoteCode]\nallowedSchemes = [\"ftp\"]",
                "remoteCode.allowedSchemes = ftp: ",
            ),
            (
                "[remoteCode]\nallowedHosts = [\"[\"]",
                "remoteCode.allowedHosts = [: not a usable",
            ),
            (
                "[remoteCode]\nblockedHosts = [\"[\"]",
                "remoteCode.blockedHosts = [: not a usable",
            ),
        ] {
            let error = load(text, &[]).unwrap_err().to_string();
            assert!(error.starts_with(expected), "{error}");
        }
    }

    #[test]
    fn a_pool_may_follow_the_demand() {
        let size = |text| load(text, &[]).unwrap().pools[&Runtime::Node];
        assert_eq!(size("poolSize = 3"), PoolSize::fixed(3, 4));
        let both = "poolSize = { clean = 1, dirty = 2 }";
        assert_eq!(size(both), PoolSize::fixed(1, 2));
        let auto = "[runtimes.node]\npoolSize = { auto = true, min = 1, max = 8 }";
        let most_clean = Some(8);
        let expected = PoolSize {
            most_clean,
            ..PoolSize::fixed(1, 4)
        };
        assert_eq!(size(auto), expected);
        let wrong = load("poolSize = { auto = true, max = 8 }", &[]).unwrap_err();
        assert!(wrong.to_string().contains("min = number"), "{wrong}");
    }

    #[test]
    fn what_needs_a_restart_stays_and_is_named() {
        let before = load("maxConcurrent = 1", &[]).unwrap();
        let text = "maxConcurrent = 2\n[server]\nport = 9\nheaderTimeoutMs = 5\nbodyTimeoutMs = 6\n\
                    [runtimes.python]\npreload = [\"json\"]\n[limits]\nfiles = 7\n\
                    [network]\nmaxConnections = 1";
        let mut after = load(text, &[]).unwrap();
        let kept = after.keep_fixed(&before);
        let fixed = [
            "server.port",
            "server.headerTimeoutMs",
            "runtimes",
            "network",
        ];
        assert_eq!(kept, fixed);
        assert_eq!(after.network, before.network);
        assert_eq!(after.port, before.port);
        assert_eq!(after.header_timeout, before.header_timeout);
        assert_eq!(after.body_timeout, Duration::from_millis(6));
        assert_eq!(after.limits.files, 7);
        assert_eq!(after.admission.max_concurrent, 2);
    }

    #[test]
    fn a_limit_beyond_the_kernels_is_refused() {
        for (limit, most) in [
            ("pathLength = 4096", "4095"),
            ("variableSize = \"1m\"", "120k"),
        ] {
            let error = load(&format!("[limits]\n{limit}"), &[]).unwrap_err();
            let expected = format!("expected at most {most}, which is the kernel's limit");
            assert!(error.to_string().ends_with(&expected), "{error}");
        }
        let error = load("[server]\nbodyTimeoutMs = 0", &[]).unwrap_err();
        let expected = "server.bodyTimeoutMs = 0: expected 1 or more";
        assert_eq!(error.to_string(), expected);
    }

    #[test]
    fn a_default_beyond_its_ceiling_is_refused() {
        let error = load(
            "[defaults]\ntimeoutMs = 5000\n[ceilings]\ntimeoutMs = 1000",
            &[],
        );
        let text = error.unwrap_err().to_string();
        assert!(text.starts_with("defaults.timeoutMs = 5000: "), "{text}");
    }

    #[test]
    fn the_shipped_file_shows_every_key_with_its_default() {
        let shipped = ConfigFile::parse(include_str!("../config.toml")).unwrap();
        assert_eq!(shipped, ConfigFile::default());
        let keys = |value: &toml::Table| -> Vec<String> { nested_keys("", value) };
        let shipped: toml::Table = toml::from_str(include_str!("../config.toml")).unwrap();
        let defaults = toml::Table::try_from(ConfigFile::default()).unwrap();
        let missing: Vec<_> = keys(&defaults)
            .into_iter()
            .filter(|key| !keys(&shipped).contains(key))
            .collect();
        assert!(missing.is_empty(), "config.toml does not show {missing:?}");
    }

    fn nested_keys(prefix: &str, table: &toml::Table) -> Vec<String> {
        let mut keys = Vec::new();
        for (name, value) in table {
            match value {
                toml::Value::Table(inner) => {
                    keys.extend(nested_keys(&format!("{prefix}{name}."), inner));
                }
                _ => keys.push(format!("{prefix}{name}")),
            }
        }
        keys
    }
}
