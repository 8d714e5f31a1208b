//! Hosts that exist inside the server only.

use std::fmt;
use std::io;

use bytes::Bytes;
use http_body_util::combinators::UnsyncBoxBody;
use hyper::Response;
use hyper::http::request::Parts;

use crate::problem::NetworkProblem;

/// The answer of such a host.
pub type LocalAnswer = Response<UnsyncBoxBody<Bytes, io::Error>>;

/// A host inside the server, for the runs that it is given to. Requests come over `http:`, whatever the port, and never
/// with a body.
pub trait LocalHost: fmt::Debug + Send + Sync {
    /// Whether it has this name: in lower case, without a final dot.
    fn is_named(&self, host: &str) -> bool;

    /// The hosts that it could not reach.
    fn problems(&self) -> Vec<NetworkProblem> {
        Vec::new()
    }

    /// Answers a request. Dropping the future, or the answer's body, ends it.
    fn answer(&self, request: Parts) -> futures::future::BoxFuture<'static, LocalAnswer>;
}
