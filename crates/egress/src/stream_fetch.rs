//! Fetches of the server itself, taken as they come.

use std::time::Duration;

use bytes::Bytes;
use reqwest::{Response, Url};
use tokio::time::timeout;

use crate::fetch::failure;
use crate::{Egress, FetchError, Policy};

/// Longest max_idle of a host, whatever the runs' own connections may have.
const MAX_IDLE: Duration = Duration::from_secs(60);

/// The answer of a host, whose body is still to come.
#[derive(Debug)]
pub struct FetchStream {
    host: String,
    response: Response,
    max_idle: Duration,
}

impl Egress {
    /// Asks a host for the server itself, with these headers. Redirects are answers like others.
    ///
    /// # Errors
    /// [`FetchError`], but none of the host's own.
    pub async fn fetch_stream(
        &self,
        url: &Url,
        hosts: &Policy,
        allow_http: bool,
        headers: &[(&str, &str)],
    ) -> Result<FetchStream, FetchError> {
        let host = self.check(url, hosts, allow_http)?;
        let mut request = self.client()?.get(url.clone());
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let max_idle = self.0.limits.idle_timeout.min(MAX_IDLE);
        let answered = timeout(max_idle, request.send()).await;
        let answered = answered.map_err(|_| FetchError::TimedOut(max_idle))?;
        let response = answered.map_err(|error| failure(&host, &error))?;
        Ok(FetchStream {
            host,
            response,
            max_idle,
        })
    }

    /// Whether a host may be fetched from, as far as its name says.
    ///
    /// # Errors
    /// [`FetchError::Denied`] by which rule not.
    pub fn admit(&self, url: &Url, hosts: &Policy) -> Result<(), FetchError> {
        self.check(url, hosts, true).map(drop)
    }
}

impl FetchStream {
    /// The HTTP status.
    #[must_use]
    pub fn status(&self) -> u16 {
        self.response.status().as_u16()
    }

    /// A header that is text, by its name in lower case.
    #[must_use]
    pub fn header(&self, name: &str) -> Option<&str> {
        self.response.headers().get(name)?.to_str().ok()
    }

    /// The body's length in bytes, where the host says it.
    #[must_use]
    pub fn length(&self) -> Option<u64> {
        self.response.content_length()
    }

    /// The next piece of the body.
    ///
    /// # Errors
    /// [`FetchError`] where the body does not come to its end.
    pub async fn chunk(&mut self) -> Result<Option<Bytes>, FetchError> {
        let next = timeout(self.max_idle, self.response.chunk()).await;
        let next = next.map_err(|_| FetchError::TimedOut(self.max_idle))?;
        next.map_err(|error| failure(&self.host, &error))
    }
}
