//! The HTTP proxy that serves a sandbox: forwarded requests, and tunnels by `CONNECT`.

mod forward;
mod refusal;

use std::convert::Infallible;
use std::io;
use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt as _, Either, Full};
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::upgrade::OnUpgrade;
use hyper::{Method, Request, Response};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::io::{AsyncRead, AsyncWrite, copy_bidirectional_with_sizes};
use tokio::net::TcpStream;

use crate::access_log::OpenEntry;
use crate::context::RunContext;
use crate::dial::DialError;
use crate::local::LocalAnswer;
use crate::meter::{Activity, MeteredStream};
use crate::problem::NetworkProblemKind;
use forward::Relayed;
use refusal::Refusal;

/// Size of the copy buffer for each direction of a tunnel, in bytes.
const COPY_BUFFER_BYTES: usize = 64 << 10;

/// An answer to a sandbox: a text of the proxy, the answer of a host, or that of a host inside the server.
pub(crate) type Answer = Response<Either<Full<Bytes>, Either<Relayed, LocalBody>>>;

/// The body of the answer of a host inside the server.
type LocalBody = UnsyncBoxBody<Bytes, io::Error>;

/// The server's end of a connection to a host.
pub(crate) type Upstream = MeteredStream<TcpStream>;

/// A connection from a sandbox.
pub(crate) struct Connection<'run> {
    run: &'run RunContext,
    /// Whether the connection is within the run's limit of connections.
    is_admitted: bool,
    activity: Arc<Activity>,
    /// The tunnel that the connection becomes after a `CONNECT`. Never locked across an `await`.
    tunnel: Mutex<Option<ConnectTunnel>>,
}

struct ConnectTunnel {
    client: OnUpgrade,
    upstream: Upstream,
    /// Ends the entry in the access log when the tunnel is dropped.
    _entry: OpenEntry,
}

impl<'run> Connection<'run> {
    pub(crate) fn new(run: &'run RunContext, is_admitted: bool) -> Self {
        Self {
            run,
            is_admitted,
            activity: Activity::new(),
            tunnel: Mutex::default(),
        }
    }

    pub(crate) async fn serve<S>(self, stream: S)
    where
        S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let limits = &self.run.limits;
        let stream = TokioIo::new(MeteredStream::new(stream, &self.activity));
        let service = service_fn(|request| async {
            let answered = self.answer(request).await;
            Ok::<_, Infallible>(answered.unwrap_or_else(|refusal| refusal.answer()))
        });
        let serving = http1::Builder::new()
            .timer(TokioTimer::new())
            .header_read_timeout(limits.header_timeout)
            .max_buf_size(limits.header_bytes)
            .serve_connection(stream, service)
            .with_upgrades();
        // Longer than the limit for an answer, so that a program that waits for an answer gets the error first.
        let still = limits.idle_timeout + limits.connect_timeout;
        tokio::select! {
            served = serving => if let Err(error) = served {
                log::debug!(error:%; "connection of a sandbox ended");
            },
            () = self.activity.idle_for(still) => return,
        }
        self.pass_on().await;
    }

    async fn answer(&self, request: Request<Incoming>) -> Result<Answer, Refusal> {
        if !self.is_admitted {
            return Err(Refusal::Connections);
        }
        if self.run.usage.is_spent() {
            return Err(Refusal::Bytes);
        }
        let destination = forward::destination(&request)?;
        forward::check_framing(&request)?;
        let is_tunnel = request.method() == Method::CONNECT;
        let host = destination.host.to_string();
        let path = request.uri().path_and_query().map(|path| path.as_str());
        let path = path.filter(|_| !is_tunnel);
        let entry = self
            .run
            .log
            .begin(request.method().as_str(), host.clone(), path);
        let local = self.run.local.as_ref().filter(|it| it.is_named(&host));
        if let Some(local) = local.filter(|_| !is_tunnel) {
            let answer = local.answer(request.into_parts().0).await;
            return Ok(self.count(answer));
        }
        let problems = &self.run.problems;
        if let Err(denied) = self.run.policy.admit(&host) {
            entry.block();
            problems.add(NetworkProblemKind::Denied, denied.to_string());
            return Err(Refusal::Denied(denied));
        }
        if let Err(denied) = self
            .run
            .policy
            .admit_port(&host, destination.port, is_tunnel)
        {
            entry.block();
            return Err(Refusal::Port(denied));
        }
        let dialing = self.run.dialer.dial(&destination, &self.run.lookups);
        let upstream = dialing.await.inspect_err(|error| {
            problems.add_dial(error);
            if matches!(error, DialError::NotPublic(_) | DialError::NoAddress(_)) {
                entry.block();
            }
        })?;
        let upstream = MeteredStream::new(upstream, &self.activity).counted(&self.run.usage);
        if is_tunnel {
            return Ok(self.tunnel(request, upstream, entry));
        }
        let forwarding = forward::forward(request, &destination, upstream, entry, &self.run.limits);
        tokio::select! {
            answered = forwarding => match answered {
                Err(_) if self.run.usage.is_spent() => Err(Refusal::Bytes),
                answered => answered,
            },
            () = self.activity.idle_for(self.run.limits.idle_timeout) => {
                Err(DialError::TimedOut(destination.host).into())
            }
        }
    }

    /// Counts the bytes of an answer from inside the server like those from other hosts.
    fn count(&self, answer: LocalAnswer) -> Answer {
        let (usage, activity) = (Arc::clone(&self.run.usage), Arc::clone(&self.activity));
        answer.map(|body| {
            let counted = body.map_frame(move |frame| {
                activity.touch();
                usage.receive(frame.data_ref().map_or(0, Bytes::len));
                frame
            });
            Either::Right(Either::Right(counted.boxed_unsync()))
        })
    }

    fn tunnel(&self, request: Request<Incoming>, upstream: Upstream, entry: OpenEntry) -> Answer {
        let tunnel = ConnectTunnel {
            client: hyper::upgrade::on(request),
            upstream,
            _entry: entry,
        };
        *self.tunnel.lock().unwrap_or_else(PoisonError::into_inner) = Some(tunnel);
        Response::new(Either::Left(Full::default()))
    }

    /// Copies bytes in both directions if the connection has become a tunnel.
    async fn pass_on(self) {
        let tunnel = self.tunnel.into_inner();
        let Some(mut tunnel) = tunnel.unwrap_or_else(PoisonError::into_inner) else {
            return;
        };
        let Ok(client) = tunnel.client.await else {
            return;
        };
        let mut client = TokioIo::new(client);
        let copying = copy_bidirectional_with_sizes(
            &mut client,
            &mut tunnel.upstream,
            COPY_BUFFER_BYTES,
            COPY_BUFFER_BYTES,
        );
        tokio::select! {
            copied = copying => if let Err(error) = copied {
                log::debug!(error:%; "tunnel of a sandbox ended");
            },
            () = self.activity.idle_for(self.run.limits.idle_timeout) => {}
        }
    }
}
