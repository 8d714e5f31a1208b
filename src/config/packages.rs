//! `[packages]` as it is written, and its checks.

use std::path::{Path, PathBuf};
use std::time::Duration;

use isol8_api::ByteSize;
use isol8_registry_cache::{RegistryCache, Settings};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use url::Url;

use super::ConfigError;
use super::check::{given, require};

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub(super) struct PackagesTable {
    /// The server fetches from the usual registries, once for all tenants.
    cache: bool,
    /// Directory of the cache; "" is packages in stateDir; several servers may share one.
    cache_dir: String,
    /// Size of what is on disk; those used last stay, none larger than a quarter of it.
    cache_max_bytes: ByteSize,
    /// Seconds that a registry is not asked again which versions a package has.
    cache_ttl: u64,
    /// Milliseconds that an installation may take, beside the run's own time.
    install_timeout_ms: u64,
    /// The index of Python's packages that is cached, where its host is in registries and no further one.
    python_index: String,
    /// The registry of npm's packages that is cached, in the same way.
    npm_registry: String,
}

impl Default for PackagesTable {
    fn default() -> Self {
        Self {
            cache: true,
            cache_dir: String::new(),
            cache_max_bytes: ByteSize::from_mebibytes(4 * 1024),
            cache_ttl: 60,
            install_timeout_ms: 300_000,
            python_index: "https://pypi.org/simple/".to_owned(),
            npm_registry: "https://registry.npmjs.org/".to_owned(),
        }
    }
}

/// The cache of packages.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PackagesConfig {
    /// Whether there is one.
    pub is_cached: bool,
    /// Directory of the cache, if not in the state directory.
    pub directory: Option<PathBuf>,
    /// Most bytes of files on disk.
    pub max_bytes: u64,
    /// How long a registry is not asked again which files a package has.
    pub ttl: Duration,
    /// How long an installation may take.
    pub install_timeout: Duration,
    /// The index of Python's packages.
    pub python: Url,
    /// The registry of npm's.
    pub npm: Url,
}

impl PackagesTable {
    pub(super) fn check(self) -> Result<PackagesConfig, ConfigError> {
        let least = ByteSize::from_mebibytes(16);
        let size = self.cache_max_bytes;
        require("packages.cacheMaxBytes", size, size >= least, || {
            format!("expected {least} or more; cache = false turns it off")
        })?;
        let timeout = self.install_timeout_ms;
        let expected = || "expected 1 or more".to_owned();
        require("packages.installTimeoutMs", timeout, timeout > 0, expected)?;
        Ok(PackagesConfig {
            is_cached: self.cache,
            directory: given(self.cache_dir).map(PathBuf::from),
            max_bytes: size.bytes(),
            ttl: Duration::from_secs(self.cache_ttl),
            install_timeout: Duration::from_millis(timeout),
            python: address("packages.pythonIndex", &self.python_index)?,
            npm: address("packages.npmRegistry", &self.npm_registry)?,
        })
    }
}

impl PackagesConfig {
    /// Returns the directory of the cache.
    #[must_use]
    pub fn place(&self, state: &Path) -> PathBuf {
        let configured = self.directory.clone();
        configured.unwrap_or_else(|| state.join("packages"))
    }

    /// The cache as it is configured. Two of the same directory do not harm each other.
    pub(super) fn cache(&self, state: &Path) -> Option<RegistryCache> {
        let settings = Settings {
            directory: self.place(state),
            max_bytes: self.max_bytes,
            page_ttl: self.ttl,
            python: self.python.clone(),
            npm: self.npm.clone(),
        };
        self.is_cached.then(|| RegistryCache::new(settings))
    }
}

/// Returns the address of a registry, which ends with a slash, because the addresses that a registry lists are
/// relative.
fn address(key: &'static str, text: &str) -> Result<Url, ConfigError> {
    let expected = || "expected a URL such as https://packages.example.com/simple/".to_owned();
    let refused = || ConfigError::OutOfRange {
        key,
        given: text.to_owned(),
        expected: expected(),
    };
    let mut url: Url = text.parse().map_err(|_| refused())?;
    let is_plain = matches!(url.scheme(), "https" | "http")
        && url.username().is_empty()
        && url.password().is_none()
        && url.query().is_none()
        && url.fragment().is_none();
    require(key, text, is_plain, expected)?;
    if !url.path().ends_with('/') {
        url.set_path(&format!("{}/", url.path()));
    }
    Ok(url)
}
