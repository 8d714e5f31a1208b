//! Requests that the proxy refuses, with the status and text of each answer in one table.

use bytes::Bytes;
use http_body_util::{Either, Full};
use hyper::header::{CONNECTION, CONTENT_TYPE, HeaderValue};
use hyper::{Response, StatusCode};

use super::Answer;
use crate::dial::DialError;
use crate::filter::{Denied, PortDenied};

/// The reason why a request has no answer from its host.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Refusal {
    #[error("{0}")]
    Malformed(&'static str),
    #[error("{0}")]
    Denied(#[from] Denied),
    #[error("{0}")]
    Port(#[from] PortDenied),
    #[error("{0}")]
    Dial(#[from] DialError),
    #[error("the host's answer is not valid HTTP")]
    Upstream,
    #[error("too many connections at once")]
    Connections,
    #[error("this run has used up the bytes that it may receive and send")]
    Bytes,
}

impl Refusal {
    fn status(&self) -> StatusCode {
        match self {
            Self::Malformed(_) => StatusCode::BAD_REQUEST,
            Self::Denied(_)
            | Self::Port(_)
            | Self::Dial(DialError::NotPublic(_) | DialError::NoAddress(_)) => {
                StatusCode::FORBIDDEN
            }
            Self::Dial(DialError::Unreachable(..)) | Self::Upstream => StatusCode::BAD_GATEWAY,
            Self::Dial(DialError::TimedOut(_)) => StatusCode::GATEWAY_TIMEOUT,
            Self::Connections | Self::Bytes => StatusCode::TOO_MANY_REQUESTS,
        }
    }

    pub(crate) fn answer(&self) -> Answer {
        let text = format!("isol8: {self}\n");
        let mut answer = Response::new(Either::Left(Full::new(Bytes::from(text))));
        *answer.status_mut() = self.status();
        let plain = HeaderValue::from_static("text/plain; charset=utf-8");
        answer.headers_mut().insert(CONTENT_TYPE, plain);
        if self.ends_connection() {
            let close = HeaderValue::from_static("close");
            answer.headers_mut().insert(CONNECTION, close);
        }
        answer
    }

    /// Returns whether the connection must be closed, because its next requests would be refused too or start at an
    /// unknown byte.
    fn ends_connection(&self) -> bool {
        matches!(self, Self::Malformed(_) | Self::Connections | Self::Bytes)
    }
}
