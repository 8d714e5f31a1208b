//! Network access of a run: the filter for hosts, and the log of its requests.

use serde::{Deserialize, Serialize};

/// Hosts that a run may reach, as regular expressions. A pattern matches anywhere in a host name unless it is
/// anchored: `example\.com` also matches `example.com.evil.org`, `^example\.com$` does not. Matching ignores case.
/// Names are matched in ASCII (`xn--…`) and without a final dot, addresses in their usual form.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(rename_all = "camelCase", default)]
pub struct NetworkFilter {
    /// Patterns of permitted hosts. If the list is not empty, all other hosts are refused.
    pub whitelist: Vec<String>,
    /// Patterns of refused hosts; takes precedence over the whitelist.
    pub blacklist: Vec<String>,
}

/// A request that a run made through the proxy.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(rename_all = "camelCase")]
pub struct NetworkLogEntry {
    /// Time of the request, ISO 8601 in UTC.
    pub timestamp: String,
    /// The HTTP method; `CONNECT` for a tunnel.
    pub method: String,
    /// The requested host, without the port.
    pub host: String,
    /// The path and the query; `null` for a tunnel.
    pub path: Option<String>,
    /// Whether the rules allowed the request.
    pub action: NetworkAction,
    /// Milliseconds from the request to its end.
    pub duration_ms: f64,
}

/// Decision of the network rules about a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(rename_all = "UPPERCASE")]
pub enum NetworkAction {
    /// The request was allowed.
    Allow,
    /// The request was refused.
    Block,
}
