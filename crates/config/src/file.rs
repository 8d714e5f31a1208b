//! The whole of `config.toml`, and its checks.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use isol8_actors::admission::AdmissionConfig;
use isol8_api::Runtime;
use isol8_backend::PrewarmConfig;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::backend::{BackendChoice, DockerSettings, DockerTable, ImagesTable};
use crate::certificates;
use crate::check::{given, require};
use crate::config::Config;
use crate::error::ConfigError;
use crate::images::{self, PrebuiltTable};
use crate::limits::{CeilingsTable, DefaultsTable, LimitsTable};
use crate::network::NetworkTable;
use crate::package_names;
use crate::packages::PackagesTable;
use crate::policy::PolicyTable;
use crate::pool::{PoolSettings, PoolSize, RuntimeTable, RuntimeTables, Strategy, is_host};
use crate::remote_code::RemoteCodeTable;
use crate::rule::{Rule, TrustTable};
use crate::server::{Cleanup, Server, Sessions, Shutdown};
use crate::startup::Startup;

/// The effect of each key in a file of the working directory.
pub(super) const TRUST: TrustTable = &[
    (Rule::Harmless, &["debug"]),
    (
        Rule::ServerOnly,
        &[
            "maxConcurrent",
            "maxConcurrentPerTenant",
            "maxQueued",
            "maxWaitMs",
        ],
    ),
    (Rule::Refused, &["stateDir"]),
];

/// The whole file. Every key is optional. The shipped `config.toml` has each with its default.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct ConfigFile {
    /// "native", "docker", or "auto": native, unless images are configured or native lacks something.
    backend: BackendChoice,
    /// Directory for sandboxes' directories; "" is /var/lib/isol8, or ~/.local/state/isol8.
    state_dir: String,
    /// Whether the log is detailed.
    debug: bool,
    /// Runs at the same time; waiting tenants take turns.
    max_concurrent: usize,
    /// Runs of one tenant at the same time; 0 is as many as maxConcurrent.
    max_concurrent_per_tenant: usize,
    /// Requests that may wait for a run; further ones get 503 with Retry-After, or 429 for the tenant that has most of them.
    max_queued: usize,
    /// Milliseconds that a request waits at most; then it gets 503.
    max_wait_ms: u64,
    /// "fast": a used sandbox is reset and serves its tenant again; "secure": it is destroyed.
    pool_strategy: Strategy,
    /// Idle sandboxes of each runtime: never used (clean), and used (dirty).
    pool_size: PoolSize,
    /// Milliseconds after which an idle sandbox is replaced.
    pool_max_age_ms: u64,
    /// Sandboxes of a runtime that are created ahead of requests at the same time.
    pool_refill_width: usize,
    /// The HTTP server.
    server: Server,
    /// Limits for sessions.
    sessions: Sessions,
    /// Rules for the end of idle sessions.
    cleanup: Cleanup,
    /// Treatment of sessions when the server ends.
    shutdown: Shutdown,
    /// Settings for requests that do not set them.
    defaults: DefaultsTable,
    /// Upper limits for the settings of a request; more is an error.
    ceilings: CeilingsTable,
    /// Limits for the size of a request; more is an error.
    limits: LimitsTable,
    /// Options that weaken isolation; a request for one that is not granted gets 403.
    policy: PolicyTable,
    /// Sandboxes kept ready for each runtime.
    #[schemars(with = "RuntimeTables")]
    pub(super) runtimes: BTreeMap<Runtime, RuntimeTable>,
    /// The Docker engine.
    docker: DockerTable,
    /// Images that `isol8 setup` builds.
    images: ImagesTable,
    /// Rules for sandboxes with `network: "filtered"`, which reach hosts through the server's proxy.
    network: NetworkTable,
    /// Code that the server fetches for requests with `codeUrl`.
    remote_code: RemoteCodeTable,
    /// Docker images with packages, in addition to the runtimes' own.
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

impl ConfigFile {
    /// Checks the values that types alone cannot, and fills in those that depend on the host.
    ///
    /// # Errors
    /// [`ConfigError::OutOfRange`] with the key.
    pub fn check(self, default_state: PathBuf) -> Result<Config, ConfigError> {
        let ceilings = self.ceilings.check();
        let defaults = self.defaults.check(&ceilings)?;
        let limits = self.limits.check()?;
        self.check_counts()?;
        let pool = self.pool();
        let prewarm = self.prewarm()?;
        let registries = self.registries()?;
        let ca_bundle = given(self.images.ca_bundle).map(PathBuf::from);
        let named = self.network.ca_bundle();
        let named = named.as_deref().map(certificates::read).transpose()?;
        let certificates = certificates::all(named.as_deref(), ca_bundle.as_deref());
        let network = self.network.check(named)?;
        let images = self.runtimes.into_iter();
        let images: BTreeMap<_, _> = images
            .filter_map(|(runtime, table)| Some((runtime, given(table.image)?)))
            .collect();
        let mut prebuilt_images = self.prebuilt_images;
        if self.images.full {
            prebuilt_images.push(PrebuiltTable::full());
        }
        let (listen, http) = self.server.check()?;
        let code_cache_bytes = self.remote_code.cache_bytes();
        Ok(Config {
            sources: Vec::new(),
            unused: Vec::new(),
            debug: self.debug,
            http,
            admission: AdmissionConfig {
                max_concurrent: self.max_concurrent,
                max_concurrent_per_tenant: match self.max_concurrent_per_tenant {
                    0 => self.max_concurrent,
                    most => most,
                },
                max_waiting: self.max_queued,
                max_wait: Duration::from_millis(self.max_wait_ms),
            },
            sessions: self.sessions.settings(),
            cleanup: self.cleanup.settings(),
            pool,
            policy: self.policy.check(defaults.network)?,
            startup: Startup {
                backend: self.backend,
                state: given(self.state_dir).map_or(default_state, PathBuf::from),
                listen,
                prewarm,
                images: images::check(prebuilt_images, self.dependencies, &images)?,
                docker: DockerSettings {
                    host: given(self.docker.host),
                    images,
                    base: self.images.base,
                    bootstrap: self.images.bootstrap,
                    ca_bundle,
                },
                images_root: given(self.images.root).map(PathBuf::from),
                certificates,
                code_cache_bytes,
                shutdown: self.shutdown.settings(),
            },
            defaults,
            ceilings,
            limits,
            registries,
            remote_code: self.remote_code.check(network.ports.clone())?.into(),
            network,
            packages: self.packages.check()?,
        })
    }

    fn pool(&self) -> PoolSettings {
        let sizes = Runtime::ALL.into_iter().map(|runtime| {
            let table = self.runtimes.get(&runtime);
            let own = table.and_then(|table| table.pool_size);
            (runtime, own.unwrap_or(self.pool_size).into())
        });
        PoolSettings {
            strategy: self.pool_strategy.into(),
            sizes: sizes.collect(),
            max_age: Duration::from_millis(self.pool_max_age_ms),
            refill_width: self.pool_refill_width,
        }
    }

    fn prewarm(&self) -> Result<PrewarmConfig, ConfigError> {
        let settings = self.runtimes.iter();
        let settings = settings.map(|(runtime, table)| Ok((*runtime, table.prewarm(*runtime)?)));
        let settings = settings.collect::<Result<_, ConfigError>>()?;
        Ok(PrewarmConfig::new(settings))
    }

    fn registries(&self) -> Result<BTreeMap<Runtime, Vec<String>>, ConfigError> {
        let own = self.runtimes.iter();
        let own = own.filter_map(|(runtime, table)| Some((*runtime, table.registries.clone()?)));
        let registries = package_names::registries_with(own);
        for host in registries.values().flatten() {
            let expected = || "expected the name of a host, such as pypi.org".to_owned();
            require("runtimes.*.registries", host, is_host(host), expected)?;
        }
        Ok(registries)
    }

    /// Returns every regular expression that admits hosts, with its key.
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

    /// Checks numbers that must not be zero, or less than another.
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
