//! The configuration: what operators write in `config.toml`, checked once.
//!
//! [`mod@file`] is the file as it is written, section by section in the modules beside it; [`Config`] is what
//! the program works with. [`layers`] reads it: flags override environment variables (`ISOL8_*`), which
//! override `config.toml`, which overrides the TypeScript product's `isol8.config.json`, which overrides the
//! defaults. `trust` says what a file of the working directory may change for a command. [`effective`] tells where each value came from, and [`mod@schema`] describes the file.

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
pub use trust::Reader;

use crate::images::Images;

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
        /// The expected values, and the nearest valid name.
        message: String,
    },
    /// A value is out of its range, and no file says it.
    #[error("{key} = {given}: {expected}")]
    OutOfRange {
        /// The key or variable.
        key: &'static str,
        /// The value that was given.
        given: String,
        /// The valid values.
        expected: String,
    },
    /// Each file is valid, and together they are not.
    #[error("the files of the configuration do not fit together: {0}")]
    Contradictory(#[from] serde_json::Error),
}

/// The checked configuration.
#[derive(Clone, Debug)]
pub struct Config {
    /// The files it came from; a later one overrides an earlier one.
    pub sources: Vec<PathBuf>,
    /// Keys of them that nothing here uses.
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
    /// User that the server runs as where root starts it; `None` for root.
    pub user: Option<String>,
    /// Largest request body in bytes.
    pub max_body: usize,
    /// Most bytes of all request bodies under way that are not small.
    pub max_bodies: usize,
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
    /// How long a client may take nothing of what is sent to it.
    pub stall_timeout: Duration,
    /// Connections that may be open at once.
    pub max_connections: usize,
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
    /// Highest number of sessions of one tenant.
    pub max_sessions_per_tenant: usize,
    /// Requests that may wait for one session.
    pub session_queue: usize,
    /// Treatment of used sandboxes.
    pub strategy: Strategy,
    /// How many sandboxes wait.
    pub pools: BTreeMap<Runtime, PoolSize>,
    /// How old a waiting sandbox may become.
    pub pool_max_age: Duration,
    /// How many sandboxes of a runtime are made ahead at the same time.
    pub pool_refill_width: usize,
    /// How interpreters are kept booted.
    pub kernels: PrewarmConfig,
    /// Settings of requests that name none.
    pub defaults: Defaults,
    /// Upper limits of what a request may ask for.
    pub ceilings: Ceilings,
    /// How much a request may bring.
    pub limits: RequestLimits,
    /// The kinds of network that requests may ask for.
    pub networks: Vec<NetworkMode>,
    /// The images that requests may name whose key is not the master's.
    pub granted_images: Vec<String>,
    /// Images beside the runtimes' own, and what is known of all.
    pub images: Images,
    /// Hosts that packages of each runtime are installed from.
    pub registries: BTreeMap<Runtime, Vec<String>>,
    /// The Docker backend's settings.
    pub docker: DockerSettings,
    /// Directory of the native backend's unpacked roots; `None` for the host's own programs.
    pub images_root: Option<PathBuf>,
    /// Rules for the network of sandboxes and for fetches of clients.
    pub network: EgressConfig,
    /// The proxy that applies these rules.
    pub egress: Egress,
    /// The certificates that sandboxes trust.
    pub certificates: Option<Certificates>,
    /// Code that is fetched for requests. A changed configuration has another one.
    pub remote_code: Arc<RemoteCodeConfig>,
    /// How packages are cached.
    pub packages: PackagesConfig,
    /// The cache of packages; there is none before the file's place is known.
    pub package_cache: Option<RegistryCache>,
}

/// Settings of requests that name none.
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

/// Upper limits of what a request may ask for. A request for more is an error, never silently reduced.
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

/// Values that override the files, and where files are looked for.
#[derive(Clone, Debug, Default)]
pub struct Overrides {
    /// The program that reads the configuration.
    pub reader: Reader,
    /// The working directory; empty for that of the process.
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
    /// [`ConfigError`].
    pub fn load(
        overrides: &Overrides,
        environment: &dyn Fn(&str) -> Option<String>,
    ) -> Result<Self, ConfigError> {
        Ok(Loaded::load(overrides, environment)?.config)
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
        // More can be logged at any time; less only from the start on.
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
        keep("runtimes", self.kernels != before.kernels);
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
        self.kernels.clone_from(&before.kernels);
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
