//! The hosts that a run may reach, and the requests that it made.

use serde::{Deserialize, Serialize};

/// The hosts that a run may reach: regular expressions, which match anywhere in a host's name unless they are anchored:
/// `example\.com` admits `example.com.evil.org` too, `^example\.com$` does not. Case does not matter; names are matched
/// in ASCII (`xn--…`) and without a final dot, addresses in their usual form.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(rename_all = "camelCase", default)]
pub struct NetworkFilter {
    /// If the list is not empty, only hosts that one of its expressions matches are admitted.
    pub whitelist: Vec<String>,
    /// Hosts that one of them matches are refused, whatever the whitelist says.
    pub blacklist: Vec<String>,
}

/// A request that a run made through the proxy.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(rename_all = "camelCase")]
pub struct NetworkLogEntry {
    /// When it was made, ISO 8601 in UTC.
    pub timestamp: String,
    /// The HTTP method; `CONNECT` for a tunnel.
    pub method: String,
    /// The host that was asked for, without the port.
    pub host: String,
    /// The path and the query; `None` for a tunnel.
    pub path: Option<String>,
    /// Whether the rules let it through.
    pub action: NetworkAction,
    /// Milliseconds from the request to its end.
    pub duration_ms: f64,
}

/// The proxy's decision on a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(rename_all = "UPPERCASE")]
pub enum NetworkAction {
    /// The request was let through.
    Allow,
    /// The request was refused.
    Block,
}
