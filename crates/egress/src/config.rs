//! The operator's rules, and their faults.

use std::fmt;
use std::time::Duration;

use crate::ports::Ports;

/// The rules of a server.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct EgressConfig {
    /// Regular expressions on host names; if there are any, only hosts that one of them matches are admitted.
    pub whitelist: Vec<String>,
    /// Regular expressions on host names; what one matches is refused.
    pub blacklist: Vec<String>,
    /// Ranges of addresses, such as `10.1.0.0/16` or `::1`, that are connected to although they are not
    /// public.
    pub allowed_cidrs: Vec<String>,
    /// Ports that are connected to, by `CONNECT` and by requests.
    pub ports: Ports,
    /// Certificates in PEM that the server's own fetches trust beside the host's.
    pub certificates: Option<String>,
    /// Bounds of what runs may use.
    pub limits: EgressLimits,
}

/// Bounds of what a run may use.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EgressLimits {
    /// Connections of one run at once, 1 or more. A further one is answered with 429.
    pub connections: usize,
    /// Bytes that a run may receive and send, together. A connection that reaches it ends.
    pub bytes: u64,
    /// How long it may take to resolve a name and to connect.
    pub connect_timeout: Duration,
    /// How long nothing may move on a connection, and how long an answer may take to begin.
    pub idle_timeout: Duration,
    /// Largest head of a request or of an answer in bytes; less than 8192 counts as that.
    pub header_bytes: usize,
    /// How long a client may take to send the head of its next request.
    pub header_timeout: Duration,
    /// Requests that the log of a run keeps: the first ones.
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

/// Rules that cannot be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum EgressError {
    /// A pattern is no regular expression, or too complex.
    #[error("{list}[{index}]: {pattern:?} is not a usable regular expression: {reason}")]
    Pattern {
        /// The list that holds it.
        list: FilterList,
        /// Its place there, from 0.
        index: usize,
        /// The pattern; one that is too long is cut.
        pattern: String,
        /// Why not.
        reason: String,
    },
    /// A list is too long, or its patterns too complex together.
    #[error("{list}: {reason}")]
    List {
        /// The list.
        list: FilterList,
        /// The fault.
        reason: String,
    },
    /// A range of addresses is none.
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
