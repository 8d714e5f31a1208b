//! An isol8 server, for Rust programs.
//!
//! ```no_run
//! # async fn example() -> Result<(), isol8_client::ClientError> {
//! use isol8_client::{ExecutionRequest, RemoteIsol8, Runtime};
//!
//! let isol8 = RemoteIsol8::new("http://127.0.0.1:3000", "my-key")?;
//! let mut request = ExecutionRequest::new(Runtime::Python);
//! request.code = Some("print(6 * 7)".to_owned());
//! assert_eq!(isol8.execute(request).await?.stdout, "42");
//! # Ok(())
//! # }
//! ```
//!
//! With [`RemoteIsol8::with_session`] every run goes to one session, whose files and variables
//! live on until [`RemoteIsol8::stop`].

use std::time::Duration;

use isol8_api::file::Written;
use isol8_api::{Deleted, ErrorBody, SessionList};
pub use isol8_api::{
    DirectoryEntry, DirectoryListing, EntryType, ErrorCode, ExecuteBody, ExecutionRequest,
    ExecutionResult, FileContent, Health, NetworkAction, NetworkFilter, NetworkLogEntry,
    NetworkMode, Options, Runtime, SessionId, SessionInfo,
};
pub use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};
use reqwest::Body;
use reqwest::{Method, RequestBuilder, StatusCode, Url};
use serde::de::DeserializeOwned;

/// How long a connection may take to be made.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);

/// A call that has no result.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// The server's address is not a URL.
    #[error("{given:?} is not the URL of a server: {reason}")]
    InvalidUrl {
        /// What was given.
        given: String,
        /// Why not.
        reason: String,
    },
    /// Only sessions have files that can be reached.
    #[error("File operations require a sessionId: choose a session by with_session")]
    NoSession,
    /// The server could not be reached, or its answer did not arrive.
    #[error("server cannot be reached: {0}")]
    Transport(#[from] reqwest::Error),
    /// The server refused.
    #[error("{message}")]
    Api {
        /// HTTP status.
        status: u16,
        /// Kind of error; `None` where the answer is not one of isol8's.
        code: Option<ErrorCode>,
        /// What went wrong and what to do.
        message: String,
    },
}

impl ClientError {
    /// The server's kind of error, where it answered with one.
    #[must_use]
    pub fn code(&self) -> Option<ErrorCode> {
        match self {
            Self::Api { code, .. } => *code,
            _ => None,
        }
    }
}

/// A server. Cheap to clone; clones share connections.
#[derive(Clone)]
pub struct RemoteIsol8 {
    http: reqwest::Client,
    base: Url,
    key: String,
    session: Option<SessionId>,
}

/// The key stays out of logs.
impl std::fmt::Debug for RemoteIsol8 {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("RemoteIsol8")
            .field("base", &self.base.as_str())
            .field("session", &self.session)
            .finish_non_exhaustive()
    }
}

impl RemoteIsol8 {
    /// A server by its address, for example `http://127.0.0.1:3000`. Nothing is sent yet.
    ///
    /// # Errors
    /// [`ClientError::InvalidUrl`].
    pub fn new(url: &str, key: &str) -> Result<Self, ClientError> {
        let invalid = |reason: String| ClientError::InvalidUrl {
            given: url.to_owned(),
            reason,
        };
        let mut base = Url::parse(url).map_err(|error| invalid(error.to_string()))?;
        if !matches!(base.scheme(), "http" | "https") {
            return Err(invalid("expected http or https".to_owned()));
        }
        if !base.path().ends_with('/') {
            base.set_path(&format!("{}/", base.path()));
        }
        // A program that has chosen a provider already keeps its own.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let http = reqwest::Client::builder()
            .connect_timeout(CONNECT_TIMEOUT)
            .build()?;
        Ok(Self {
            http,
            base,
            key: key.to_owned(),
            session: None,
        })
    }

    /// The same server, with every run in this session.
    #[must_use]
    pub fn with_session(mut self, session: SessionId) -> Self {
        self.session = Some(session);
        self
    }

    /// Runs a program with the server's default options.
    ///
    /// # Errors
    /// [`ClientError`]; a program that fails is a result.
    pub async fn execute(&self, request: ExecutionRequest) -> Result<ExecutionResult, ClientError> {
        self.execute_with(request, Options::default()).await
    }

    /// Runs a program.
    ///
    /// # Errors
    /// [`ClientError`]; a program that fails is a result.
    pub async fn execute_with(
        &self,
        request: ExecutionRequest,
        options: Options,
    ) -> Result<ExecutionResult, ClientError> {
        let body = ExecuteBody {
            request,
            options: Some(options),
            session_id: self.session.clone(),
        };
        let request = self.request(Method::POST, &["execute"]).json(&body);
        receive(request).await
    }

    /// Whether the server is up, which version it is, and its backend.
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn health(&self) -> Result<Health, ClientError> {
        receive(self.request(Method::GET, &["health"])).await
    }

    /// The sessions that the key may see.
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn sessions(&self) -> Result<Vec<SessionInfo>, ClientError> {
        let list: SessionList = receive(self.request(Method::GET, &["sessions"])).await?;
        Ok(list.sessions)
    }

    /// Deletes a session; one that is not there is as good as deleted.
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn delete_session(&self, session: &SessionId) -> Result<(), ClientError> {
        let request = self.request(Method::DELETE, &["session", session.as_str()]);
        let _: Deleted = receive(request).await?;
        Ok(())
    }

    /// Deletes the session of [`Self::with_session`], if any.
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn stop(&self) -> Result<(), ClientError> {
        match &self.session {
            Some(session) => self.delete_session(session).await,
            None => Ok(()),
        }
    }

    /// Writes a file of the session, parents created; what had its name is replaced once all of it is
    /// there. The path is absolute, within `/sandbox` or `/tmp`.
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn put_file(&self, path: &str, content: impl Into<Body>) -> Result<(), ClientError> {
        let request = self.file_request(Method::PUT, path)?;
        let _: Written = receive(request.body(content)).await?;
        Ok(())
    }

    /// Reads a file of the session.
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn get_file(&self, path: &str) -> Result<Vec<u8>, ClientError> {
        let response = self.file_request(Method::GET, path)?.send().await?;
        let status = response.status();
        let body = response.bytes().await?;
        if status.is_success() {
            return Ok(body.into());
        }
        Err(refusal(status, &body))
    }

    /// Lists a directory of the session.
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn list_files(&self, path: &str) -> Result<DirectoryListing, ClientError> {
        let session = self.session.as_ref().ok_or(ClientError::NoSession)?;
        let mut url = self.url(&["session", session.as_str(), "files"]);
        url.query_pairs_mut().append_pair("path", path);
        let request = self.http.request(Method::GET, url);
        receive(request.bearer_auth(&self.key)).await
    }

    fn file_request(&self, method: Method, path: &str) -> Result<RequestBuilder, ClientError> {
        let session = self.session.as_ref().ok_or(ClientError::NoSession)?;
        let mut url = self.url(&["session", session.as_str(), "files"]);
        // Escaped here: the parts of a URL lose line breaks and tabs, which names may hold.
        let path = utf8_percent_encode(path.trim_start_matches('/'), ESCAPED);
        url.set_path(&format!("{}/{path}", url.path()));
        Ok(self.http.request(method, url).bearer_auth(&self.key))
    }

    fn url(&self, path: &[&str]) -> Url {
        let mut url = self.base.clone();
        // Every http URL can have a path; the parts are escaped.
        if let Ok(mut parts) = url.path_segments_mut() {
            parts.pop_if_empty().extend(path);
        }
        url
    }

    fn request(&self, method: Method, path: &[&str]) -> RequestBuilder {
        self.http
            .request(method, self.url(path))
            .bearer_auth(&self.key)
    }
}

async fn receive<T: DeserializeOwned>(request: RequestBuilder) -> Result<T, ClientError> {
    let response = request.send().await?;
    let status = response.status();
    if status.is_success() {
        return Ok(response.json().await?);
    }
    Err(refusal(status, response.bytes().await?.as_ref()))
}

fn refusal(status: StatusCode, body: &[u8]) -> ClientError {
    let (code, message) = match serde_json::from_slice::<ErrorBody>(body) {
        Ok(body) => (Some(body.code), body.error),
        Err(_) => (None, format!("server answered {status}")),
    };
    ClientError::Api {
        status: status.as_u16(),
        code,
        message,
    }
}

/// What stands for something else in the path of a URL.
const ESCAPED: &AsciiSet = &NON_ALPHANUMERIC
    .remove(b'/')
    .remove(b'.')
    .remove(b'-')
    .remove(b'_')
    .remove(b'~');

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_that_is_no_server_is_refused_by_name() {
        for bad in ["", "localhost:3000", "ftp://host/"] {
            let error = RemoteIsol8::new(bad, "key").unwrap_err();
            assert!(error.to_string().contains(&format!("{bad:?}")), "{error}");
        }
    }

    #[test]
    fn a_path_before_the_routes_is_kept() {
        let remote = RemoteIsol8::new("http://host/isol8", "key").unwrap();
        let request = remote.request(Method::GET, &["session", "a:b"]);
        let url = request.build().unwrap().url().to_string();
        assert_eq!(url, "http://host/isol8/session/a:b");
    }

    #[test]
    fn a_refusal_keeps_the_servers_code_and_text() {
        let body = br#"{"error": "no such session", "code": "SESSION_NOT_FOUND"}"#;
        let error = refusal(StatusCode::NOT_FOUND, body);
        assert_eq!(error.code(), Some(ErrorCode::SessionNotFound));
        assert_eq!(error.to_string(), "no such session");
        let foreign = refusal(StatusCode::BAD_GATEWAY, b"<html>");
        assert_eq!(foreign.code(), None);
    }

    #[test]
    fn the_key_is_not_in_the_debug_output() {
        let remote = RemoteIsol8::new("http://host", "hunter2").unwrap();
        assert!(!format!("{remote:?}").contains("hunter2"));
    }
}
