//! Calls that have no result.

use std::error::Error;
use std::time::Duration;

use isol8_api::{ErrorBody, ErrorCode};
use reqwest::header::RETRY_AFTER;
use reqwest::{Response, StatusCode};

use crate::reason::{innermost, reason};

/// A call that has no result. The text says what went wrong and what to do.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ClientError {
    /// The server's address is not a URL.
    #[error("{given:?} is not the URL of a server: {reason}")]
    InvalidUrl {
        /// The value that was given.
        given: String,
        /// Why not.
        reason: String,
    },
    /// The key cannot be sent; this error does not contain it.
    #[error("the API key is empty, or has characters that no key has")]
    InvalidKey,
    /// A session id or a path that would become another one in a URL.
    #[error("{0:?} cannot be in the URL of a session or a file")]
    Unaddressable(String),
    /// Only sessions have files that can be reached.
    #[error("File operations require a sessionId: choose a session by with_session")]
    NoSession,
    /// The server could not be reached; nothing was sent.
    #[error("server cannot be reached: {}", reason(.0))]
    Unreachable(#[source] reqwest::Error),
    /// The connection broke, and what was asked for may have been done.
    #[error("connection to the server broke off: {}", reason(.0))]
    Transport(#[source] reqwest::Error),
    /// The answer is not one of isol8's.
    #[error("answer is not one of isol8's: {0}")]
    Unexpected(String),
    /// The server refused.
    #[error("{message}")]
    Api {
        /// HTTP status.
        status: u16,
        /// Kind of error; `None` where the answer is not one of isol8's, but of a proxy perhaps.
        code: Option<ErrorCode>,
        /// The fault, and the fix.
        message: String,
        /// When the server wants to be asked again, if it said so.
        retry_after: Option<Duration>,
    },
    /// A stream has ended with this instead of an exit.
    #[error("{message}")]
    Failed {
        /// Kind of error; `None` where the server did not tell.
        code: Option<ErrorCode>,
        /// The fault, and the fix.
        message: String,
    },
    /// A stream has ended without an exit; how its run went on is not known.
    #[error("stream broke off before the exit")]
    BrokenOff,
    /// The program cannot be spoken to any more.
    #[error("the run has ended, and takes no input")]
    RunEnded,
    /// A run at a terminal needs a WebSocket, and something on the way lets none pass.
    #[error("a terminal needs a WebSocket, and the server, or a proxy before it, opens none")]
    NoWebSocket,
    /// The call took longer than it may.
    #[error("deadline of {} ms is over", .0.as_millis())]
    Deadline(Duration),
}

impl ClientError {
    /// The server's kind of error, if it answered with one.
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
    // A date instead of seconds is none of isol8's.
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

/// Describes an answer that is not isol8's: of a proxy, of another server, or of one that takes TLS only.
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
