//! The client of a server, and how it sends requests.

use std::fmt;
use std::time::Duration;

use isol8_api::SessionId;
use reqwest::header::{AUTHORIZATION, HeaderValue};
use reqwest::{Method, RequestBuilder, Response, Url};
use serde::de::DeserializeOwned;

use crate::error::refusal;
use crate::retry::{Deadline, Repeatable};
use crate::warning::Warnings;
use crate::{AsciiSet, ClientError, NON_ALPHANUMERIC, Retries, utf8_percent_encode};

/// Maximum time to open a connection.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);

/// Interval of TCP keepalive probes on an idle connection, and the number of unanswered probes after which the
/// connection counts as broken.
const KEEPALIVE: (Duration, u32) = (Duration::from_secs(15), 4);

/// The characters that are percent-encoded in the path of a URL.
const ESCAPED: &AsciiSet = &NON_ALPHANUMERIC
    .remove(b'.')
    .remove(b'-')
    .remove(b'_')
    .remove(b'~')
    .remove(b':');

/// A client of a server. Cheap to clone; clones share connections.
#[derive(Clone)]
pub struct RemoteIsol8 {
    http: reqwest::Client,
    base: Url,
    /// Value of the `Authorization` header, marked as sensitive so that the HTTP library does not log it.
    authorization: HeaderValue,
    pub(crate) session: Option<SessionId>,
    retries: Retries,
    deadline: Option<Duration>,
    pub(crate) warnings: Warnings,
}

/// Leaves out the key, which must not be logged.
impl fmt::Debug for RemoteIsol8 {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RemoteIsol8")
            .field("base", &self.base.as_str())
            .field("session", &self.session)
            .field("retries", &self.retries)
            .field("deadline", &self.deadline)
            .finish_non_exhaustive()
    }
}

impl RemoteIsol8 {
    /// Creates a client from the server's address, for example `http://127.0.0.1:3000`, and an API key. Nothing is sent
    /// yet.
    ///
    /// # Errors
    /// Returns [`ClientError::InvalidUrl`] or [`ClientError::InvalidKey`].
    pub fn new(url: &str, key: &str) -> Result<Self, ClientError> {
        let base = base(url)?;
        let mut authorization =
            HeaderValue::try_from(format!("Bearer {key}")).map_err(|_| ClientError::InvalidKey)?;
        if key.trim().is_empty() {
            return Err(ClientError::InvalidKey);
        }
        authorization.set_sensitive(true);
        // Fails if the program has already installed a provider, which it then keeps.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let (interval, missing) = KEEPALIVE;
        let http = reqwest::Client::builder()
            .connect_timeout(CONNECT_TIMEOUT)
            .tcp_keepalive(interval)
            .tcp_keepalive_interval(interval)
            .tcp_keepalive_retries(missing)
            // A WebSocket is an upgrade of an HTTP/1.1 connection.
            .http1_only()
            .build()?;
        Ok(Self {
            http,
            base,
            authorization,
            session: None,
            retries: Retries::default(),
            deadline: None,
            warnings: Warnings::default(),
        })
    }

    /// Returns a client whose runs and files belong to this session.
    #[must_use]
    pub fn with_session(mut self, session: SessionId) -> Self {
        self.session = Some(session);
        self
    }

    /// Returns a client with other rules for retries.
    #[must_use]
    pub fn with_retries(mut self, retries: Retries) -> Self {
        self.retries = retries;
        self
    }

    /// Returns a client with a time limit for each call, its retries, its waits and all events of a stream included. A
    /// run that is not done by then is ended. Without a deadline a call takes as long as it needs; the time limit of a
    /// run is in its request.
    ///
    /// ```standalone_crate
    /// # fn main() -> std::process::ExitCode { isol8_testing::example(async |url, key| {
    /// # use isol8_client::{ClientError, ExecutionRequest, RemoteIsol8, Runtime};
    /// use std::time::Duration;
    ///
    /// let isol8 = RemoteIsol8::new(&url, &key)?.with_deadline(Duration::from_secs(1));
    /// let mut request = ExecutionRequest::new(Runtime::Bash);
    /// request.code = Some("sleep 60".to_owned());
    /// let error = isol8.execute(request).await.unwrap_err();
    /// assert!(matches!(error, ClientError::Deadline(_)));
    /// # Ok(()) }) }
    /// ```
    #[must_use]
    pub fn with_deadline(mut self, deadline: Duration) -> Self {
        self.deadline = Some(deadline);
        self
    }

    /// Returns a client that passes warnings to this function instead of the log. There are two kinds: the server's
    /// warnings about a request, such as a misspelt option, and before the first request the warning that the key would
    /// be sent over `http:` to another host.
    #[must_use]
    pub fn with_warnings(self, handler: impl Fn(&str) + Send + Sync + 'static) -> Self {
        self.with_warnings_to(Warnings::to(handler))
    }

    pub(crate) fn with_warnings_to(mut self, warnings: Warnings) -> Self {
        self.warnings = warnings;
        self
    }

    /// Returns the deadline of a call that starts now.
    pub(crate) fn deadline(&self) -> Deadline {
        Deadline::after(self.deadline)
    }

    /// Returns the deadline of a short call that starts now.
    pub(crate) fn short_deadline(&self) -> Deadline {
        Deadline::after(Some(self.deadline.unwrap_or(Self::SHORT_CALL_TIMEOUT)))
    }

    /// Maximum time for a request other than a run, a file transfer or a cleanup. A server that takes longer hangs.
    const SHORT_CALL_TIMEOUT: Duration = Duration::from_secs(60);

    pub(crate) fn url(&self, path: &[&str]) -> Result<Url, ClientError> {
        let mut url = self.base.clone();
        let mut escaped = url.path().trim_end_matches('/').to_owned();
        for part in path {
            // The URL parser would resolve these to another path, even that of another session.
            if matches!(*part, "." | "..") {
                return Err(ClientError::Unaddressable((*part).to_owned()));
            }
            escaped.push('/');
            escaped.extend(utf8_percent_encode(part, ESCAPED));
        }
        // Escaped beforehand, because the URL parser drops line breaks and tabs, which names may contain.
        url.set_path(&escaped);
        Ok(url)
    }

    pub(crate) fn request(&self, method: Method, url: Url) -> RequestBuilder {
        self.warnings.before_sending_to(&self.base);
        let request = self.http.request(method, url);
        request.header(AUTHORIZATION, self.authorization.clone())
    }

    /// Sends a request, with retries if they are safe, and returns the server's answer.
    pub(crate) async fn receive<T: DeserializeOwned>(
        &self,
        repeatable: Repeatable,
        request: &RequestBuilder,
    ) -> Result<T, ClientError> {
        let try_once = || async {
            let response = answer(request).await?;
            self.warnings.of_answer(&response);
            Ok(response.json().await?)
        };
        self.retrying(repeatable, try_once).await
    }

    /// Makes a call, with retries if they are safe.
    pub(crate) async fn retrying<T, F: Future<Output = Result<T, ClientError>>>(
        &self,
        repeatable: Repeatable,
        call: impl FnMut() -> F,
    ) -> Result<T, ClientError> {
        self.retries.call(repeatable, call).await
    }
}

/// Parses the address of a server. Its path is the prefix of the routes.
fn base(url: &str) -> Result<Url, ClientError> {
    let invalid = |given: &str, reason: String| ClientError::InvalidUrl {
        given: given.to_owned(),
        reason,
    };
    if !url.contains("://") {
        return Err(invalid(url, without_scheme(url)));
    }
    let mut base = Url::parse(url).map_err(|error| invalid(url, error.to_string()))?;
    if !matches!(base.scheme(), "http" | "https") {
        return Err(invalid(
            url,
            "expected it to begin with http:// or https://".to_owned(),
        ));
    }
    if !base.username().is_empty() || base.password().is_some() {
        // The error shows the URL without them. Removing them cannot fail, because the URL has a host.
        let _ = (base.set_username(""), base.set_password(None));
        let reason = "expected no user and no password in it, isol8 takes an API key".to_owned();
        return Err(invalid(base.as_str(), reason));
    }
    base.set_query(None);
    base.set_fragment(None);
    Ok(base)
}

/// Describes the fix for an address without a scheme, such as `localhost:3000`.
fn without_scheme(address: &str) -> String {
    let address = match address.trim() {
        "" => "127.0.0.1:3000",
        address => address,
    };
    format!(
        "the scheme is missing, write http://{address}, or https://{address} where it takes TLS"
    )
}

/// Sends a request once and returns the answer if its status is a success. The body must not be a stream.
pub(crate) async fn answer(request: &RequestBuilder) -> Result<Response, ClientError> {
    let no_copy = || ClientError::Unexpected("a body that is a stream is sent once".to_owned());
    let request = request.try_clone().ok_or_else(no_copy)?;
    succeed(request.send().await?).await
}

/// Returns the answer if its status is a success, otherwise the error that it describes.
pub(crate) async fn succeed(response: Response) -> Result<Response, ClientError> {
    if response.status().is_success() {
        return Ok(response);
    }
    Err(refusal(response).await)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_that_is_no_server_is_refused_by_name() {
        for (bad, fix) in [
            ("", "write http://127.0.0.1:3000"),
            ("localhost:3000", "write http://localhost:3000"),
            ("isol8.example.com", "https://isol8.example.com"),
            ("ftp://host/", "begin with http:// or https://"),
        ] {
            let error = RemoteIsol8::new(bad, "key").unwrap_err();
            assert!(error.to_string().contains(&format!("{bad:?}")), "{error}");
            assert!(error.to_string().contains(fix), "{error}");
        }
        let error = RemoteIsol8::new("http://user:hunter2@host/", "key").unwrap_err();
        assert!(!format!("{error} {error:?}").contains("hunter2"), "{error}");
    }

    #[test]
    fn a_path_before_the_routes_is_kept_and_names_are_escaped() {
        for base in ["http://host/isol8", "http://host/isol8/?query#part"] {
            let remote = RemoteIsol8::new(base, "key").unwrap();
            let url = remote.url(&["session", "a:b", "files", "ü \n%"]).unwrap();
            assert_eq!(
                url.as_str(),
                "http://host/isol8/session/a:b/files/%C3%BC%20%0A%25"
            );
            let error = remote.url(&["session", ".."]).unwrap_err();
            assert!(matches!(error, ClientError::Unaddressable(_)), "{error}");
        }
    }

    #[tokio::test]
    async fn the_key_is_in_no_debug_output_and_no_error() {
        let remote = RemoteIsol8::new("http://127.0.0.1:1", "hunter2").unwrap();
        let remote = remote.with_retries(Retries {
            most: 0,
            ..Retries::default()
        });
        let error = remote.health().await.unwrap_err();
        assert!(matches!(error, ClientError::Unreachable(_)), "{error:?}");
        let request = remote.request(Method::GET, remote.url(&["sessions"]).unwrap());
        let shown = format!("{remote:?} {error} {error:?} {request:?}");
        assert!(!shown.contains("hunter2"), "{shown}");
        for bad in ["", " ", "a\nb"] {
            let error = RemoteIsol8::new("http://host", bad).unwrap_err();
            assert!(matches!(error, ClientError::InvalidKey), "{error}");
        }
    }
}
