//! The section `[packages]` and its checks.

use std::path::{Path, PathBuf};
use std::time::Duration;

use isol8_api::ByteSize;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use url::Url;

use crate::check::{given, require};
use crate::error::ConfigError;
use crate::rule::{Rule, TrustTable};

/// The effect of each key in a file of the working directory.
pub(super) const TRUST: TrustTable = &[
    (Rule::AtMost, &["packages.installTimeoutMs"]),
    (
        Rule::Refused,
        &[
            "packages.cache",
            "packages.cacheDir",
            "packages.cacheMaxBytes",
            "packages.cacheTtl",
            "packages.pythonIndex",
            "packages.npmRegistry",
        ],
    ),
];

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub(super) struct PackagesTable {
    /// Whether the server fetches from the usual registries, once for all tenants.
    cache: bool,
    /// Directory of the cache; "" is `packages` in stateDir. Several servers may share one.
    cache_dir: String,
    /// Most bytes of cached files on disk. The least recently used are removed, and no file larger than a quarter of this size stays.
    cache_max_bytes: ByteSize,
    /// Seconds for which the list of a package's versions is cached.
    cache_ttl: u64,
    /// Milliseconds after which an installation is ended; they do not count as time of the run.
    install_timeout_ms: u64,
    /// The index of Python packages that is cached, if registries has its host and no further one.
    python_index: String,
    /// The registry of npm packages that is cached, under the same condition.
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

/// Settings of the package cache and of installations.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PackageSettings {
    /// Whether packages are cached.
    pub is_cached: bool,
    /// Directory of the cache; `None` for `packages` in the state directory.
    pub directory: Option<PathBuf>,
    /// Most bytes of cached files on disk.
    pub max_bytes: u64,
    /// Time for which the list of a package's files is cached.
    pub ttl: Duration,
    /// Time after which an installation is ended.
    pub install_timeout: Duration,
    /// Address of the index of Python packages.
    pub python: Url,
    /// Address of the registry of npm packages.
    pub npm: Url,
}

impl PackagesTable {
    pub(super) fn check(self) -> Result<PackageSettings, ConfigError> {
        let least = ByteSize::from_mebibytes(16);
        let size = self.cache_max_bytes;
        require("packages.cacheMaxBytes", size, size >= least, || {
            format!("expected {least} or more; cache = false turns it off")
        })?;
        let timeout = self.install_timeout_ms;
        let expected = || "expected 1 or more".to_owned();
        require("packages.installTimeoutMs", timeout, timeout > 0, expected)?;
        Ok(PackageSettings {
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

impl PackageSettings {
    /// Returns the directory of the cache.
    #[must_use]
    pub fn cache_directory(&self, state: &Path) -> PathBuf {
        let configured = self.directory.clone();
        configured.unwrap_or_else(|| state.join("packages"))
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
