//! `config.toml` as it is written, and its checks.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use isol8_actors::admission::AdmissionConfig;
use isol8_actors::pruner::PrunerConfig;
use isol8_api::Runtime;
use isol8_backend::PrewarmConfig;
use isol8_backend_docker::setup::DEFAULT_BASE;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::certificates;
use super::check::{bytes, given, require};
use super::images::{self, PrebuiltTable};
use super::limits::{CeilingsTable, DefaultsTable, LimitsTable};
use super::network::{NetworkTable, RemoteCodeTable};
use super::packages::PackagesTable;
use super::policy::PolicyTable;
use super::pool::{PoolSize, RuntimeTable, RuntimeTables, Strategy, is_host};
use super::server::{self, Cleanup, Server, Sessions, Shutdown};
use super::{Config, ConfigError, DockerSettings};
use crate::packages;

/// The whole file. Every key is optional; the shipped file shows each with its default.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct ConfigFile {
    /// "native", "docker", or "auto": native, unless images are configured or native lacks something.
    backend: BackendChoice,
    /// Directory for sandboxes' directories; "" is /var/lib/isol8, or ~/.local/state/isol8.
    state_dir: String,
    /// Log what happens in detail.
    debug: bool,
    /// Runs at once; turns go round the tenants that wait.
    max_concurrent: usize,
    /// Runs of one tenant at once; 0 is as many as maxConcurrent.
    max_concurrent_per_tenant: usize,
    /// Requests that may wait for their turn; beyond it, 503 with Retry-After, or 429 for the tenant that has most of them.
    max_queued: usize,
    /// Milliseconds that one waits at most; then 503.
    max_wait_ms: u64,
    /// "fast": a used sandbox is reset and serves its tenant again; "secure": it is destroyed.
    pool_strategy: Strategy,
    /// Sandboxes that wait, per runtime: never used ones (clean), and used ones (dirty).
    pool_size: PoolSize,
    /// Milliseconds after which a waiting sandbox is replaced.
    pool_max_age_ms: u64,
    /// Sandboxes of a runtime that are made ahead at the same time.
    pool_refill_width: usize,
    /// The HTTP server.
    server: Server,
    /// How many sessions there may be.
    sessions: Sessions,
    /// When unused sessions end.
    cleanup: Cleanup,
    /// Treatment of sessions when the server ends.
    shutdown: Shutdown,
    /// Settings of requests that name none.
    defaults: DefaultsTable,
    /// Upper limits of what a request may ask for; more is an error.
    ceilings: CeilingsTable,
    /// How much a request may bring; more is an error.
    limits: LimitsTable,
    /// Options that weaken isolation; asking for one that is not granted is an error, 403.
    policy: PolicyTable,
    /// Sandboxes kept ready for each runtime.
    #[schemars(with = "RuntimeTables")]
    pub(super) runtimes: BTreeMap<Runtime, RuntimeTable>,
    /// The Docker engine.
    docker: DockerTable,
    /// Images that `isol8 setup` builds.
    images: ImagesTable,
    /// Hosts that sandboxes with `network: "filtered"` reach, through the server's proxy.
    network: NetworkTable,
    /// Code that the server fetches for requests with `codeUrl`.
    remote_code: RemoteCodeTable,
    /// Docker images beside the runtimes' own, with packages in them.
    prebuilt_images: Vec<PrebuiltTable>,
    /// Packages in the runtimes' own Docker images.
    #[schemars(with = "BTreeMap<String, Vec<String>>")]
    dependencies: BTreeMap<Runtime, Vec<String>>,
    /// Settings of `installPackages`.
    packages: PackagesTable,
}

impl Default for ConfigFile {
    fn default() -> Self {
        let size = PoolSize::fixed;
        let bash = RuntimeTable {
            pool_size: Some(size(1)),
            ..RuntimeTable::default()
        };
        Self {
            backend: BackendChoice::Auto,
            state_dir: String::new(),
            debug: false,
            max_concurrent: 10,
            max_concurrent_per_tenant: 0,
            max_queued: 100,
            max_wait_ms: 30_000,
            pool_strategy: Strategy::Fast,
            pool_size: PoolSize::fixed(0),
            pool_max_age_ms: 3_600_000,
            pool_refill_width: 2,
            server: Server::default(),
            sessions: Sessions::default(),
            cleanup: Cleanup::default(),
            shutdown: Shutdown::default(),
            defaults: DefaultsTable::default(),
            ceilings: CeilingsTable::default(),
            limits: LimitsTable::default(),
            policy: PolicyTable::default(),
            runtimes: BTreeMap::from([
                (Runtime::Python, RuntimeTable::python(size(2))),
                (Runtime::Bash, bash),
            ]),
            docker: DockerTable::default(),
            images: ImagesTable::default(),
            network: NetworkTable::default(),
            remote_code: RemoteCodeTable::default(),
            prebuilt_images: Vec::new(),
            dependencies: BTreeMap::new(),
            packages: PackagesTable::default(),
        }
    }
}

/// The backend to run sandboxes on.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum BackendChoice {
    /// Native if it can do all that is asked for, else Docker.
    #[default]
    Auto,
    /// Docker.
    Docker,
    /// Linux namespaces, without a daemon.
    Native,
}

impl FromStr for BackendChoice {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "auto" => Ok(Self::Auto),
            "docker" => Ok(Self::Docker),
            "native" => Ok(Self::Native),
            _ => Err("expected auto, docker or native".to_owned()),
        }
    }
}

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub(super) struct DockerTable {
    /// Address of the engine; "" is $DOCKER_HOST, or the usual socket.
    pub(super) host: String,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub(super) struct ImagesTable {
    /// Image to build on: Debian, or made from it; pulled if it is missing.
    pub(super) base: String,
    /// Make the base from Debian's packages without trying to pull it.
    pub(super) bootstrap: bool,
    /// PEM file of certificates to trust beside the usual ones; "" for none. Left out, it is the file that
    /// SSL_CERT_FILE or a variable like it names.
    pub(super) ca_bundle: String,
    /// For Docker: build and serve isol8:full as well, with what code interpreters have.
    pub(super) full: bool,
    /// Directory where native sandboxes have their programs from; "" is this host's own /usr.
    pub(super) root: String,
}

impl Default for ImagesTable {
    fn default() -> Self {
        Self {
            base: DEFAULT_BASE.to_owned(),
            bootstrap: false,
            ca_bundle: String::new(),
            full: false,
            root: String::new(),
        }
    }
}

impl ConfigFile {
    /// Checks what the types cannot, and fills in what depends on the host.
    ///
    /// # Errors
    /// [`ConfigError::OutOfRange`] naming the key.
    pub fn check(self, default_state: PathBuf) -> Result<Config, ConfigError> {
        let ceilings = self.ceilings.check();
        let defaults = self.defaults.check(&ceilings)?;
        let limits = self.limits.check()?;
        self.check_counts()?;
        let pools = Runtime::ALL.into_iter().map(|runtime| {
            let own = self
                .runtimes
                .get(&runtime)
                .and_then(|table| table.pool_size);
            (runtime, own.unwrap_or(self.pool_size).into())
        });
        let kernels = self.runtimes.iter();
        let kernels = kernels
            .map(|(runtime, table)| Ok((*runtime, table.kernel(*runtime)?)))
            .collect::<Result<_, ConfigError>>()?;
        let registries = self
            .runtimes
            .iter()
            .filter_map(|(runtime, table)| Some((*runtime, table.registries.clone()?)));
        let registries = packages::registries_with(registries);
        for host in registries.values().flatten() {
            let expected = || "expected the name of a host, such as pypi.org".to_owned();
            require("runtimes.*.registries", host, is_host(host), expected)?;
        }
        let images = self.runtimes.iter();
        let images: BTreeMap<_, _> = images
            .filter_map(|(runtime, table)| Some((*runtime, given(table.image.clone())?)))
            .collect();
        let ca_bundle = given(self.images.ca_bundle).map(PathBuf::from);
        let named = self.network.ca_bundle();
        let named = named.as_deref().map(certificates::read).transpose()?;
        let certificates = certificates::all(named.as_deref(), ca_bundle.as_deref());
        let (network, egress) = self.network.check(named)?;
        let mut prebuilt_images = self.prebuilt_images;
        if self.images.full {
            prebuilt_images.push(PrebuiltTable::full());
        }
        Ok(Config {
            sources: Vec::new(),
            unused: Vec::new(),
            debug: self.debug,
            backend: self.backend,
            state: given(self.state_dir).map_or(default_state, PathBuf::from),
            host: self.server.host,
            port: self.server.port,
            user: given(self.server.user),
            max_body: bytes(self.server.max_body_size),
            max_bodies: bytes(self.server.max_bodies_size),
            max_message: bytes(self.server.max_web_socket_message),
            message_within: Duration::from_millis(self.server.web_socket_idle_ms),
            header_timeout: Duration::from_millis(self.server.header_timeout_ms),
            body_timeout: Duration::from_millis(self.server.body_timeout_ms),
            keep_alive: Duration::from_millis(self.server.keep_alive_ms),
            stall_timeout: Duration::from_millis(self.server.stall_timeout_ms),
            max_connections: self.server.max_connections,
            ping_every: Duration::from_millis(self.server.web_socket_ping_ms),
            admission: AdmissionConfig {
                max_concurrent: self.max_concurrent,
                max_concurrent_per_tenant: match self.max_concurrent_per_tenant {
                    0 => self.max_concurrent,
                    most => most,
                },
                max_waiting: self.max_queued,
                max_wait: Duration::from_millis(self.max_wait_ms),
            },
            cleanup: PrunerConfig {
                auto_prune: self.cleanup.auto_prune,
                max_age: Duration::from_millis(self.cleanup.max_container_age_ms),
                interval: Duration::from_millis(self.cleanup.prune_interval_ms),
            },
            shutdown_grace: Duration::from_millis(self.shutdown.grace_ms),
            keep_sessions: self.shutdown.keep_sessions,
            adoptable_for: Duration::from_millis(self.shutdown.adoptable_ms),
            cors_origins: server::origins(self.server.cors_origins)?,
            idempotency: Duration::from_millis(self.server.idempotency_ms),
            max_sessions: self.sessions.max,
            max_sessions_per_tenant: match self.sessions.max_per_tenant {
                0 => self.sessions.max,
                most => most,
            },
            session_queue: self.sessions.max_queued,
            strategy: self.pool_strategy.into(),
            pools: pools.collect(),
            pool_max_age: Duration::from_millis(self.pool_max_age_ms),
            pool_refill_width: self.pool_refill_width,
            kernels: PrewarmConfig::new(kernels),
            granted_images: self.policy.images()?,
            images: images::check(prebuilt_images, self.dependencies, &images)?,
            networks: self.policy.networks(defaults.network)?,
            defaults,
            ceilings,
            limits,
            registries,
            docker: DockerSettings {
                host: given(self.docker.host),
                images,
                base: self.images.base,
                bootstrap: self.images.bootstrap,
                ca_bundle,
            },
            images_root: given(self.images.root).map(PathBuf::from),
            remote_code: self.remote_code.check(network.ports.clone())?.into(),
            network,
            egress,
            certificates,
            packages: self.packages.check()?,
            package_cache: None,
        })
    }

    /// Every regular expression that admits hosts, with its key.
    pub(super) fn admitting_patterns(&self) -> Vec<(&'static str, &str)> {
        let lists = [
            ("network.whitelist", self.network.whitelist()),
            ("remoteCode.allowedHosts", self.remote_code.allowed_hosts()),
        ];
        let patterns = lists.into_iter().flat_map(|(key, list)| {
            let patterns = list.iter();
            patterns.map(move |pattern| (key, pattern.as_str()))
        });
        patterns.collect()
    }

    /// Checks numbers that may not be zero, or less than another.
    fn check_counts(&self) -> Result<(), ConfigError> {
        let Server {
            max_body_size,
            max_bodies_size,
            ..
        } = self.server;
        require(
            "server.maxBodiesSize",
            max_bodies_size,
            max_bodies_size >= max_body_size,
            || format!("expected server.maxBodySize, which is {max_body_size}, or more"),
        )?;
        for (key, given) in [
            ("maxConcurrent", self.max_concurrent),
            ("poolRefillWidth", self.pool_refill_width),
            ("sessions.max", self.sessions.max),
            ("server.maxConnections", self.server.max_connections),
            ("sessions.maxQueued", self.sessions.max_queued),
        ] {
            require(key, given, given > 0, || "expected 1 or more".to_owned())?;
        }
        for (key, given) in [
            ("poolMaxAgeMs", self.pool_max_age_ms),
            ("server.webSocketIdleMs", self.server.web_socket_idle_ms),
            ("server.headerTimeoutMs", self.server.header_timeout_ms),
            ("server.bodyTimeoutMs", self.server.body_timeout_ms),
            ("server.keepAliveMs", self.server.keep_alive_ms),
            ("server.stallTimeoutMs", self.server.stall_timeout_ms),
            ("server.webSocketPingMs", self.server.web_socket_ping_ms),
            ("cleanup.pruneIntervalMs", self.cleanup.prune_interval_ms),
            (
                "cleanup.maxContainerAgeMs",
                self.cleanup.max_container_age_ms,
            ),
        ] {
            require(key, given, given > 0, || "expected 1 or more".to_owned())?;
        }
        Ok(())
    }
}
