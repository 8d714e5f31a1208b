//! The section `[remoteCode]` and its checks.

use std::time::Duration;

use isol8_api::ByteSize;
use isol8_egress::{Filter, Policy, Ports};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::check::require;
use crate::error::ConfigError;
use crate::network::refused;
use crate::rule::{Rule, TrustTable};

/// URL schemes with which code can be fetched.
const SCHEMES: [&str; 2] = ["https", "http"];

/// The effect of each key in a file of the working directory.
pub(super) const TRUST: TrustTable = &[(
    Rule::ServerOnly,
    &[
        "remoteCode.enabled",
        "remoteCode.allowedSchemes",
        "remoteCode.allowedHosts",
        "remoteCode.blockedHosts",
        "remoteCode.maxCodeSize",
        "remoteCode.fetchTimeoutMs",
        "remoteCode.requireHash",
        "remoteCode.enableCache",
        "remoteCode.cacheTtl",
        "remoteCode.cacheMaxBytes",
    ],
)];

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub(super) struct RemoteCodeTable {
    /// Whether requests may have a codeUrl.
    enabled: bool,
    /// "https", and also "http" for requests with allowInsecureCodeUrl.
    allowed_schemes: Vec<String>,
    /// Regular expressions on host names, matched anywhere in a name unless anchored; if there are any, only matching hosts are admitted.
    allowed_hosts: Vec<String>,
    /// Patterns of hosts that are refused, even if allowedHosts admits them.
    blocked_hosts: Vec<String>,
    /// Largest source text that is fetched.
    max_code_size: ByteSize,
    /// Milliseconds after which a fetch fails, including redirects.
    fetch_timeout_ms: u64,
    /// Whether a codeUrl needs a codeHash.
    require_hash: bool,
    /// Whether fetched code is cached.
    enable_cache: bool,
    /// Seconds for which fetched code is used again for the same URL.
    cache_ttl: u64,
    /// Size of the whole cache; a change needs a restart.
    cache_max_bytes: ByteSize,
}

impl Default for RemoteCodeTable {
    fn default() -> Self {
        Self {
            enabled: false,
            allowed_schemes: vec!["https".to_owned()],
            allowed_hosts: Vec::new(),
            blocked_hosts: Vec::new(),
            max_code_size: ByteSize::from_mebibytes(10),
            fetch_timeout_ms: 30_000,
            require_hash: false,
            enable_cache: true,
            cache_ttl: 3_600,
            cache_max_bytes: ByteSize::from_mebibytes(64),
        }
    }
}

/// Settings for code that is fetched for requests.
#[derive(Clone, Debug)]
pub struct RemoteCodeConfig {
    /// Whether code is fetched at all.
    pub enabled: bool,
    /// Whether `https:` is accepted.
    pub https: bool,
    /// Whether `http:` is accepted, if the request allows it too.
    pub http: bool,
    /// The hosts from which code may be fetched.
    pub hosts: Policy,
    /// Largest code in bytes.
    pub max_bytes: u64,
    /// Time after which a fetch fails.
    pub timeout: Duration,
    /// Whether a request must have the hash of its code.
    pub require_hash: bool,
    /// Time for which code is used again for the same URL; zero if nothing is cached.
    pub keep: Duration,
}

impl RemoteCodeTable {
    pub(super) fn allowed_hosts(&self) -> &[String] {
        &self.allowed_hosts
    }

    /// Returns the size of the whole cache in bytes.
    pub(super) fn cache_bytes(&self) -> u64 {
        self.cache_max_bytes.bytes()
    }

    /// Checks the section. `ports` are those that code may be fetched from.
    pub(super) fn check(self, ports: Ports) -> Result<RemoteCodeConfig, ConfigError> {
        for scheme in &self.allowed_schemes {
            let known = SCHEMES.contains(&&**scheme);
            let expected = || "expected https or http".to_owned();
            require("remoteCode.allowedSchemes", scheme, known, expected)?;
        }
        let timeout = self.fetch_timeout_ms;
        let expected = || "expected 1 or more".to_owned();
        require("remoteCode.fetchTimeoutMs", timeout, timeout > 0, expected)?;
        let filter = Filter {
            whitelist: self.allowed_hosts,
            blacklist: self.blocked_hosts,
        };
        let hosts = Policy::new(&filter).map_err(|error| {
            refused(error, "remoteCode.allowedHosts", "remoteCode.blockedHosts")
        })?;
        let accepts = |scheme: &str| self.allowed_schemes.iter().any(|given| given == scheme);
        Ok(RemoteCodeConfig {
            enabled: self.enabled,
            https: accepts("https"),
            http: accepts("http"),
            hosts: hosts.on_ports(ports),
            max_bytes: self.max_code_size.bytes(),
            timeout: Duration::from_millis(timeout),
            require_hash: self.require_hash,
            keep: match self.enable_cache {
                true => Duration::from_secs(self.cache_ttl),
                false => Duration::ZERO,
            },
        })
    }
}
