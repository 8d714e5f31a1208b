//! The section `[network]` and its checks.

use std::path::PathBuf;
use std::time::Duration;

use isol8_api::ByteSize;
use isol8_egress::{EgressConfig, EgressError, EgressLimits, FilterList};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::check::{given, require};
use crate::error::ConfigError;
use crate::ports::{self, PortEntry};
use crate::rule::{Rule, TrustTable};

/// The effect of each key in a file of the working directory.
pub(super) const TRUST: TrustTable = &[
    (
        Rule::AtMost,
        &[
            "network.maxConnections",
            "network.maxBytes",
            "network.connectTimeoutMs",
            "network.idleTimeoutMs",
        ],
    ),
    (Rule::Whitelist, &["network.whitelist"]),
    (Rule::Blacklist, &["network.blacklist"]),
    (
        Rule::Refused,
        &["network.allowedCidrs", "network.ports", "network.caBundle"],
    ),
];

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

    pub(super) fn check(self, certificates: Option<String>) -> Result<EgressConfig, ConfigError> {
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
        config
            .check()
            .map_err(|error| refused(error, "network.whitelist", "network.blacklist"))?;
        Ok(config)
    }
}

/// Converts an error of the egress rules, with the keys of the two lists.
pub(super) fn refused(
    error: EgressError,
    whitelist: &'static str,
    blacklist: &'static str,
) -> ConfigError {
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
