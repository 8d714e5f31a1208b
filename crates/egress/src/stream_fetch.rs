//! Fetches by the server itself whose body is read as a stream.

use std::time::Duration;

use bytes::Bytes;
use reqwest::{Response, Url};
use tokio::time::timeout;

use crate::fetch::failure;
use crate::{Egress, FetchError, Policy};

/// Maximum time without a byte from a host, even if the idle timeout for connections of runs is longer.
const MAX_IDLE: Duration = Duration::from_secs(60);

/// The answer of a host, whose body is read in chunks.
#[derive(Debug)]
pub struct FetchStream {
    host: String,
    response: Response,
    max_idle: Duration,
}

impl Egress {
    /// Sends a `GET` request with these headers, and returns as soon as the answer begins. Redirects are not followed.
    ///
    /// # Errors
    /// Returns [`FetchError`]. A status other than 200 is not an error.
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

    /// Checks whether a host may be fetched from, by its name or address as given in the URL.
    ///
    /// # Errors
    /// Returns [`FetchError`] if the rules refuse the host or the URL cannot be used.
    pub fn admit(&self, url: &Url, hosts: &Policy) -> Result<(), FetchError> {
        self.check(url, hosts, true).map(drop)
    }
}

impl FetchStream {
    /// Returns the HTTP status.
    #[must_use]
    pub fn status(&self) -> u16 {
        self.response.status().as_u16()
    }

    /// Returns the value of a header if it is text. The name is given in lower case.
    #[must_use]
    pub fn header(&self, name: &str) -> Option<&str> {
        self.response.headers().get(name)?.to_str().ok()
    }

    /// Returns the length of the body in bytes, if the host announces it.
    #[must_use]
    pub fn length(&self) -> Option<u64> {
        self.response.content_length()
    }

    /// Returns the next chunk of the body; `None` at its end.
    ///
    /// # Errors
    /// Returns [`FetchError`] if the body breaks off or its next chunk takes too long.
    pub async fn chunk(&mut self) -> Result<Option<Bytes>, FetchError> {
        let next = timeout(self.max_idle, self.response.chunk()).await;
        let next = next.map_err(|_| FetchError::TimedOut(self.max_idle))?;
        next.map_err(|error| failure(&self.host, &error))
    }
}
