//! `[network]` and `[policy]`: what programs may reach.

use std::time::Duration;

use isol8_api::{ByteSize, NetworkMode};
use isol8_egress::{Egress, EgressConfig, EgressError, Limits};
use serde::{Deserialize, Serialize};

use super::ConfigError;
use super::file::require;

/// `[network]`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub(super) struct NetworkTable {
    whitelist: Vec<String>,
    blacklist: Vec<String>,
    allowed_cidrs: Vec<String>,
    max_connections: usize,
    max_bytes: ByteSize,
    connect_timeout_ms: u64,
    idle_timeout_ms: u64,
    header_timeout_ms: u64,
    max_header_size: ByteSize,
    max_log_entries: usize,
}

impl Default for NetworkTable {
    fn default() -> Self {
        let limits = Limits::default();
        let milliseconds = |time: Duration| u64::try_from(time.as_millis()).unwrap_or(u64::MAX);
        Self {
            whitelist: Vec::new(),
            blacklist: Vec::new(),
            allowed_cidrs: Vec::new(),
            max_connections: limits.connections,
            max_bytes: ByteSize::from_bytes(limits.bytes),
            connect_timeout_ms: milliseconds(limits.connect_timeout),
            idle_timeout_ms: milliseconds(limits.idle_timeout),
            header_timeout_ms: milliseconds(limits.header_timeout),
            max_header_size: ByteSize::from_bytes(limits.header_bytes as u64),
            max_log_entries: limits.log_entries,
        }
    }
}

impl NetworkTable {
    pub(super) fn check(self) -> Result<Egress, ConfigError> {
        /// Least that the head of a usual request fits in.
        const LEAST_HEADER: ByteSize = ByteSize::from_bytes(8192);
        let or_more = |least: &dyn std::fmt::Display| format!("expected {least} or more");
        for (key, given) in [
            ("network.maxBytes", self.max_bytes.bytes()),
            ("network.connectTimeoutMs", self.connect_timeout_ms),
            ("network.idleTimeoutMs", self.idle_timeout_ms),
            ("network.headerTimeoutMs", self.header_timeout_ms),
        ] {
            require(key, given, given > 0, || or_more(&1))?;
        }
        let connections = self.max_connections;
        let key = "network.maxConnections";
        require(key, connections, connections > 0, || or_more(&1))?;
        let header = self.max_header_size;
        let key = "network.maxHeaderSize";
        require(key, header, header >= LEAST_HEADER, || {
            or_more(&LEAST_HEADER)
        })?;
        let config = EgressConfig {
            whitelist: self.whitelist,
            blacklist: self.blacklist,
            allowed_cidrs: self.allowed_cidrs,
            limits: Limits {
                connections,
                bytes: self.max_bytes.bytes(),
                connect_timeout: Duration::from_millis(self.connect_timeout_ms),
                idle_timeout: Duration::from_millis(self.idle_timeout_ms),
                header_bytes: usize::try_from(header.bytes()).unwrap_or(usize::MAX),
                header_timeout: Duration::from_millis(self.header_timeout_ms),
                log_entries: self.max_log_entries,
            },
        };
        Egress::new(config).map_err(fault)
    }
}

fn fault(error: EgressError) -> ConfigError {
    let key = |list| match list {
        "whitelist" => "network.whitelist",
        _ => "network.blacklist",
    };
    let (key, given) = match &error {
        EgressError::Pattern { list, pattern, .. } => (key(*list), pattern.clone()),
        EgressError::List { list, .. } => (key(*list), "(the list)".to_owned()),
        EgressError::Cidr { given } => ("network.allowedCidrs", given.clone()),
    };
    ConfigError::OutOfRange {
        key,
        given,
        expected: error.to_string(),
    }
}

/// `[policy]`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub(super) struct PolicyTable {
    network: Vec<NetworkMode>,
}

impl Default for PolicyTable {
    fn default() -> Self {
        Self {
            network: vec![NetworkMode::None, NetworkMode::Filtered],
        }
    }
}

impl PolicyTable {
    /// What requests may ask for, `usual` among it.
    pub(super) fn networks(self, usual: NetworkMode) -> Result<Vec<NetworkMode>, ConfigError> {
        let granted = self.network.contains(&usual);
        require("defaults.network", usual, granted, || {
            "expected one that policy.network grants".to_owned()
        })?;
        Ok(self.network)
    }
}
