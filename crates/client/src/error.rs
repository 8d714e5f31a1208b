//! The errors of calls.

use std::error::Error;
use std::time::Duration;

use isol8_api::{ErrorBody, ErrorCode};
use reqwest::header::RETRY_AFTER;
use reqwest::{Response, StatusCode};

use crate::reason::{innermost, reason};

/// The error of a call that has no result. The text says what went wrong and what to do.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ClientError {
    /// The server's address is not a URL.
    #[error("{given:?} is not the URL of a server: {reason}")]
    InvalidUrl {
        /// The value that was given.
        given: String,
        /// The reason why it is not a URL.
        reason: String,
    },
    /// The key cannot be sent; this error does not contain it.
    #[error("the API key is empty, or has characters that no key has")]
    InvalidKey,
    /// A session id or a path would become another one in a URL.
    #[error("{0:?} cannot be in the URL of a session or a file")]
    Unaddressable(String),
    /// A call for files without a session; only sessions have files that can be accessed.
    #[error("File operations require a sessionId: choose a session by with_session")]
    NoSession,
    /// The server could not be reached; nothing was sent.
    #[error("server cannot be reached: {}", reason(.0))]
    Unreachable(#[source] reqwest::Error),
    /// The connection broke. The server may have carried out the request.
    #[error("connection to the server broke off: {}", reason(.0))]
    Transport(#[source] reqwest::Error),
    /// The answer does not come from an isol8 server, or is not in its format.
    #[error("answer is not one of isol8's: {0}")]
    Unexpected(String),
    /// The server answered with an error.
    #[error("{message}")]
    Api {
        /// HTTP status.
        status: u16,
        /// Code of the error; `None` if the answer does not come from isol8 but, for example, from a proxy.
        code: Option<ErrorCode>,
        /// The fault, and the fix.
        message: String,
        /// Wait until the request may be sent again, from the `Retry-After` header.
        retry_after: Option<Duration>,
    },
    /// A stream has ended with an error instead of an exit.
    #[error("{message}")]
    Failed {
        /// Code of the error; `None` if the server did not send one.
        code: Option<ErrorCode>,
        /// The fault, and the fix.
        message: String,
    },
    /// A stream has ended without an exit. The outcome of its run is not known.
    #[error("stream broke off before the exit")]
    BrokenOff,
    /// The run has ended and takes no more input.
    #[error("the run has ended, and takes no input")]
    RunEnded,
    /// A run at a terminal needs a WebSocket, but the server or a proxy does not support WebSockets.
    #[error("a terminal needs a WebSocket, and the server, or a proxy before it, opens none")]
    NoWebSocket,
    /// The call took longer than its deadline.
    #[error("deadline of {} ms is over", .0.as_millis())]
    Deadline(Duration),
}

impl ClientError {
    /// Returns the server's error code, if it answered with one.
    #[must_use]
    pub fn code(&self) -> Option<ErrorCode> {
        match self {
            Self::Api { code, .. } | Self::Failed { code, .. } => *code,
            _ => None,
        }
    }
}

impl From<reqwest::Error> for ClientError {
    fn from(error: reqwest::Error) -> Self {
        if error.is_connect() {
            Self::Unreachable(error)
        } else if error.is_decode() && !error.is_body() && !has_io(&error) {
            Self::Unexpected(innermost(&error))
        } else {
            Self::Transport(error)
        }
    }
}

/// Returns the error that an unsuccessful answer describes.
pub(crate) async fn refusal(response: Response) -> ClientError {
    let status = response.status();
    // isol8 sends seconds; a date comes from another server and is ignored.
    let retry_after = response
        .headers()
        .get(RETRY_AFTER)
        .and_then(|after| after.to_str().ok()?.parse().ok())
        .map(Duration::from_secs);
    match response.bytes().await {
        Ok(body) => refused(status, retry_after, &body),
        Err(error) => error.into(),
    }
}

fn refused(status: StatusCode, retry_after: Option<Duration>, body: &[u8]) -> ClientError {
    let (code, message) = match serde_json::from_slice::<ErrorBody>(body) {
        Ok(body) => (Some(body.code), body.error),
        Err(_) => (None, foreign(status, body)),
    };
    ClientError::Api {
        status: status.as_u16(),
        code,
        message,
        retry_after,
    }
}

/// Describes an answer that does not come from isol8 but from a proxy, another server, or a server that accepts TLS
/// only.
fn foreign(status: StatusCode, body: &[u8]) -> String {
    let wants_tls =
        status == StatusCode::BAD_REQUEST && body.windows(5).any(|text| text == b"HTTPS");
    match wants_tls {
        true => {
            format!("server answered {status}, it takes TLS only: write https:// in its address")
        }
        false => format!("server answered {status}, but not as isol8 does: is that its address?"),
    }
}

fn has_io(error: &reqwest::Error) -> bool {
    let mut source = error.source();
    while let Some(error) = source {
        if error.is::<std::io::Error>() {
            return true;
        }
        source = error.source();
    }
    false
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refusal_keeps_the_servers_code_and_text() {
        let body = br#"{"error": "no such session", "code": "SESSION_NOT_FOUND"}"#;
        let error = refused(StatusCode::NOT_FOUND, None, body);
        assert_eq!(error.code(), Some(ErrorCode::SessionNotFound));
        assert_eq!(error.to_string(), "no such session");
        let foreign = refused(StatusCode::BAD_GATEWAY, None, b"<html>");
        assert_eq!(foreign.code(), None);
        assert!(foreign.to_string().contains("502"), "{foreign}");
        let plain = b"Client sent an HTTP request to an HTTPS server.";
        let plain = refused(StatusCode::BAD_REQUEST, None, plain);
        assert!(plain.to_string().contains("write https://"), "{plain}");
    }
}
