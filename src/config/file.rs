//! `config.toml` as it is written, and its checks.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::time::Duration;

use isol8_actors::admission::AdmissionConfig;
use isol8_actors::pool::{self, SandboxDefaults};
use isol8_actors::pruner::PrunerConfig;
use isol8_api::{ByteSize, NetworkMode, Runtime, SandboxPath};
use isol8_backend::{KernelSettings, Kernels, Limits};
use isol8_backend_docker::setup::DEFAULT_BASE;
use serde::{Deserialize, Serialize};

use super::network::{NetworkTable, RemoteCodeTable};
use super::policy::PolicyTable;
use super::{Ceilings, Config, ConfigError, Defaults, DockerSettings, RequestLimits};
use crate::jobs::LARGEST_VARIABLE;
use crate::packages;

/// The whole file. Every key is optional; the shipped file shows each with its default.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct ConfigFile {
    backend: BackendChoice,
    state_dir: String,
    max_concurrent: usize,
    max_concurrent_per_tenant: usize,
    max_queued: usize,
    max_wait_ms: u64,
    pool_strategy: Strategy,
    pool_size: PoolSize,
    pool_max_age_ms: u64,
    pool_refill_width: usize,
    server: Server,
    sessions: Sessions,
    cleanup: Cleanup,
    shutdown: Shutdown,
    defaults: DefaultsTable,
    ceilings: CeilingsTable,
    limits: LimitsTable,
    policy: PolicyTable,
    runtimes: BTreeMap<Runtime, RuntimeTable>,
    docker: DockerTable,
    images: ImagesTable,
    network: NetworkTable,
    remote_code: RemoteCodeTable,
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
        }
    }
}

/// Which backend to run sandboxes on.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum BackendChoice {
    /// Docker where its engine answers and has an image, else native.
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

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Strategy {
    Fast,
    Secure,
}

/// `{ clean, dirty }`, one number for `clean`, or `{ auto = true, min, max, dirty }`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(from = "PoolSizeForm")]
struct PoolSize {
    clean: usize,
    #[serde(skip_serializing_if = "Option::is_none")]
    most_clean: Option<usize>,
    dirty: usize,
}

#[derive(Deserialize)]
#[serde(
    untagged,
    expecting = "expected a number, { clean = number, dirty = number }, or { auto = true, min = number, max = number, dirty = number }"
)]
enum PoolSizeForm {
    Clean(usize),
    Auto(AutoForm),
    Both(BothForm),
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct BothForm {
    clean: usize,
    dirty: usize,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct AutoForm {
    auto: bool,
    min: usize,
    max: usize,
    #[serde(default = "usual_dirty")]
    dirty: usize,
}

/// Used sandboxes that wait where nothing else is said.
fn usual_dirty() -> usize {
    4
}

impl PoolSize {
    fn fixed(clean: usize) -> Self {
        Self {
            clean,
            most_clean: None,
            dirty: usual_dirty(),
        }
    }
}

impl From<PoolSizeForm> for PoolSize {
    fn from(form: PoolSizeForm) -> Self {
        match form {
            PoolSizeForm::Clean(clean) => Self::fixed(clean),
            PoolSizeForm::Both(BothForm { clean, dirty }) => Self {
                dirty,
                ..Self::fixed(clean)
            },
            PoolSizeForm::Auto(form) => Self {
                clean: form.min,
                most_clean: form.auto.then_some(form.max),
                dirty: form.dirty,
            },
        }
    }
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
struct Server {
    host: String,
    port: u16,
    max_body_size: ByteSize,
    cors_origins: Vec<String>,
    idempotency_ms: u64,
    max_web_socket_message: ByteSize,
    web_socket_idle_ms: u64,
    header_timeout_ms: u64,
    body_timeout_ms: u64,
    keep_alive_ms: u64,
    web_socket_ping_ms: u64,
}

impl Default for Server {
    fn default() -> Self {
        Self {
            host: "127.0.0.1".to_owned(),
            port: 3000,
            max_body_size: ByteSize::from_mebibytes(32),
            cors_origins: Vec::new(),
            idempotency_ms: 600_000,
            max_web_socket_message: ByteSize::from_mebibytes(1),
            web_socket_idle_ms: 10_000,
            header_timeout_ms: 10_000,
            body_timeout_ms: 60_000,
            keep_alive_ms: 75_000,
            web_socket_ping_ms: 15_000,
        }
    }
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
struct Sessions {
    max: usize,
    max_per_tenant: usize,
    max_queued: usize,
}

impl Default for Sessions {
    fn default() -> Self {
        Self {
            max: 100,
            max_per_tenant: 0,
            max_queued: 32,
        }
    }
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
struct Cleanup {
    auto_prune: bool,
    max_container_age_ms: u64,
    prune_interval_ms: u64,
}

impl Default for Cleanup {
    fn default() -> Self {
        Self {
            auto_prune: true,
            max_container_age_ms: 3_600_000,
            prune_interval_ms: 60_000,
        }
    }
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
struct Shutdown {
    grace_ms: u64,
    keep_sessions: bool,
    adoptable_ms: u64,
}

impl Default for Shutdown {
    fn default() -> Self {
        Self {
            grace_ms: 10_000,
            keep_sessions: false,
            adoptable_ms: 600_000,
        }
    }
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
struct DefaultsTable {
    timeout_ms: u64,
    network: NetworkMode,
    memory_limit: ByteSize,
    cpu_limit: f64,
    pids_limit: u32,
    sandbox_size: ByteSize,
    tmp_size: ByteSize,
    max_output_size: u64,
}

impl Default for DefaultsTable {
    fn default() -> Self {
        Self {
            timeout_ms: 30_000,
            network: NetworkMode::None,
            memory_limit: ByteSize::from_mebibytes(512),
            cpu_limit: 1.0,
            pids_limit: 64,
            sandbox_size: ByteSize::from_mebibytes(512),
            tmp_size: ByteSize::from_mebibytes(256),
            max_output_size: 1 << 20,
        }
    }
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
struct CeilingsTable {
    timeout_ms: u64,
    memory_limit: ByteSize,
    cpu_limit: f64,
    pids_limit: u32,
    tmpfs_size: ByteSize,
    max_output_size: u64,
}

impl Default for CeilingsTable {
    fn default() -> Self {
        Self {
            timeout_ms: 3_600_000,
            memory_limit: ByteSize::from_mebibytes(8 * 1024),
            cpu_limit: 8.0,
            pids_limit: 4096,
            tmpfs_size: ByteSize::from_mebibytes(8 * 1024),
            max_output_size: 64 << 20,
        }
    }
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
struct LimitsTable {
    files: usize,
    path_length: usize,
    variables: usize,
    variable_size: ByteSize,
    environment_size: ByteSize,
}

impl Default for LimitsTable {
    fn default() -> Self {
        Self {
            files: 1_000,
            path_length: SandboxPath::MAX_LENGTH,
            variables: 1_000,
            variable_size: ByteSize::from_bytes(LARGEST_VARIABLE as u64),
            environment_size: ByteSize::from_mebibytes(1),
        }
    }
}

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
struct RuntimeTable {
    #[serde(skip_serializing_if = "Option::is_none")]
    pool_size: Option<PoolSize>,
    image: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    registries: Option<Vec<String>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    preload: Option<Vec<String>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    zygote_max_runs: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    zygote_max_age_ms: Option<u64>,
}

impl RuntimeTable {
    /// What only Python has shows with its defaults there, and nowhere else.
    fn python(pool_size: PoolSize) -> Self {
        let kept = KernelSettings::default();
        Self {
            pool_size: Some(pool_size),
            image: String::new(),
            registries: Some(packages::registries(Runtime::Python)),
            preload: Some(kept.preload),
            zygote_max_runs: Some(kept.max_runs),
            zygote_max_age_ms: Some(kept.max_age_ms),
        }
    }

    fn kernel(&self, runtime: Runtime) -> Result<KernelSettings, ConfigError> {
        let kept = KernelSettings::default();
        for (key, given) in [
            ("runtimes.*.preload", self.preload.is_some()),
            ("runtimes.*.zygoteMaxRuns", self.zygote_max_runs.is_some()),
            (
                "runtimes.*.zygoteMaxAgeMs",
                self.zygote_max_age_ms.is_some(),
            ),
        ] {
            let fits = runtime == Runtime::Python || !given;
            let expected = || "expected under runtimes.python only".to_owned();
            require(key, format!("(under {runtime})"), fits, expected)?;
        }
        let settings = KernelSettings {
            preload: self.preload.clone().unwrap_or(kept.preload),
            max_runs: self.zygote_max_runs.unwrap_or(kept.max_runs),
            max_age_ms: self.zygote_max_age_ms.unwrap_or(kept.max_age_ms),
        };
        for name in &settings.preload {
            require("runtimes.python.preload", name, is_module(name), || {
                "expected names of modules such as numpy or xml.dom".to_owned()
            })?;
        }
        let key = "runtimes.python.zygoteMaxRuns";
        let expected = || "expected 1 or more".to_owned();
        require(key, settings.max_runs, settings.max_runs > 0, expected)?;
        Ok(settings)
    }
}

/// Whether this can be the name or the address of a host, as they are compared.
fn is_host(name: &str) -> bool {
    let fits = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || "-._:".contains(c);
    !name.is_empty() && name.chars().all(fits)
}

/// Whether `import` takes this name.
fn is_module(name: &str) -> bool {
    name.split('.').all(|part| {
        let mut letters = part.chars();
        letters
            .next()
            .is_some_and(|c| c.is_alphabetic() || c == '_')
            && letters.all(|c| c.is_alphanumeric() || c == '_')
    })
}

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
struct DockerTable {
    host: String,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
struct ImagesTable {
    base: String,
    bootstrap: bool,
    ca_bundle: String,
    root: String,
}

impl Default for ImagesTable {
    fn default() -> Self {
        Self {
            base: DEFAULT_BASE.to_owned(),
            bootstrap: false,
            ca_bundle: String::new(),
            root: String::new(),
        }
    }
}

impl ConfigFile {
    /// Reads and parses a file.
    ///
    /// # Errors
    /// [`ConfigError::Unreadable`], or [`ConfigError::Invalid`] with the line.
    pub fn read(path: &Path) -> Result<Self, ConfigError> {
        let text = fs::read_to_string(path).map_err(|source| ConfigError::Unreadable {
            path: path.to_owned(),
            source,
        })?;
        Self::parse(&text).map_err(|(line, message)| ConfigError::Invalid {
            path: path.to_owned(),
            line,
            message,
        })
    }

    /// Parses a file's text; an error is its line, from 1, and what was expected.
    ///
    /// # Errors
    /// The first fault.
    pub fn parse(text: &str) -> Result<Self, (usize, String)> {
        toml::from_str(text).map_err(|error| {
            let start = error.span().map_or(0, |span| span.start);
            let line = text.as_bytes()[..start.min(text.len())]
                .iter()
                .filter(|byte| **byte == b'\n')
                .count();
            (line + 1, with_suggestion(error.message()))
        })
    }

    /// Checks what the types cannot, and fills in what depends on the host.
    ///
    /// # Errors
    /// [`ConfigError::OutOfRange`] naming the key.
    pub fn check(self, default_state: PathBuf) -> Result<Config, ConfigError> {
        let ceilings = self.ceilings.check();
        let defaults = self.defaults.check(&ceilings)?;
        let limits = self.limits.check()?;
        for (key, given) in [
            ("maxConcurrent", self.max_concurrent),
            ("poolRefillWidth", self.pool_refill_width),
            ("sessions.max", self.sessions.max),
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
            ("server.webSocketPingMs", self.server.web_socket_ping_ms),
            ("cleanup.pruneIntervalMs", self.cleanup.prune_interval_ms),
            (
                "cleanup.maxContainerAgeMs",
                self.cleanup.max_container_age_ms,
            ),
        ] {
            require(key, given, given > 0, || "expected 1 or more".to_owned())?;
        }
        let pool = |size: PoolSize| pool::PoolSize {
            clean: size.clean,
            most_clean: size.most_clean,
            dirty: size.dirty,
        };
        let pools = Runtime::ALL.into_iter().map(|runtime| {
            let own = self
                .runtimes
                .get(&runtime)
                .and_then(|table| table.pool_size);
            (runtime, pool(own.unwrap_or(self.pool_size)))
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
        let images =
            images.filter_map(|(runtime, table)| Some((*runtime, given(table.image.clone())?)));
        let (network, egress) = self.network.check()?;
        Ok(Config {
            source: None,
            backend: self.backend,
            state: given(self.state_dir).map_or(default_state, PathBuf::from),
            host: self.server.host,
            port: self.server.port,
            max_body: bytes(self.server.max_body_size),
            max_message: bytes(self.server.max_web_socket_message),
            message_within: Duration::from_millis(self.server.web_socket_idle_ms),
            header_timeout: Duration::from_millis(self.server.header_timeout_ms),
            body_timeout: Duration::from_millis(self.server.body_timeout_ms),
            keep_alive: Duration::from_millis(self.server.keep_alive_ms),
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
            cors_origins: self.server.cors_origins,
            idempotency: Duration::from_millis(self.server.idempotency_ms),
            max_sessions: self.sessions.max,
            max_sessions_per_tenant: match self.sessions.max_per_tenant {
                0 => self.sessions.max,
                most => most,
            },
            session_queue: self.sessions.max_queued,
            strategy: match self.pool_strategy {
                Strategy::Fast => pool::Strategy::Fast,
                Strategy::Secure => pool::Strategy::Secure,
            },
            pools: pools.collect(),
            pool_max_age: Duration::from_millis(self.pool_max_age_ms),
            pool_refill_width: self.pool_refill_width,
            kernels: Kernels::new(kernels),
            networks: self.policy.networks(defaults.network)?,
            defaults,
            ceilings,
            limits,
            registries,
            docker: DockerSettings {
                host: given(self.docker.host),
                images: images.collect(),
                base: self.images.base,
                bootstrap: self.images.bootstrap,
                ca_bundle: given(self.images.ca_bundle).map(PathBuf::from),
            },
            images_root: given(self.images.root).map(PathBuf::from),
            network,
            egress,
            remote_code: self.remote_code.check()?.into(),
        })
    }
}

impl CeilingsTable {
    fn check(&self) -> Ceilings {
        Ceilings {
            timeout_ms: self.timeout_ms,
            limits: Limits {
                cpus: self.cpu_limit,
                memory: self.memory_limit,
                pids: self.pids_limit,
            },
            tmpfs_size: self.tmpfs_size,
            max_output_size: self.max_output_size,
        }
    }
}

impl LimitsTable {
    fn check(&self) -> Result<RequestLimits, ConfigError> {
        let most = SandboxPath::MAX_LENGTH;
        within_kernels("limits.pathLength", self.path_length, most)?;
        let (given, most) = (
            self.variable_size,
            ByteSize::from_bytes(LARGEST_VARIABLE as u64),
        );
        within_kernels("limits.variableSize", given, most)?;
        Ok(RequestLimits {
            files: self.files,
            path_length: self.path_length,
            variables: self.variables,
            variable_bytes: bytes(self.variable_size),
            environment_bytes: bytes(self.environment_size),
        })
    }
}

impl DefaultsTable {
    fn check(&self, ceilings: &Ceilings) -> Result<Defaults, ConfigError> {
        within(
            "defaults.timeoutMs",
            self.timeout_ms,
            1,
            ceilings.timeout_ms,
        )?;
        within(
            "defaults.cpuLimit",
            self.cpu_limit,
            0.01,
            ceilings.limits.cpus,
        )?;
        within(
            "defaults.pidsLimit",
            self.pids_limit,
            2,
            ceilings.limits.pids,
        )?;
        let least = ByteSize::from_mebibytes(16);
        within(
            "defaults.memoryLimit",
            self.memory_limit,
            least,
            ceilings.limits.memory,
        )?;
        let least = ByteSize::from_mebibytes(1);
        within(
            "defaults.sandboxSize",
            self.sandbox_size,
            least,
            ceilings.tmpfs_size,
        )?;
        within(
            "defaults.tmpSize",
            self.tmp_size,
            least,
            ceilings.tmpfs_size,
        )?;
        within(
            "defaults.maxOutputSize",
            self.max_output_size,
            0,
            ceilings.max_output_size,
        )?;
        Ok(Defaults {
            timeout_ms: self.timeout_ms,
            network: self.network,
            sandbox: SandboxDefaults {
                limits: Limits {
                    cpus: self.cpu_limit,
                    memory: self.memory_limit,
                    pids: self.pids_limit,
                },
                sandbox_size: self.sandbox_size,
                tmp_size: self.tmp_size,
            },
            max_output_size: self.max_output_size,
        })
    }
}

/// An empty text stands for "not set": TOML has no null, and the shipped file shows every key.
fn given(text: String) -> Option<String> {
    Some(text).filter(|text| !text.is_empty())
}

/// For what is in memory.
fn bytes(size: ByteSize) -> usize {
    usize::try_from(size.bytes()).unwrap_or(usize::MAX)
}

fn within_kernels<T>(key: &'static str, given: T, most: T) -> Result<(), ConfigError>
where
    T: PartialOrd + std::fmt::Display + Copy,
{
    require(key, given, given <= most, || {
        format!("expected at most {most}, which is the kernel's limit")
    })
}

fn within<T>(key: &'static str, given: T, least: T, most: T) -> Result<(), ConfigError>
where
    T: PartialOrd + std::fmt::Display + Copy,
{
    require(key, given, least <= given && given <= most, || {
        format!("expected {least} to {most}, the ceiling")
    })
}

pub(super) fn require(
    key: &'static str,
    given: impl ToString,
    holds: bool,
    expected: impl FnOnce() -> String,
) -> Result<(), ConfigError> {
    if holds {
        return Ok(());
    }
    Err(ConfigError::OutOfRange {
        key,
        given: given.to_string(),
        expected: expected(),
    })
}

/// Adds the nearest valid name to serde's text about an unknown one, which quotes first the
/// unknown and then the valid ones.
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
