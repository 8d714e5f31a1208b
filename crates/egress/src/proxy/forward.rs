//! Forwards a request in absolute form to its host, and the answer back.

use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::Bytes;
use http_body_util::Either;
use hyper::body::{Body, Frame, Incoming, SizeHint};
use hyper::client::conn::http1;
use hyper::header::{
    CONNECTION, CONTENT_LENGTH, HOST, HeaderMap, HeaderName, HeaderValue, PROXY_AUTHENTICATE,
    PROXY_AUTHORIZATION, TE, TRAILER, TRANSFER_ENCODING, UPGRADE,
};
use hyper::http::uri::PathAndQuery;
use hyper::{Method, Request, StatusCode, Uri, Version};
use hyper_util::rt::TokioIo;
use tokio_util::task::AbortOnDropHandle;

use super::refusal::Refusal;
use super::{Answer, Upstream};
use crate::EgressLimits;
use crate::access_log::OpenEntry;
use crate::destination::Destination;

/// The usual port of `http:`.
const HTTP_PORT: u16 = 80;

/// Hop-by-hop headers, which apply to a single connection: RFC 9110, 7.6.1, and those for proxies.
const HOP_BY_HOP: [HeaderName; 9] = [
    CONNECTION,
    HeaderName::from_static("keep-alive"),
    HeaderName::from_static("proxy-connection"),
    PROXY_AUTHENTICATE,
    PROXY_AUTHORIZATION,
    TE,
    TRAILER,
    TRANSFER_ENCODING,
    UPGRADE,
];

/// Returns the host that a request is for: the target of a `CONNECT`, or the authority of an absolute `http:` URL. The
/// `Host` header does not matter, RFC 9112, 3.2.2.
pub(super) fn destination(request: &Request<Incoming>) -> Result<Destination, Refusal> {
    let uri = request.uri();
    let usual = match (request.method(), uri.scheme_str()) {
        (&Method::CONNECT, None) => None,
        (&Method::CONNECT, Some(_)) => {
            return Err(Refusal::Malformed("CONNECT expects host:port"));
        }
        (_, Some("http")) => Some(HTTP_PORT),
        (_, Some(_)) => {
            let text = "only http: is forwarded, use CONNECT for everything else";
            return Err(Refusal::Malformed(text));
        }
        (_, None) => {
            let text = "this is a proxy: expected an absolute URL, or CONNECT";
            return Err(Refusal::Malformed(text));
        }
    };
    let authority = uri.authority().map_or("", |authority| authority.as_str());
    Destination::parse(authority, usual).ok_or(Refusal::Malformed("expected a host and a port"))
}

/// Refuses a request that two parsers could split into messages at different positions (request smuggling). hyper has
/// already refused contradictory lengths and invalid HTTP when it read the head.
pub(super) fn check_framing(request: &Request<Incoming>) -> Result<(), Refusal> {
    let headers = request.headers();
    let mut codings = headers.get_all(TRANSFER_ENCODING).iter();
    let coding = codings.next();
    let is_chunked =
        coding.is_some_and(|coding| coding.as_bytes().eq_ignore_ascii_case(b"chunked"));
    if coding.is_some() && (!is_chunked || codings.next().is_some()) {
        let text = "no Transfer-Encoding but chunked is forwarded";
        return Err(Refusal::Malformed(text));
    }
    if headers.get_all(HOST).iter().count() > 1 {
        return Err(Refusal::Malformed("more than one Host"));
    }
    let has_body = coding.is_some() || !request.body().is_end_stream();
    if request.method() == Method::CONNECT && has_body {
        return Err(Refusal::Malformed("CONNECT has no body"));
    }
    Ok(())
}

/// Sends a request to its host, over a connection of its own, and returns as soon as the answer begins.
pub(super) async fn forward(
    request: Request<Incoming>,
    destination: &Destination,
    upstream: Upstream,
    entry: OpenEntry,
    limits: &EgressLimits,
) -> Result<Answer, Refusal> {
    let request = rewrite(request, destination)?;
    let handshake = http1::Builder::new()
        .max_buf_size(limits.header_bytes)
        .handshake(TokioIo::new(upstream));
    let (mut sender, connection) = handshake.await.map_err(|_| Refusal::Upstream)?;
    let connection = AbortOnDropHandle::new(tokio::spawn(async move {
        if let Err(error) = connection.await {
            log::debug!(error:%; "connection to a host ended");
        }
    }));
    let answer = sender.send_request(request).await.map_err(|error| {
        log::debug!(error:%; "host did not answer");
        Refusal::Upstream
    })?;
    let (mut parts, body) = answer.into_parts();
    if parts.status == StatusCode::SWITCHING_PROTOCOLS {
        return Err(Refusal::Upstream); // Not asked for: `Upgrade` is not passed on.
    }
    strip(&mut parts.headers);
    parts.version = Version::HTTP_11;
    let relayed = Relayed {
        body,
        _connection: connection,
        _entry: entry,
    };
    Ok(Answer::from_parts(
        parts,
        Either::Right(Either::Left(relayed)),
    ))
}

/// Rewrites the request to the form that its host gets.
fn rewrite(
    request: Request<Incoming>,
    destination: &Destination,
) -> Result<Request<Incoming>, Refusal> {
    let (mut parts, body) = request.into_parts();
    strip(&mut parts.headers);
    let host = HeaderValue::try_from(destination.authority(HTTP_PORT))
        .map_err(|_| Refusal::Malformed("expected a host and a port"))?;
    parts.headers.insert(HOST, host);
    let path = parts.uri.path_and_query().cloned();
    parts.uri = Uri::from(path.unwrap_or(PathAndQuery::from_static("/")));
    parts.version = Version::HTTP_11;
    Ok(Request::from_parts(parts, body))
}

/// Removes the hop-by-hop headers, and those that `Connection` lists.
fn strip(headers: &mut HeaderMap) {
    let listed: Vec<_> = headers
        .get_all(CONNECTION)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','))
        .filter_map(|name| name.trim().parse::<HeaderName>().ok())
        .collect();
    for name in listed.iter().chain(&HOP_BY_HOP) {
        // The length of the body must be sent even if `Connection` lists it.
        if name != CONTENT_LENGTH {
            headers.remove(name);
        }
    }
}

/// The body of a host's answer. Dropping it closes the connection to the host.
pub(crate) struct Relayed {
    body: Incoming,
    _connection: AbortOnDropHandle<()>,
    _entry: OpenEntry,
}

impl Body for Relayed {
    type Data = Bytes;
    type Error = hyper::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, hyper::Error>>> {
        Pin::new(&mut self.body).poll_frame(context)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}
