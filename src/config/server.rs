//! The server's own settings, as they are written: connections, sessions and shutdown.

use isol8_api::ByteSize;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use url::Url;

use super::ConfigError;
use super::check::require;

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub(super) struct Server {
    /// Address to listen on; "0.0.0.0" for all.
    pub(super) host: String,
    /// Port to listen on; 0 for any free one.
    pub(super) port: u16,
    /// User that the server runs as where root starts it, who may do nothing else: a name, "UID" or "UID:GID"; "" stays root.
    pub(super) user: String,
    /// Size of the body of one request.
    pub(super) max_body_size: ByteSize,
    /// Bytes of all bodies under way together that are larger than 64k; further ones wait, and are refused with 503 after bodyTimeoutMs.
    pub(super) max_bodies_size: ByteSize,
    /// Origins whose pages may call it from a browser, such as "https://app.example.com".
    pub(super) cors_origins: Vec<String>,
    /// Milliseconds that the result of a request with an Idempotency-Key is kept for its retries.
    pub(super) idempotency_ms: u64,
    /// Size of one message but the first, which may be as large as a request.
    pub(super) max_web_socket_message: ByteSize,
    /// Milliseconds that a WebSocket may take to say what to run.
    pub(super) web_socket_idle_ms: u64,
    /// Milliseconds that a client may take to send a request's line and headers.
    pub(super) header_timeout_ms: u64,
    /// Milliseconds that a request's body may take to arrive; a file's may take longer.
    pub(super) body_timeout_ms: u64,
    /// Milliseconds that an idle connection is kept for the next request.
    pub(super) keep_alive_ms: u64,
    /// Milliseconds that a client may take nothing of what is sent to it, or send nothing of a file, before it is taken for gone.
    pub(super) stall_timeout_ms: u64,
    /// Connections that may be open at once, at most half of the files that the process may open; a new one takes the place of one that does nothing.
    pub(super) max_connections: usize,
    /// Milliseconds between two pings of a WebSocket's client; one that is silent for three times as long is taken for gone.
    pub(super) web_socket_ping_ms: u64,
}

impl Default for Server {
    fn default() -> Self {
        Self {
            host: "127.0.0.1".to_owned(),
            port: 3000,
            user: String::new(),
            max_body_size: ByteSize::from_mebibytes(32),
            max_bodies_size: ByteSize::from_mebibytes(512),
            cors_origins: Vec::new(),
            idempotency_ms: 600_000,
            max_web_socket_message: ByteSize::from_mebibytes(1),
            web_socket_idle_ms: 5_000,
            header_timeout_ms: 10_000,
            body_timeout_ms: 60_000,
            keep_alive_ms: 75_000,
            stall_timeout_ms: 60_000,
            max_connections: 4096,
            web_socket_ping_ms: 15_000,
        }
    }
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub(super) struct Sessions {
    /// Sessions that may exist at once.
    pub(super) max: usize,
    /// Sessions of one tenant; 0 is as many as max.
    pub(super) max_per_tenant: usize,
    /// Requests that may wait for one session; beyond it, 429.
    pub(super) max_queued: usize,
}

impl Default for Sessions {
    fn default() -> Self {
        Self {
            max: 100,
            max_per_tenant: 0,
            max_queued: 32,
        }
    }
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub(super) struct Cleanup {
    /// End idle sessions; the next request for one is told so, once.
    pub(super) auto_prune: bool,
    /// Milliseconds of idleness after which a session ends; a running one never does.
    pub(super) max_container_age_ms: u64,
    /// Milliseconds between two looks.
    pub(super) prune_interval_ms: u64,
}

impl Default for Cleanup {
    fn default() -> Self {
        Self {
            auto_prune: true,
            max_container_age_ms: 3_600_000,
            prune_interval_ms: 60_000,
        }
    }
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub(super) struct Shutdown {
    /// Milliseconds that runs may go on after SIGTERM or SIGINT.
    pub(super) grace_ms: u64,
    /// Leave sessions to the next server then; a server that was killed always does.
    pub(super) keep_sessions: bool,
    /// Milliseconds that sessions wait for it; then they are removed.
    pub(super) adoptable_ms: u64,
}

impl Default for Shutdown {
    fn default() -> Self {
        Self {
            grace_ms: 10_000,
            keep_sessions: false,
            adoptable_ms: 600_000,
        }
    }
}

/// Checks that each text is an origin as browsers send it: they are compared byte by byte.
pub(super) fn origins(given: Vec<String>) -> Result<Vec<String>, ConfigError> {
    for origin in &given {
        let sent = Url::parse(origin).ok().and_then(|url| {
            // Each origin stands for itself.
            let is_web = matches!(url.scheme(), "http" | "https") && !origin.contains('*');
            is_web.then(|| url.origin().ascii_serialization())
        });
        require(
            "server.corsOrigins",
            format!("{origin:?}"),
            sent.as_ref() == Some(origin),
            || match sent {
                Some(sent) => format!("expected an origin as browsers send it, such as {sent:?}"),
                None => {
                    let example = "\"https://app.example.com\"";
                    format!("expected an origin, http or https with a host, such as {example}")
                }
            },
        )?;
    }
    Ok(given)
}
