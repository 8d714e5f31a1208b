//! The configuration: what operators write in `config.toml`, checked once.
//!
//! - [`mod@file`]: the file as it is written, with a module for each group of sections.
//! - [`Config`]: the checked values that the program works with.
//! - [`layers`]: reads the sources. Flags override environment variables (`ISOL8_*`), which override `config.toml`, which
//!   overrides the TypeScript product's `isol8.config.json`, which overrides the defaults.
//! - `trust`: the keys that a file of the working directory may set for a command.
//! - [`effective`]: every value in effect, with its source.
//! - [`mod@schema`]: the JSON Schema of the file.

pub(crate) mod certificates;
mod check;
mod document;
pub mod effective;
pub mod file;
mod images;
pub mod layers;
mod limits;
pub mod network;
pub mod packages;
mod policy;
mod pool;
mod ports;
pub mod schema;
mod server;
mod trust;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use isol8_actors::ServiceConfig;
use isol8_actors::admission::AdmissionConfig;
use isol8_actors::pool::{HostProcessors, PoolConfig, PoolSize, SandboxDefaults, Strategy};
use isol8_actors::pruner::PrunerConfig;
use isol8_actors::registry::RegistryConfig;
use isol8_api::{ByteSize, NetworkMode, Runtime};
use isol8_backend::{Certificates, Limits, PrewarmConfig};
use isol8_egress::{Egress, EgressConfig};
use isol8_registry_cache::RegistryCache;

pub use file::{BackendChoice, ConfigFile};
pub use layers::{Loaded, Origin};
pub use network::RemoteCodeConfig;
pub use packages::PackagesConfig;
pub use trust::ConfigReader;

use crate::images::Images;

/// Error in the configuration. The text names the file and line, the key, and the fix.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file could not be read.
    #[error("{path}: {source}", path = .path.display())]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// The error of the system.
        source: std::io::Error,
    },
    /// The file is not valid.
    #[error("{}:{line}: {message}", .path.display())]
    Invalid {
        /// The file.
        path: PathBuf,
        /// Line of the fault, from 1.
        line: usize,
        /// The expected values, and the nearest valid name.
        message: String,
    },
    /// A value is out of its range, and comes from no file.
    #[error("{key} = {given}: {expected}")]
    OutOfRange {
        /// The key, or the environment variable.
        key: &'static str,
        /// The value that was given.
        given: String,
        /// The valid values.
        expected: String,
    },
    /// Each file is valid, but the files together are not.
    #[error("the files of the configuration do not fit together: {0}")]
    Contradictory(#[from] serde_json::Error),
}

/// The checked configuration.
#[derive(Clone, Debug)]
pub struct Config {
    /// The files that were read; a later file overrides an earlier one.
    pub sources: Vec<PathBuf>,
    /// The keys of each file that this program does not use.
    pub unused: Vec<(PathBuf, Vec<&'static str>)>,
    /// Whether to log in detail.
    pub debug: bool,
    /// The backend to run sandboxes on.
    pub backend: BackendChoice,
    /// Directory in which instances keep their sandboxes' directories.
    pub state: PathBuf,
    /// Address to listen on.
    pub host: String,
    /// Port to listen on.
    pub port: u16,
    /// User that the server runs as if root starts it; `None` for root.
    pub user: Option<String>,
    /// Largest request body in bytes.
    pub max_body: usize,
    /// Most bytes of all request bodies under way together; small bodies do not count.
    pub max_bodies: usize,
    /// Largest WebSocket message in bytes. The `execute` message has the limit of a request body instead.
    pub max_message: usize,
    /// Time in which a WebSocket's client has to send its `execute` message.
    pub message_within: Duration,
    /// Time in which a client has to send a request's line and headers.
    pub header_timeout: Duration,
    /// Time in which a body has to arrive.
    pub body_timeout: Duration,
    /// Time for which an idle connection is kept for the next request.
    pub keep_alive: Duration,
    /// Time after which a client that accepts no data counts as disconnected.
    pub stall_timeout: Duration,
    /// Connections that may be open at once.
    pub max_connections: usize,
    /// Interval at which a WebSocket's client is pinged during its run.
    pub ping_every: Duration,
    /// Limits for runs at the same time and for waiting requests.
    pub admission: AdmissionConfig,
    /// Rules for the end of idle sessions.
    pub cleanup: PrunerConfig,
    /// Time that runs may go on after the server was told to end.
    pub shutdown_grace: Duration,
    /// Whether sessions survive a server that was told to end.
    pub keep_sessions: bool,
    /// Time for which sessions survive without a server.
    pub adoptable_for: Duration,
    /// Origins whose pages may call the server from a browser.
    pub cors_origins: Vec<String>,
    /// Time for which the result of a request with an idempotency key is kept.
    pub idempotency: Duration,
    /// Highest number of sessions.
    pub max_sessions: usize,
    /// Highest number of sessions of one tenant.
    pub max_sessions_per_tenant: usize,
    /// Requests that may wait for one session.
    pub session_queue: usize,
    /// Treatment of used sandboxes.
    pub strategy: Strategy,
    /// Number of idle sandboxes of each runtime.
    pub pools: BTreeMap<Runtime, PoolSize>,
    /// Age at which an idle sandbox is replaced.
    pub pool_max_age: Duration,
    /// Sandboxes of a runtime that are created ahead of requests at the same time.
    pub pool_refill_width: usize,
    /// Settings for interpreters that are started ahead of requests.
    pub prewarm: PrewarmConfig,
    /// Settings for requests that do not set them.
    pub defaults: Defaults,
    /// Upper limits for the settings of a request.
    pub ceilings: Ceilings,
    /// Limits for the size of one request.
    pub limits: RequestLimits,
    /// The network modes that requests may ask for.
    pub networks: Vec<NetworkMode>,
    /// The images that requests with another key than the master key may name.
    pub granted_images: Vec<String>,
    /// Images in addition to the runtimes' own, and the packages in all of them.
    pub images: Images,
    /// Hosts from which packages of each runtime are installed.
    pub registries: BTreeMap<Runtime, Vec<String>>,
    /// The Docker backend's settings.
    pub docker: DockerSettings,
    /// Directory of the native backend's unpacked roots; `None` for the host's own programs.
    pub images_root: Option<PathBuf>,
    /// Rules for the network of sandboxes, and for fetches that the server does for clients.
    pub network: EgressConfig,
    /// The proxy that applies these rules.
    pub egress: Egress,
    /// The certificates that sandboxes trust.
    pub certificates: Option<Certificates>,
    /// Settings for code that is fetched for requests. A changed configuration has a new value behind the `Arc`.
    pub remote_code: Arc<RemoteCodeConfig>,
    /// Settings of the package cache.
    pub packages: PackagesConfig,
    /// The package cache; `None` if it is off, or before [`layers`] has made it.
    pub package_cache: Option<RegistryCache>,
}

/// Settings for requests that do not set them.
#[derive(Clone, Debug, PartialEq)]
pub struct Defaults {
    /// Milliseconds after which a run is ended.
    pub timeout_ms: u64,
    /// Network mode of the program.
    pub network: NetworkMode,
    /// Limits and sizes of the sandbox.
    pub sandbox: SandboxDefaults,
    /// Bytes kept of each output stream.
    pub max_output_size: u64,
}

/// Upper limits for the settings of a request. A request for more is an error, and is never silently reduced.
#[derive(Clone, Debug, PartialEq)]
pub struct Ceilings {
    /// Milliseconds after which a run is ended.
    pub timeout_ms: u64,
    /// Cores, memory and processes.
    pub limits: Limits,
    /// Size of `/sandbox` and of `/tmp`, each.
    pub tmpfs_size: ByteSize,
    /// Bytes kept of each output stream.
    pub max_output_size: u64,
}

/// Limits for the size of one request. A larger request is an error.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RequestLimits {
    /// Most files in a request, and most files that a request asks for.
    pub files: usize,
    /// Longest path in a sandbox, in bytes.
    pub path_length: usize,
    /// Most environment variables.
    pub variables: usize,
    /// Largest environment variable in bytes, name and value together.
    pub variable_bytes: usize,
    /// Most bytes of all environment variables together.
    pub environment_bytes: usize,
}

/// The Docker backend's settings.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DockerSettings {
    /// The engine's address; `None` for `DOCKER_HOST` or the usual socket.
    pub host: Option<String>,
    /// The images of runtimes that do not use the image that `isol8 setup` builds.
    pub images: BTreeMap<Runtime, String>,
    /// The base image of the runtime images.
    pub base: String,
    /// Whether the base image is made from Debian's packages, without an attempt to pull it.
    pub bootstrap: bool,
    /// File of certificates that runtime images trust in addition to their own.
    pub ca_bundle: Option<PathBuf>,
}

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

    /// Replaces the settings that need a restart by those of the configuration before, and returns the keys whose values
    /// differ.
    pub fn keep_fixed(&mut self, before: &Self) -> Vec<&'static str> {
        let mut kept = Vec::new();
        let mut keep = |key, differs| {
            if differs {
                kept.push(key);
            }
        };
        // Logging can become more detailed at any time, but less detailed only at a start.
        keep("debug", before.debug && !self.debug);
        keep("backend", self.backend != before.backend);
        keep("stateDir", self.state != before.state);
        keep("server.host", self.host != before.host);
        keep("server.port", self.port != before.port);
        keep("server.user", self.user != before.user);
        keep(
            "server.corsOrigins",
            self.cors_origins != before.cors_origins,
        );
        self.cors_origins.clone_from(&before.cors_origins);
        keep("server.maxBodiesSize", self.max_bodies != before.max_bodies);
        self.max_bodies = before.max_bodies;
        let key = "server.headerTimeoutMs";
        keep(key, self.header_timeout != before.header_timeout);
        self.header_timeout = before.header_timeout;
        keep("server.keepAliveMs", self.keep_alive != before.keep_alive);
        self.keep_alive = before.keep_alive;
        let key = "server.stallTimeoutMs";
        keep(key, self.stall_timeout != before.stall_timeout);
        self.stall_timeout = before.stall_timeout;
        let key = "server.maxConnections";
        keep(key, self.max_connections != before.max_connections);
        self.max_connections = before.max_connections;
        keep("runtimes", self.prewarm != before.prewarm);
        keep("docker", self.docker != before.docker);
        let key = "network.caBundle";
        keep(key, self.certificates != before.certificates);
        self.certificates.clone_from(&before.certificates);
        if self.network == before.network {
            self.egress.clone_from(&before.egress);
        }
        let key = "prebuiltImages and dependencies";
        keep(key, self.images != before.images);
        self.images.clone_from(&before.images);
        keep("images.root", self.images_root != before.images_root);
        self.images_root.clone_from(&before.images_root);
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
        self.user.clone_from(&before.user);
        self.prewarm.clone_from(&before.prewarm);
        self.docker.clone_from(&before.docker);
        self.package_cache = match self.packages == before.packages {
            true => before.package_cache.clone(),
            false => self.packages.cache(&self.state),
        };
        kept
    }

    /// Returns the settings of the service.
    #[must_use]
    pub fn service(&self) -> ServiceConfig {
        ServiceConfig {
            pool: PoolConfig {
                strategy: self.strategy,
                sizes: self.pools.clone(),
                images: self.images.pools(&self.pools),
                max_age: self.pool_max_age,
                refill_width: self.pool_refill_width,
                sandbox: self.defaults.sandbox,
                processors: Arc::new(HostProcessors::default()),
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
}

#[cfg(test)]
mod tests;
