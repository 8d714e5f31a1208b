//! The sections `[network]` and `[remoteCode]`, and their checks.

use std::path::PathBuf;
use std::time::Duration;

use isol8_api::ByteSize;
use isol8_egress::{
    Egress, EgressConfig, EgressError, EgressLimits, Filter, FilterList, Policy, Ports,
};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::ConfigError;
use super::check::{given, require};
use super::ports::{self, PortEntry};

/// URL schemes with which code can be fetched.
const SCHEMES: [&str; 2] = ["https", "http"];

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub(super) struct NetworkTable {
    /// Regular expressions on host names, matched anywhere in a name unless anchored, as in "^pypi\\.org$"; if there are any, only matching hosts are admitted.
    whitelist: Vec<String>,
    /// Patterns of hosts that are refused, even if the whitelist admits them.
    blacklist: Vec<String>,
    /// Non-public addresses that are admitted, such as "10.1.0.0/16" or "::1".
    allowed_cidrs: Vec<String>,
    /// Ports that may be connected to, here and for `codeUrl`: numbers, ranges such as "1024-65535", "*" for all.
    ports: Vec<PortEntry>,
    /// PEM file of certificates that sandboxes and the server trust in addition to the host's own; "" for none.
    ca_bundle: String,
    /// Connections of one run at the same time; one sandbox has at most 128.
    max_connections: usize,
    /// Bytes that one run may receive and send together.
    max_bytes: ByteSize,
    /// Milliseconds to resolve a name and to connect.
    connect_timeout_ms: u64,
    /// Milliseconds after which an idle connection is closed.
    idle_timeout_ms: u64,
}

impl Default for NetworkTable {
    fn default() -> Self {
        Self {
            whitelist: Vec::new(),
            blacklist: Vec::new(),
            allowed_cidrs: Vec::new(),
            ports: ports::defaults(),
            ca_bundle: String::new(),
            max_connections: 64,
            max_bytes: ByteSize::from_mebibytes(16 * 1024),
            connect_timeout_ms: 10_000,
            idle_timeout_ms: 300_000,
        }
    }
}

impl NetworkTable {
    pub(super) fn whitelist(&self) -> &[String] {
        &self.whitelist
    }

    /// Returns the file of certificates, if one is named.
    pub(super) fn ca_bundle(&self) -> Option<PathBuf> {
        given(self.ca_bundle.clone()).map(PathBuf::from)
    }

    pub(super) fn check(
        self,
        certificates: Option<String>,
    ) -> Result<(EgressConfig, Egress), ConfigError> {
        for (key, value) in [
            ("network.maxConnections", self.max_connections as u64),
            ("network.connectTimeoutMs", self.connect_timeout_ms),
            ("network.idleTimeoutMs", self.idle_timeout_ms),
        ] {
            require(key, value, value > 0, || "expected 1 or more".to_owned())?;
        }
        let config = EgressConfig {
            whitelist: self.whitelist,
            blacklist: self.blacklist,
            allowed_cidrs: self.allowed_cidrs,
            ports: ports::set(self.ports),
            certificates,
            limits: EgressLimits {
                connections: self.max_connections,
                bytes: self.max_bytes.bytes(),
                connect_timeout: Duration::from_millis(self.connect_timeout_ms),
                idle_timeout: Duration::from_millis(self.idle_timeout_ms),
                ..EgressLimits::default()
            },
        };
        let egress = Egress::new(config.clone())
            .map_err(|error| refused(error, "network.whitelist", "network.blacklist"))?;
        Ok((config, egress))
    }
}

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
    /// Most bytes in the cache.
    pub keep_bytes: u64,
}

impl RemoteCodeTable {
    pub(super) fn allowed_hosts(&self) -> &[String] {
        &self.allowed_hosts
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
            keep_bytes: self.cache_max_bytes.bytes(),
        })
    }
}

/// Converts an error of the egress rules, with the keys of the two lists.
fn refused(error: EgressError, whitelist: &'static str, blacklist: &'static str) -> ConfigError {
    let key = |list: FilterList| match list {
        FilterList::White => whitelist,
        FilterList::Black => blacklist,
    };
    let (key, given, expected) = match error {
        EgressError::Pattern {
            list,
            pattern,
            reason,
            ..
        } => (
            key(list),
            pattern,
            format!("not a usable regular expression: {reason}"),
        ),
        EgressError::List { list, reason } => (key(list), "[…]".to_owned(), reason),
        EgressError::Cidr { given } => {
            let expected = "expected a range of addresses such as 10.1.0.0/16 or fd00::/8";
            ("network.allowedCidrs", given, expected.to_owned())
        }
    };
    ConfigError::OutOfRange {
        key,
        given,
        expected,
    }
}
