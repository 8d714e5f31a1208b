//! Starts the server on its listening sockets.
//!
//! actix-web's own `HttpServer` passes each client's socket to actix-http directly. Here, the socket is wrapped in a
//! [`ClientStream`], which bounds the memory and time that a client may take.

use std::io;
use std::net::{SocketAddr, TcpListener};
use std::num::NonZeroUsize;
use std::rc::Rc;
use std::thread::available_parallelism;
use std::time::Duration;

use actix_http::error::DispatchError;
use actix_http::{HttpService, Protocol};
use actix_server::{GracefulShutdownSignal, Server};
use actix_service::{
    IntoService as _, IntoServiceFactory as _, Service, ServiceFactory, ServiceFactoryExt as _,
    fn_factory, map_config,
};
use actix_web::dev::{AppConfig, Extensions};
use actix_web::rt::net::TcpStream;
use actix_web::{App, Error, middleware, web};

use super::app::{configure, cors};
use super::connection::{ClientStream, ConnectionCount, ConnectionLimits, ConnectionTable};
use super::state::ServerState;
use super::trace;

/// Seconds for responses to be sent after SIGTERM; longer than the service lets jobs run on.
const SHUTDOWN_SECONDS: u64 = 30;

/// Most worker threads that actix-server supports.
const MAX_WORKERS: usize = 512;

/// Time for a client to read the response to a request whose body was not read to its end.
const LINGER: Duration = Duration::from_secs(1);

/// Connections of a worker beyond its share of the limit, for those that were accepted and not counted yet.
const SPARE: usize = 32;

/// The settings of a worker for one address.
#[derive(Clone)]
struct Setup {
    state: web::Data<ServerState>,
    address: SocketAddr,
    bounds: ConnectionLimits,
    count: ConnectionCount,
    draining: GracefulShutdownSignal,
}

/// Makes a server for these listeners. The server starts at its first poll; if its workers cannot start, it ends in that
/// poll.
///
/// # Errors
/// If an address cannot be used.
pub(super) fn start(
    listeners: Vec<TcpListener>,
    state: &web::Data<ServerState>,
    most: usize,
) -> io::Result<Server> {
    let config = state.config();
    let workers = available_parallelism()
        .map_or(2, NonZeroUsize::get)
        .min(MAX_WORKERS);
    let mut server = Server::build()
        .workers(workers)
        .max_concurrent_connections(most.div_ceil(workers) + SPARE)
        .shutdown_timeout(SHUTDOWN_SECONDS)
        .disable_signals();
    let setup = |address| Setup {
        state: state.clone(),
        address,
        bounds: ConnectionLimits {
            most,
            header_timeout: config.startup.listen.header_timeout,
            stall_timeout: config.startup.listen.stall_timeout,
        },
        count: ConnectionCount::default(),
        draining: server.graceful_shutdown_signal(),
    };
    let setups: Vec<_> = listeners
        .iter()
        .map(|listener| Ok(setup(listener.local_addr()?)))
        .collect::<io::Result<_>>()?;
    for (listener, setup) in listeners.into_iter().zip(setups) {
        server = server.listen(setup.address.to_string(), listener, move || {
            answer(setup.clone())
        })?;
    }
    Ok(server.run())
}

/// Returns the factory of the service with which a worker serves the connections of an address.
fn answer(
    setup: Setup,
) -> impl ServiceFactory<TcpStream, Config = (), Response = (), Error = (), InitError = ()> {
    fn_factory(move || {
        let (starting, setup) = (http(&setup).new_service(()), setup.clone());
        async move {
            let http = Rc::new(starting.await?);
            let table = ConnectionTable::new(setup.bounds, setup.count);
            let serve = move |socket| serve(Rc::clone(&http), Rc::clone(&table), socket);
            Ok(serve.into_service())
        }
    })
}

/// Serves one client until its connection ends.
async fn serve<H>(http: Rc<H>, table: Rc<ConnectionTable>, socket: TcpStream) -> Result<(), ()>
where
    H: Service<(ClientStream, Protocol, Option<SocketAddr>), Error = DispatchError>,
{
    let peer = socket.peer_addr().ok();
    let stream = match table.admit(socket) {
        Ok(Some(stream)) => stream,
        Ok(None) => {
            log::debug!(peer:?; "connection refused: server.maxConnections are open");
            return Err(());
        }
        Err(error) => {
            log::debug!(peer:?, error:%; "connection cannot be served");
            return Err(());
        }
    };
    let connection = Rc::clone(stream.connection());
    tokio::select! {
        biased;
        () = connection.ended() => Ok(()),
        served = http.call((stream, Protocol::Http1, peer)) => served.map(drop).map_err(|error| {
            // Mostly the client's fault, so the log level is one that operators do not see.
            log::debug!(peer:?, error:%; "connection ended");
        }),
    }
}

/// Returns the application as a service of actix-http.
fn http(
    setup: &Setup,
) -> impl ServiceFactory<
    (ClientStream, Protocol, Option<SocketAddr>),
    Config = (),
    Response = (),
    Error = DispatchError,
    InitError = (),
> + use<> {
    let config = setup.state.config();
    let app = App::new()
        .app_data(setup.state.clone())
        .wrap(cors(&config.startup.listen.cors_origins))
        .wrap(middleware::from_fn(trace::trace))
        .configure(configure)
        .into_factory()
        .map_err(|error: Error| error.error_response());
    let draining = setup.draining.clone();
    HttpService::build()
        .keep_alive(config.startup.listen.keep_alive)
        .client_request_timeout(config.startup.listen.header_timeout)
        .client_disconnect_timeout(LINGER)
        .local_addr(setup.address)
        // On shutdown, idle connections end immediately, as they do with `HttpServer`.
        .graceful_shutdown_signal(move || {
            let draining = draining.clone();
            async move { draining.notified().await }
        })
        .on_connect_ext(|stream: &ClientStream, data: &mut Extensions| {
            data.insert(Rc::clone(stream.connection()));
        })
        .finish(map_config(app, |()| AppConfig::default()))
}
