//! The operator's rules, and the errors in them.

use std::fmt;
use std::time::Duration;

use crate::ports::Ports;

/// The egress rules of a server.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct EgressConfig {
    /// Regular expressions on host names. If the list is not empty, only hosts that one of them matches are admitted.
    pub whitelist: Vec<String>,
    /// Regular expressions on host names. Hosts that one of them matches are refused.
    pub blacklist: Vec<String>,
    /// Ranges of addresses that may be connected to although they are not public, such as `10.1.0.0/16` or `::1`.
    pub allowed_cidrs: Vec<String>,
    /// Ports that may be connected to, by `CONNECT` and by forwarded requests.
    pub ports: Ports,
    /// PEM certificates that the server's own fetches trust in addition to the host's.
    pub certificates: Option<String>,
    /// Limits for each run.
    pub limits: EgressLimits,
}

/// Limits for the network of one run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EgressLimits {
    /// Maximum number of concurrent connections of a run, at least 1. A further connection is answered with 429.
    pub connections: usize,
    /// Maximum number of bytes that a run may receive and send together. A connection that reaches the limit ends.
    pub bytes: u64,
    /// Maximum time to resolve a name and connect.
    pub connect_timeout: Duration,
    /// Maximum time without traffic on a connection, and maximum time until an answer begins.
    pub idle_timeout: Duration,
    /// Maximum size of the head of a request or an answer in bytes. Values below 8192 count as 8192.
    pub header_bytes: usize,
    /// Maximum time for a client to send the head of its next request.
    pub header_timeout: Duration,
    /// Maximum number of entries in the access log of a run, which keeps the first requests.
    pub log_entries: usize,
}

impl Default for EgressLimits {
    fn default() -> Self {
        Self {
            connections: 64,
            bytes: 16 << 30,
            connect_timeout: Duration::from_secs(10),
            idle_timeout: Duration::from_secs(300),
            header_bytes: 64 << 10,
            header_timeout: Duration::from_secs(30),
            log_entries: 1_000,
        }
    }
}

/// An error in the rules.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum EgressError {
    /// A pattern is not a regular expression, or is too complex.
    #[error("{list}[{index}]: {pattern:?} is not a usable regular expression: {reason}")]
    Pattern {
        /// The list that contains the pattern.
        list: FilterList,
        /// Index of the pattern in the list, from 0.
        index: usize,
        /// The pattern, shortened if it is long.
        pattern: String,
        /// The reason why it cannot be used.
        reason: String,
    },
    /// A list is too long, or its patterns are too complex together.
    #[error("{list}: {reason}")]
    List {
        /// The list.
        list: FilterList,
        /// The reason why it cannot be used.
        reason: String,
    },
    /// A text is not a range of addresses.
    #[error("{given:?} is not a range of addresses, expected one such as 10.1.0.0/16 or fd00::/8")]
    Cidr {
        /// The value that was given.
        given: String,
    },
}

/// The lists of a filter.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FilterList {
    /// The list of admitted hosts.
    White,
    /// The list of refused hosts.
    Black,
}

impl fmt::Display for FilterList {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::White => "whitelist",
            Self::Black => "blacklist",
        })
    }
}
