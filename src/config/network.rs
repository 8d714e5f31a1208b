//! `[network]` and `[remoteCode]` as they are written, and their checks.

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

/// Schemes that code can be fetched by.
const SCHEMES: [&str; 2] = ["https", "http"];

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub(super) struct NetworkTable {
    /// Regular expressions on host names, matched anywhere in them unless anchored, as in "^pypi\\.org$"; with one, only hosts that one matches.
    whitelist: Vec<String>,
    /// Hosts that one matches are refused, whatever the whitelist says.
    blacklist: Vec<String>,
    /// Addresses reached although they are not public, such as "10.1.0.0/16" or "::1".
    allowed_cidrs: Vec<String>,
    /// Ports that are connected to, here and for `codeUrl`: numbers, ranges such as "1024-65535", "*" for all.
    ports: Vec<PortEntry>,
    /// PEM file of certificates that sandboxes and the server trust beside this host's own; "" for none.
    ca_bundle: String,
    /// Connections of one run at once; no more than 128 leave one sandbox.
    max_connections: usize,
    /// Bytes that one run may receive and send, together.
    max_bytes: ByteSize,
    /// Milliseconds to resolve a name and to connect.
    connect_timeout_ms: u64,
    /// Milliseconds after which a connection on which nothing moves is closed.
    idle_timeout_ms: u64,
}

impl Default for NetworkTable {
    fn default() -> Self {
        Self {
            whitelist: Vec::new(),
            blacklist: Vec::new(),
            allowed_cidrs: Vec::new(),
            ports: ports::usual(),
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

    /// The file of certificates, where one is named.
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
    /// "https"; "http" beside it for requests with allowInsecureCodeUrl.
    allowed_schemes: Vec<String>,
    /// Regular expressions on host names, matched anywhere in them unless anchored; with one, only hosts that one matches.
    allowed_hosts: Vec<String>,
    /// Hosts that one matches are refused, whatever allowedHosts says.
    blocked_hosts: Vec<String>,
    /// Size of a fetched source text.
    max_code_size: ByteSize,
    /// Milliseconds, redirects included.
    fetch_timeout_ms: u64,
    /// Accept no codeUrl without codeHash.
    require_hash: bool,
    /// Use what was fetched again.
    enable_cache: bool,
    /// Seconds that what was fetched is used for the same URL.
    cache_ttl: u64,
    /// Size of all cached source texts; a change needs a restart.
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

/// Code that is fetched for requests.
#[derive(Clone, Debug)]
pub struct RemoteCodeConfig {
    /// Whether any is.
    pub enabled: bool,
    /// Whether `https:` is accepted.
    pub https: bool,
    /// Whether `http:` is accepted where a request allows it too.
    pub http: bool,
    /// From which hosts.
    pub hosts: Policy,
    /// Most bytes.
    pub max_bytes: u64,
    /// How long it may take.
    pub timeout: Duration,
    /// Whether a request must say what its code hashes to.
    pub require_hash: bool,
    /// How long it is used for the same URL; zero where nothing is kept.
    pub keep: Duration,
    /// Most bytes that are kept.
    pub keep_bytes: u64,
}

impl RemoteCodeTable {
    pub(super) fn allowed_hosts(&self) -> &[String] {
        &self.allowed_hosts
    }

    /// Code is fetched on these ports.
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

/// The error under the names that the two lists have here.
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
