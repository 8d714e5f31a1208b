//! The HTTP server: thin translators from routes to the service.
//!
//! [`configure`] puts the application together, for production and for tests alike.

pub mod auth;
pub mod body;
pub mod connection;
pub mod endpoint;
pub mod error;
pub mod idempotency;
pub mod misspelling;
pub mod openapi;
pub mod routes;
pub mod socket;
pub mod trace;
pub mod transfer;
pub mod url;

use std::os::fd::OwnedFd;
use std::sync::Arc;

use actix_cors::Cors;
use actix_web::middleware::{self, Condition};
use actix_web::{App, HttpServer, web};
use isol8_actors::Service;
use isol8_backend::BackendError;
use tokio::sync::watch;

use crate::config::Config;
use crate::remote_code::RemoteCode;
use auth::MasterKey;
use idempotency::Results;

/// Seconds for requests to be answered after SIGTERM: longer than the service lets jobs go on.
const SHUTDOWN_SECONDS: u64 = 30;

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

/// What the routes share.
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
    /// Of requests with an idempotency key.
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
    app.default_service(web::to(error::no_such_route));
}

/// Lets pages of these origins call the server from a browser; without any, no page may.
fn cors(origins: &[String]) -> Condition<Cors> {
    let mut cors = Cors::default()
        .allow_any_method()
        .allow_any_header()
        .expose_headers([trace::REQUEST_ID, misspelling::WARNING]);
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
    let state = web::Data::from(Arc::new(state));
    let origins = config.cors_origins.clone();
    let mut server = HttpServer::new(move || {
        App::new()
            .app_data(state.clone())
            .wrap(cors(&origins))
            .wrap(middleware::from_fn(trace::trace))
            .configure(configure)
    })
    .on_connect(connection::watch)
    // An event that follows another would wait until the client has acknowledged that, which it puts off.
    .tcp_nodelay(true)
    .client_request_timeout(config.header_timeout)
    .keep_alive(config.keep_alive)
    .shutdown_timeout(SHUTDOWN_SECONDS)
    .disable_signals();
    for socket in bound {
        server = server.listen(socket::listen(socket)?)?;
    }
    for address in server.addrs() {
        log::info!(address:%; "listening");
    }
    let server = server.run();
    let handle = server.handle();
    let stopping = async {
        stop.await;
        log::info!("shutting down");
        // Together: runs that end, or are ended, are still answered.
        futures::future::join(service.shutdown(), handle.stop(true))
            .await
            .0
    };
    let (served, removed) = futures::future::join(server, stopping).await;
    served?;
    Ok(removed?)
}
