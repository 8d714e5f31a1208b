//! The HTTP server: thin translators from routes to the service.
//!
//! [`configure`] puts the application together, for production and for tests alike.

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

use crate::config::Config;
use crate::remote_code::RemoteCode;
use auth::MasterKey;
use bodies::Bodies;
pub(crate) use descriptors::raise_limit as raise_file_limit;
use idempotency::Results;

/// The server ended with something undone.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    /// The address cannot be listened on.
    #[error("server cannot listen: {0}")]
    Listen(#[from] std::io::Error),
    /// Not every sandbox could be removed.
    #[error(transparent)]
    Shutdown(#[from] BackendError),
}

/// The state that the routes share.
#[derive(Debug)]
pub struct State {
    /// Runs jobs and knows the sessions.
    pub service: Service,
    /// The checked configuration, as it is now.
    pub config: watch::Receiver<Arc<Config>>,
    /// The key that every route but the public ones asks for.
    pub key: MasterKey,
    /// Name of the backend.
    pub backend: &'static str,
    /// Why the server uses that backend.
    pub backend_reason: String,
    /// Memory and processors for the bodies of requests.
    pub bodies: Bodies,
    /// Results of requests with an idempotency key.
    pub results: Results,
    /// Fetches code for requests.
    pub remote_code: RemoteCode,
}

impl State {
    /// The configuration that holds for a request from its begin to its end.
    #[must_use]
    pub fn config(&self) -> Arc<Config> {
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

/// Lets pages of these origins call the server from a browser; without any, no page may.
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

/// Serves until `stop` is done; requests under way are then given time to end. `bound` are sockets that were
/// bound for this process, which else binds its own.
///
/// # Errors
/// [`ServeError`].
pub async fn serve(
    state: State,
    bound: Option<Vec<OwnedFd>>,
    stop: impl Future<Output = ()>,
) -> Result<(), ServeError> {
    let service = state.service.clone();
    let config = state.config();
    let bound = match bound {
        Some(bound) => bound,
        None => socket::bind(&config.host, config.port)?,
    };
    let listeners: Vec<_> = bound
        .into_iter()
        .map(socket::listen)
        .collect::<Result<_, _>>()?;
    let addresses: Vec<_> = listeners
        .iter()
        .map(TcpListener::local_addr)
        .collect::<Result<_, _>>()?;
    let most = descriptors::connections(config.max_connections)?;
    let state = web::Data::from(Arc::new(state));
    let mut server = pin!(listener::start(listeners, &state, most)?);
    let handle = server.handle();
    // The first look at the server starts its workers; one that has ended by then has none.
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
    // Together: runs that end, or are ended, are still answered.
    let (removed, (), served) =
        futures::future::join3(service.shutdown(), handle.stop(true), server).await;
    served?;
    Ok(removed?)
}

/// The error of a server that has ended although nothing told it to.
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
    use crate::config::Overrides;

    #[actix_web::test]
    async fn a_server_whose_workers_cannot_start_ends() {
        let file = tempfile::Builder::new().suffix(".toml").tempfile().unwrap();
        let overrides = Overrides {
            config: Some(file.path().to_owned()),
            port: Some(0),
            ..Overrides::default()
        };
        let mut config = Config::load(&overrides, &|_| None).unwrap();
        // No configuration that was checked has such an origin.
        config.cors_origins = vec!["*".to_owned()];
        let remote_code = RemoteCode::new(&config.remote_code);
        let bodies = Bodies::new(config.max_bodies);
        let (_current, config) = watch::channel(Arc::new(config));
        let backend = Arc::new(FakeBackend::new());
        let state = State {
            service: Service::start(backend, ServiceConfig::default()),
            config,
            key: MasterKey::new("k".to_owned()).unwrap(),
            backend: "fake",
            backend_reason: "a test's".to_owned(),
            results: Results::default(),
            bodies,
            remote_code,
        };
        let served = serve(state, None, pending());
        let served = tokio::time::timeout(Duration::from_secs(30), served);
        let served = served.await.unwrap();
        assert!(matches!(served, Err(ServeError::Listen(_))), "{served:?}");
    }
}
