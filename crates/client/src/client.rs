//! A server and how it is called.

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

/// How long a connection may take to be made.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);

/// Time between the signs of life that a connection asks of a server that says nothing, and how many
/// may be missing in a row.
const KEEPALIVE: (Duration, u32) = (Duration::from_secs(15), 4);

/// The characters that may be in the path of a URL as they are.
const ESCAPED: &AsciiSet = &NON_ALPHANUMERIC
    .remove(b'.')
    .remove(b'-')
    .remove(b'_')
    .remove(b'~')
    .remove(b':');

/// A server. Cheap to clone; clones share connections.
#[derive(Clone)]
pub struct RemoteIsol8 {
    http: reqwest::Client,
    base: Url,
    /// `Authorization`; marked, so that nothing below shows it either.
    authorization: HeaderValue,
    pub(crate) session: Option<SessionId>,
    retries: Retries,
    deadline: Option<Duration>,
    pub(crate) warnings: Warnings,
}

/// The key stays out of logs.
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
    /// A server by its address, for example `http://127.0.0.1:3000`, and an API key. Nothing is sent yet.
    ///
    /// # Errors
    /// [`ClientError::InvalidUrl`], [`ClientError::InvalidKey`].
    pub fn new(url: &str, key: &str) -> Result<Self, ClientError> {
        let base = base(url)?;
        let mut authorization =
            HeaderValue::try_from(format!("Bearer {key}")).map_err(|_| ClientError::InvalidKey)?;
        if key.trim().is_empty() {
            return Err(ClientError::InvalidKey);
        }
        authorization.set_sensitive(true);
        // A program that has chosen a provider already keeps its own.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let (interval, missing) = KEEPALIVE;
        let http = reqwest::Client::builder()
            .connect_timeout(CONNECT_TIMEOUT)
            .tcp_keepalive(interval)
            .tcp_keepalive_interval(interval)
            .tcp_keepalive_retries(missing)
            // WebSockets are an upgrade of this version.
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

    /// The same server, with every run and every file in this session.
    #[must_use]
    pub fn with_session(mut self, session: SessionId) -> Self {
        self.session = Some(session);
        self
    }

    /// The same server, with other rules for making a call again.
    #[must_use]
    pub fn with_retries(mut self, retries: Retries) -> Self {
        self.retries = retries;
        self
    }

    /// The same server, with an end to every call: its tries and waits together, and of streams all that
    /// they tell, take no longer than this. A run that is not done by then is ended. Without a deadline, a
    /// call takes as long as it takes; what a run may take, its request says.
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

    /// The same server, with warnings told to this function instead of the log: what the server finds doubtful
    /// about a request, such as a misspelt option, and, before the first request, a key that would be sent over
    /// `http:` to another host than this one.
    #[must_use]
    pub fn with_warnings(self, handler: impl Fn(&str) + Send + Sync + 'static) -> Self {
        self.with_warnings_to(Warnings::to(handler))
    }

    pub(crate) fn with_warnings_to(mut self, warnings: Warnings) -> Self {
        self.warnings = warnings;
        self
    }

    /// The end of a call that begins now.
    pub(crate) fn deadline(&self) -> Deadline {
        Deadline::after(self.deadline)
    }

    /// The end of a call that begins now and asks for nothing that takes time.
    pub(crate) fn short_deadline(&self) -> Deadline {
        Deadline::after(Some(self.deadline.unwrap_or(Self::SHORT)))
    }

    /// How long a server may take for a request that is no run, no file and no cleanup; longer, it hangs.
    const SHORT: Duration = Duration::from_secs(60);

    pub(crate) fn url(&self, path: &[&str]) -> Result<Url, ClientError> {
        let mut url = self.base.clone();
        let mut escaped = url.path().trim_end_matches('/').to_owned();
        for part in path {
            // These would be resolved, and ask for something else: even for another session.
            if matches!(*part, "." | "..") {
                return Err(ClientError::Unaddressable((*part).to_owned()));
            }
            escaped.push('/');
            escaped.extend(utf8_percent_encode(part, ESCAPED));
        }
        // Escaped already: the parts of a URL lose line breaks and tabs, which names may hold.
        url.set_path(&escaped);
        Ok(url)
    }

    pub(crate) fn request(&self, method: Method, url: Url) -> RequestBuilder {
        self.warnings.before_sending_to(&self.base);
        let request = self.http.request(method, url);
        request.header(AUTHORIZATION, self.authorization.clone())
    }

    /// Returns the server's answer to a request, which is sent again if that is safe.
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

    /// Makes any call, again where that is safe.
    pub(crate) async fn retrying<T, F: Future<Output = Result<T, ClientError>>>(
        &self,
        repeatable: Repeatable,
        call: impl FnMut() -> F,
    ) -> Result<T, ClientError> {
        self.retries.call(repeatable, call).await
    }
}

/// The address of a server, with whatever path its routes stand under.
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
            "expected http:// or https:// at its begin".to_owned(),
        ));
    }
    if !base.username().is_empty() || base.password().is_some() {
        // Shown without them. Neither can fail: the URL has a host.
        let _ = (base.set_username(""), base.set_password(None));
        let reason = "expected no user and no password in it, isol8 takes an API key".to_owned();
        return Err(invalid(base.as_str(), reason));
    }
    base.set_query(None);
    base.set_fragment(None);
    Ok(base)
}

/// The fix for an address such as `localhost:3000`.
fn without_scheme(address: &str) -> String {
    let address = match address.trim() {
        "" => "127.0.0.1:3000",
        address => address,
    };
    format!(
        "the scheme is missing, write http://{address}, or https://{address} where it takes TLS"
    )
}

/// Sends a request, whose body is no stream, once. The answer, if it is a success.
pub(crate) async fn answer(request: &RequestBuilder) -> Result<Response, ClientError> {
    let no_copy = || ClientError::Unexpected("a body that is a stream is sent once".to_owned());
    let request = request.try_clone().ok_or_else(no_copy)?;
    succeed(request.send().await?).await
}

/// The answer, if it is a success.
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
            ("ftp://host/", "expected http:// or https://"),
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
