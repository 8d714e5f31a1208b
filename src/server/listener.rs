//! From the addresses to listen on to a server that answers there.
//!
//! actix-web's own `HttpServer` hands each socket to actix-http as it is. Here it goes through a [`ClientStream`],
//! which bounds what a client may cost.

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

use super::connection::{Bounds, ClientStream, Count, Table};
use super::{State, configure, cors, trace};

/// Seconds for requests to be answered after SIGTERM: longer than the service lets jobs go on.
const SHUTDOWN_SECONDS: u64 = 30;

/// Threads that actix-server can have.
const MOST_WORKERS: usize = 512;

/// How long a client may take to read the answer to a request whose body was not read.
const LINGER: Duration = Duration::from_secs(1);

/// Connections of a worker beyond its share, for those that were taken in and not counted yet.
const SPARE: usize = 32;

/// Everything that a worker needs to answer at an address.
#[derive(Clone)]
struct Setup {
    state: web::Data<State>,
    address: SocketAddr,
    bounds: Bounds,
    count: Count,
    draining: GracefulShutdownSignal,
}

/// Starts a server that answers at these addresses. The server starts when it is polled first, and has ended by then if
/// its workers cannot start.
///
/// # Errors
/// If an address cannot be used.
pub(super) fn start(
    listeners: Vec<TcpListener>,
    state: &web::Data<State>,
    most: usize,
) -> io::Result<Server> {
    let config = state.config();
    let workers = available_parallelism()
        .map_or(2, NonZeroUsize::get)
        .min(MOST_WORKERS);
    let mut server = Server::build()
        .workers(workers)
        .max_concurrent_connections(most.div_ceil(workers) + SPARE)
        .shutdown_timeout(SHUTDOWN_SECONDS)
        .disable_signals();
    let setup = |address| Setup {
        state: state.clone(),
        address,
        bounds: Bounds {
            most,
            header_timeout: config.header_timeout,
            stall_timeout: config.stall_timeout,
        },
        count: Count::default(),
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

/// Makes the service by which a worker answers the connections of an address.
fn answer(
    setup: Setup,
) -> impl ServiceFactory<TcpStream, Config = (), Response = (), Error = (), InitError = ()> {
    fn_factory(move || {
        let (starting, setup) = (http(&setup).new_service(()), setup.clone());
        async move {
            let http = Rc::new(starting.await?);
            let table = Table::new(setup.bounds, setup.count);
            let serve = move |socket| serve(Rc::clone(&http), Rc::clone(&table), socket);
            Ok(serve.into_service())
        }
    })
}

/// Answers one client for as long as its connection lasts.
async fn serve<H>(http: Rc<H>, table: Rc<Table>, socket: TcpStream) -> Result<(), ()>
where
    H: Service<(ClientStream, Protocol, Option<SocketAddr>), Error = DispatchError>,
{
    let peer = socket.peer_addr().ok();
    let stream = match table.admit(socket) {
        Ok(Some(stream)) => stream,
        Ok(None) => {
            log::debug!(peer:?; "connection refused: there are as many as there may be");
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
            // The client's fault mostly, so nothing that an operator is to be told of.
            log::debug!(peer:?, error:%; "connection ended");
        }),
    }
}

/// The application, behind actix-http.
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
        .wrap(cors(&config.cors_origins))
        .wrap(middleware::from_fn(trace::trace))
        .configure(configure)
        .into_factory()
        .map_err(|error: Error| error.error_response());
    let draining = setup.draining.clone();
    HttpService::build()
        .keep_alive(config.keep_alive)
        .client_request_timeout(config.header_timeout)
        .client_disconnect_timeout(LINGER)
        .local_addr(setup.address)
        // Idle connections end at once when the server is told to, as they do under `HttpServer`.
        .graceful_shutdown_signal(move || {
            let draining = draining.clone();
            async move { draining.notified().await }
        })
        .on_connect_ext(|stream: &ClientStream, data: &mut Extensions| {
            data.insert(Rc::clone(stream.connection()));
        })
        .finish(map_config(app, |()| AppConfig::default()))
}
