//! The HTTP server: handlers that translate between requests and the service.
//!
//! [`configure`] builds the application, for production and for tests alike.

pub mod accept;
mod app;
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
mod master_key;
pub mod openapi;
pub mod routes;
pub mod socket;
mod state;
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

use actix_web::web;
use isol8_backend::BackendError;

pub use app::configure;
pub(crate) use descriptors::raise_limit as raise_file_limit;
pub use master_key::MasterKey;
pub use state::ServerState;

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
    let service = state.service().clone();
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

    use isol8_actors::{Service, ServiceConfig};
    use isol8_backend::fake::FakeBackend;

    use isol8_engine::Engine;
    use isol8_engine::active::ActiveConfig;
    use tokio::sync::watch;

    use super::bodies::BodyBudget;
    use super::idempotency::ResultStore;
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
        let cache = config.startup.code_cache_bytes;
        let bodies = BodyBudget::new(config.startup.listen.max_bodies);
        let (_current, config) = watch::channel(Arc::new(ActiveConfig::new(config).unwrap()));
        let backend = Arc::new(FakeBackend::new());
        let state = ServerState {
            engine: Engine::new(Service::start(backend, ServiceConfig::default()), cache),
            config,
            key: MasterKey::new("k".to_owned()).unwrap(),
            backend: "fake",
            backend_reason: "a test's".to_owned(),
            results: ResultStore::default(),
            bodies,
        };
        let served = serve(state, None, pending());
        let served = tokio::time::timeout(Duration::from_secs(30), served);
        let served = served.await.unwrap();
        assert!(matches!(served, Err(ServeError::Listen(_))), "{served:?}");
    }
}
