//! The sections `[server]`, `[sessions]`, `[cleanup]` and `[shutdown]`.
//!
//! The keys of `[server]` become [`ListenSettings`], which need a restart, or [`HttpSettings`], which do not.

use std::time::Duration;

use isol8_actors::pruner::PrunerConfig;
use isol8_actors::registry::RegistryConfig;
use isol8_api::ByteSize;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use url::Url;

use crate::check::{bytes, given, require};
use crate::error::ConfigError;
use crate::rule::{Rule, TrustTable};

/// The effect of each key in a file of the working directory.
pub(super) const TRUST: TrustTable = &[
    (
        Rule::Harmless,
        &[
            "cleanup.autoPrune",
            "cleanup.maxContainerAgeMs",
            "cleanup.pruneIntervalMs",
        ],
    ),
    (
        Rule::ServerOnly,
        &[
            "server.host",
            "server.port",
            "server.user",
            "server.maxBodySize",
            "server.maxBodiesSize",
            "server.maxConnections",
            "server.corsOrigins",
            "server.idempotencyMs",
            "server.maxWebSocketMessage",
            "server.webSocketIdleMs",
            "server.webSocketPingMs",
            "server.headerTimeoutMs",
            "server.bodyTimeoutMs",
            "server.keepAliveMs",
            "server.stallTimeoutMs",
            "sessions.max",
            "sessions.maxPerTenant",
            "sessions.maxQueued",
            "shutdown.graceMs",
            "shutdown.keepSessions",
            "shutdown.adoptableMs",
        ],
    ),
];

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub(super) struct Server {
    /// Address to listen on; "0.0.0.0" for all.
    pub(super) host: String,
    /// Port to listen on; 0 for any free one.
    pub(super) port: u16,
    /// Unprivileged user that the server runs as if root starts it: a name, "UID" or "UID:GID"; "" stays root.
    pub(super) user: String,
    /// Largest request body.
    pub(super) max_body_size: ByteSize,
    /// Memory for all request bodies under way together that are larger than 64k; further ones wait, and get 503 after bodyTimeoutMs.
    pub(super) max_bodies_size: ByteSize,
    /// Origins whose pages may call the server from a browser, such as "https://app.example.com".
    pub(super) cors_origins: Vec<String>,
    /// Milliseconds for which the result of a request with an Idempotency-Key is kept for retries.
    pub(super) idempotency_ms: u64,
    /// Largest WebSocket message; the first may be as large as a request body.
    pub(super) max_web_socket_message: ByteSize,
    /// Milliseconds in which a WebSocket's client has to send its execute message.
    pub(super) web_socket_idle_ms: u64,
    /// Milliseconds in which a client has to send a request's line and headers.
    pub(super) header_timeout_ms: u64,
    /// Milliseconds in which a request's body has to arrive; the body of a file may take longer.
    pub(super) body_timeout_ms: u64,
    /// Milliseconds for which an idle connection is kept for the next request.
    pub(super) keep_alive_ms: u64,
    /// Milliseconds after which a client that accepts no data, or sends no more of a file, counts as disconnected.
    pub(super) stall_timeout_ms: u64,
    /// Connections that may be open at once, at most half of the files that the process may open; at the limit, a new one replaces an idle one.
    pub(super) max_connections: usize,
    /// Milliseconds between two pings of a WebSocket's client; a client that is silent for three times as long counts as disconnected.
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
    /// Highest number of sessions.
    pub(super) max: usize,
    /// Highest number of sessions of one tenant; 0 is as many as max.
    pub(super) max_per_tenant: usize,
    /// Requests that may wait for one session; further ones get 429.
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
    /// Whether idle sessions end; the next request for such a session is told so, once.
    pub(super) auto_prune: bool,
    /// Milliseconds after which an idle session ends; a session with a run never does.
    pub(super) max_container_age_ms: u64,
    /// Milliseconds between two checks for idle sessions.
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
    /// Whether sessions are left to the next server then; those of a server that was killed always are.
    pub(super) keep_sessions: bool,
    /// Milliseconds for which sessions wait for the next server; then they are removed.
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

/// Settings of the HTTP server that take effect when it starts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ListenSettings {
    /// Address to listen on.
    pub host: String,
    /// Port to listen on.
    pub port: u16,
    /// User that the server runs as if root starts it; `None` for root.
    pub user: Option<String>,
    /// Origins whose pages may call the server from a browser.
    pub cors_origins: Vec<String>,
    /// Most bytes of all request bodies under way together; small bodies do not count.
    pub max_bodies: usize,
    /// Time in which a client has to send a request's line and headers.
    pub header_timeout: Duration,
    /// Time for which an idle connection is kept for the next request.
    pub keep_alive: Duration,
    /// Time after which a client that accepts no data counts as disconnected.
    pub stall_timeout: Duration,
    /// Connections that may be open at once.
    pub max_connections: usize,
}

/// Settings of the HTTP server that may change while it runs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HttpSettings {
    /// Largest request body in bytes.
    pub max_body: usize,
    /// Largest WebSocket message in bytes. The `execute` message has the limit of a request body instead.
    pub max_message: usize,
    /// Time in which a WebSocket's client has to send its `execute` message.
    pub message_within: Duration,
    /// Time in which a body has to arrive.
    pub body_timeout: Duration,
    /// Interval at which a WebSocket's client is pinged during its run.
    pub ping_every: Duration,
    /// Time for which the result of a request with an idempotency key is kept.
    pub idempotency: Duration,
}

/// Treatment of runs and sessions when the server ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ShutdownSettings {
    /// Time that runs may go on after the server was told to end.
    pub grace: Duration,
    /// Whether sessions survive a server that was told to end.
    pub keep_sessions: bool,
    /// Time for which sessions survive without a server.
    pub adoptable_for: Duration,
}

impl Server {
    /// Checks the section.
    pub(super) fn check(self) -> Result<(ListenSettings, HttpSettings), ConfigError> {
        let listen = ListenSettings {
            host: self.host,
            port: self.port,
            user: given(self.user),
            cors_origins: origins(self.cors_origins)?,
            max_bodies: bytes(self.max_bodies_size),
            header_timeout: Duration::from_millis(self.header_timeout_ms),
            keep_alive: Duration::from_millis(self.keep_alive_ms),
            stall_timeout: Duration::from_millis(self.stall_timeout_ms),
            max_connections: self.max_connections,
        };
        let http = HttpSettings {
            max_body: bytes(self.max_body_size),
            max_message: bytes(self.max_web_socket_message),
            message_within: Duration::from_millis(self.web_socket_idle_ms),
            body_timeout: Duration::from_millis(self.body_timeout_ms),
            ping_every: Duration::from_millis(self.web_socket_ping_ms),
            idempotency: Duration::from_millis(self.idempotency_ms),
        };
        Ok((listen, http))
    }
}

impl Sessions {
    pub(super) fn settings(&self) -> RegistryConfig {
        RegistryConfig {
            max_sessions: self.max,
            max_sessions_per_tenant: match self.max_per_tenant {
                0 => self.max,
                most => most,
            },
            queue_limit: self.max_queued,
        }
    }
}

impl Cleanup {
    pub(super) fn settings(&self) -> PrunerConfig {
        PrunerConfig {
            auto_prune: self.auto_prune,
            max_age: Duration::from_millis(self.max_container_age_ms),
            interval: Duration::from_millis(self.prune_interval_ms),
        }
    }
}

impl Shutdown {
    pub(super) fn settings(&self) -> ShutdownSettings {
        ShutdownSettings {
            grace: Duration::from_millis(self.grace_ms),
            keep_sessions: self.keep_sessions,
            adoptable_for: Duration::from_millis(self.adoptable_ms),
        }
    }
}

/// Checks that each text is an origin in the form that browsers send, because origins are compared byte by byte.
fn origins(given: Vec<String>) -> Result<Vec<String>, ConfigError> {
    for origin in &given {
        let sent = Url::parse(origin).ok().and_then(|url| {
            // Patterns are not supported.
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
