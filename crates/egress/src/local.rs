//! Hosts that exist inside the server only.

use std::fmt;
use std::io;

use bytes::Bytes;
use http_body_util::combinators::UnsyncBoxBody;
use hyper::Response;
use hyper::http::request::Parts;

use crate::problem::NetworkProblem;

/// The answer of a host inside the server.
pub type LocalAnswer = Response<UnsyncBoxBody<Bytes, io::Error>>;

/// A host inside the server, for the runs that it is given to. The host gets requests over `http:` on any port, without
/// their bodies.
pub trait LocalHost: fmt::Debug + Send + Sync {
    /// Returns whether the host has this name, given in lower case without a final dot.
    fn is_named(&self, host: &str) -> bool;

    /// Returns the hosts that this host could not reach.
    fn problems(&self) -> Vec<NetworkProblem> {
        Vec::new()
    }

    /// Answers a request. Dropping the future or the body of the answer cancels the request.
    fn answer(&self, request: Parts) -> futures::future::BoxFuture<'static, LocalAnswer>;
}
