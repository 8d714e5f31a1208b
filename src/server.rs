//! The HTTP server: handlers that translate between requests and the service.
//!
//! [`configure`] builds the application, for production and for tests alike.

pub mod accept;
pub mod auth;
pub mod bodies;
pub mod body;
pub mod connection;
mod descriptors;
pub mod endpoint;
pub mod error;
pub mod idempotency;
pub mod json;
mod listener;
pub mod openapi;
pub mod routes;
pub mod socket;
pub mod trace;
pub mod transfer;
pub mod unanchored;
pub mod unknown;
pub mod url;

use std::io;
use std::net::TcpListener;
use std::os::fd::OwnedFd;
use std::pin::pin;
use std::sync::Arc;
use std::task::Poll;

use actix_cors::Cors;
use actix_web::middleware::Condition;
use actix_web::web;
use isol8_actors::Service;
use isol8_backend::BackendError;
use tokio::sync::watch;

use crate::active::ActiveConfig;
use crate::remote_code::RemoteCode;
use auth::MasterKey;
use bodies::BodyBudget;
pub(crate) use descriptors::raise_limit as raise_file_limit;
use idempotency::ResultStore;

/// Error that ended the server.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    /// The server cannot listen on its address.
    #[error("server cannot listen: {0}")]
    Listen(#[from] std::io::Error),
    /// Some sandboxes could not be removed at shutdown.
    #[error(transparent)]
    Shutdown(#[from] BackendError),
}

/// The state that the routes share.
#[derive(Debug)]
pub struct ServerState {
    /// Runs jobs, and owns the sessions.
    pub service: Service,
    /// The current configuration. A reload replaces it.
    pub config: watch::Receiver<Arc<ActiveConfig>>,
    /// The API key, which every route but the public ones requires.
    pub key: MasterKey,
    /// Name of the backend.
    pub backend: &'static str,
    /// Reason for which the server uses this backend.
    pub backend_reason: String,
    /// Bounds the memory and processors that request bodies take.
    pub bodies: BodyBudget,
    /// Results of requests that had an idempotency key.
    pub results: ResultStore,
    /// Fetches code for requests.
    pub remote_code: RemoteCode,
}

impl ServerState {
    /// Returns the current configuration. A handler takes it once, so that one configuration holds for the whole request.
    #[must_use]
    pub fn config(&self) -> Arc<ActiveConfig> {
        Arc::clone(&self.config.borrow())
    }
}

/// Adds every route to an application.
pub fn configure(app: &mut web::ServiceConfig) {
    for endpoint in routes::endpoints() {
        app.service(endpoint.resource());
    }
    app.service(routes::auth::without_database());
    app.default_service(web::to(error::no_such_route));
}

/// Returns the CORS middleware, which lets pages of these origins call the server from a browser. Without origins, the
/// middleware is off, and no page may.
fn cors(origins: &[String]) -> Condition<Cors> {
    let mut cors = Cors::default()
        .allow_any_method()
        .allow_any_header()
        .expose_headers([trace::REQUEST_ID, unknown::WARNING]);
    for origin in origins {
        cors = cors.allowed_origin(origin);
    }
    Condition::new(!origins.is_empty(), cors)
}

/// Serves until `stop` completes; requests under way then have time to end. `bound` holds sockets that the launcher has
/// bound; without it, the server binds its own.
///
/// # Errors
/// Returns a [`ServeError`] if the server cannot start, or cannot remove all sandboxes at its end.
pub async fn serve(
    state: ServerState,
    bound: Option<Vec<OwnedFd>>,
    stop: impl Future<Output = ()>,
) -> Result<(), ServeError> {
    let service = state.service.clone();
    let config = state.config();
    let bound = match bound {
        Some(bound) => bound,
        None => socket::bind(&config.startup.listen.host, config.startup.listen.port)?,
    };
    let listeners: Vec<_> = bound
        .into_iter()
        .map(socket::listen)
        .collect::<Result<_, _>>()?;
    let addresses: Vec<_> = listeners
        .iter()
        .map(TcpListener::local_addr)
        .collect::<Result<_, _>>()?;
    let most = descriptors::connection_limit(config.startup.listen.max_connections)?;
    let state = web::Data::from(Arc::new(state));
    let mut server = pin!(listener::start(listeners, &state, most)?);
    let handle = server.handle();
    // The first poll starts the workers. If they cannot start, the server has ended after that poll.
    if let Poll::Ready(ended) = futures::poll!(server.as_mut()) {
        return Err(stopped(ended));
    }
    for address in addresses {
        log::info!(address:%; "listening");
    }
    tokio::select! {
        ended = server.as_mut() => return Err(stopped(ended)),
        () = stop => {}
    }
    log::info!("shutting down");
    // Both shut down at the same time, so that the responses of the last runs are still sent.
    let (removed, (), served) =
        futures::future::join3(service.shutdown(), handle.stop(true), server).await;
    served?;
    Ok(removed?)
}

/// Returns the error for a server that has ended by itself.
fn stopped(ended: io::Result<()>) -> ServeError {
    let unasked = || io::Error::other("its workers have ended");
    ServeError::Listen(ended.err().unwrap_or_else(unasked))
}

#[cfg(test)]
mod tests {
    use std::future::pending;
    use std::time::Duration;

    use isol8_actors::ServiceConfig;
    use isol8_backend::fake::FakeBackend;

    use super::*;
    use isol8_config::{Config, Overrides};

    #[actix_web::test]
    async fn a_server_whose_workers_cannot_start_ends() {
        let file = tempfile::Builder::new().suffix(".toml").tempfile().unwrap();
        let overrides = Overrides {
            config: Some(file.path().to_owned()),
            port: Some(0),
            ..Overrides::default()
        };
        let mut config = Config::load(&overrides, &|_| None).unwrap();
        // The checks of the configuration refuse this origin; here it keeps the workers from starting.
        config.startup.listen.cors_origins = vec!["*".to_owned()];
        let remote_code = RemoteCode::new(config.startup.code_cache_bytes);
        let bodies = BodyBudget::new(config.startup.listen.max_bodies);
        let (_current, config) = watch::channel(Arc::new(ActiveConfig::new(config).unwrap()));
        let backend = Arc::new(FakeBackend::new());
        let state = ServerState {
            service: Service::start(backend, ServiceConfig::default()),
            config,
            key: MasterKey::new("k".to_owned()).unwrap(),
            backend: "fake",
            backend_reason: "a test's".to_owned(),
            results: ResultStore::default(),
            bodies,
            remote_code,
        };
        let served = serve(state, None, pending());
        let served = tokio::time::timeout(Duration::from_secs(30), served);
        let served = served.await.unwrap();
        assert!(matches!(served, Err(ServeError::Listen(_))), "{served:?}");
    }
}
