//! Fetches by the server itself, from URLs that a client gives.

use std::error::Error;
use std::net::SocketAddr;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use reqwest::dns::{Addrs, Name, Resolving};
use reqwest::header::LOCATION;
use reqwest::redirect;
use reqwest::{Certificate, Client, Response, StatusCode, Url};

use crate::destination::DestinationHost;
use crate::dial::{DialError, Dialer};
use crate::{Egress, Policy};

/// Limits for one fetch.
#[derive(Clone, Debug)]
pub struct FetchLimits {
    /// Maximum size of the body in bytes.
    pub max_bytes: u64,
    /// Maximum time for the whole fetch, redirects included.
    pub timeout: Duration,
    /// Maximum number of redirects that are followed.
    pub redirects: usize,
    /// Whether `http:` is accepted in addition to `https:`, for redirects too.
    pub allow_http: bool,
    /// The hosts that may be fetched from; redirects obey it too.
    pub hosts: Policy,
}

/// The reason why a fetch failed. The texts contain no address that the client did not give.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FetchError {
    /// The text is not an absolute URL with a host.
    #[error("{0:?} is not an absolute URL")]
    InvalidUrl(String),
    /// The scheme of the URL is not accepted.
    #[error("{0}: is not accepted")]
    Scheme(String),
    /// The policy does not admit the host or the port.
    #[error("{0}")]
    Denied(String),
    /// The host has no public address, or no address at all.
    #[error("{0}")]
    NotPublic(String),
    /// The host's certificate is not trusted.
    #[error("{0} has a certificate that is not trusted")]
    Untrusted(String),
    /// The host cannot be found or reached, or its answer is not valid HTTP.
    #[error("{0}")]
    Unreachable(String),
    /// The host answered with a status other than 200.
    #[error("{host} answered {status}")]
    Status {
        /// The host that answered.
        host: String,
        /// The HTTP status.
        status: u16,
    },
    /// A redirect has no usable target, or there were too many redirects.
    #[error("{0}")]
    Redirect(String),
    /// The body is too large.
    #[error("larger than {0} bytes")]
    TooLarge(u64),
    /// The fetch took too long.
    #[error("not there after {} ms", .0.as_millis())]
    TimedOut(Duration),
    /// The HTTP client cannot be set up on this host.
    #[error("nothing can be fetched: {0}")]
    Setup(String),
}

impl Egress {
    /// Fetches a URL, following redirects. The rules are checked again for each redirect.
    ///
    /// # Errors
    /// Returns a [`FetchError`] with the reason.
    pub async fn fetch(&self, url: &str, limits: &FetchLimits) -> Result<Bytes, FetchError> {
        let fetching = self.follow(url, limits);
        match tokio::time::timeout(limits.timeout, fetching).await {
            Ok(fetched) => fetched,
            Err(_) => Err(FetchError::TimedOut(limits.timeout)),
        }
    }

    async fn follow(&self, url: &str, limits: &FetchLimits) -> Result<Bytes, FetchError> {
        let client = self.client()?;
        let mut url = Url::parse(url).map_err(|_| FetchError::InvalidUrl(url.to_owned()))?;
        for _ in 0..=limits.redirects {
            let host = self.check(&url, &limits.hosts, limits.allow_http)?;
            check_port(&url, &host, &limits.hosts)?;
            let response = client.get(url.clone()).send().await;
            let response = response.map_err(|error| failure(&host, &error))?;
            let status = response.status();
            if let Some(next) = redirect(&url, &response)? {
                url = next;
            } else if status == StatusCode::OK {
                return read(&host, response, limits.max_bytes).await;
            } else {
                let status = status.as_u16();
                return Err(FetchError::Status { host, status });
            }
        }
        let text = format!("more than {} redirects", limits.redirects);
        Err(FetchError::Redirect(text))
    }

    /// Returns the host of a URL if the policy admits it. The addresses of a name are checked when it is resolved.
    pub(crate) fn check(
        &self,
        url: &Url,
        hosts: &Policy,
        allow_http: bool,
    ) -> Result<String, FetchError> {
        if !(url.scheme() == "https" || url.scheme() == "http" && allow_http) {
            return Err(FetchError::Scheme(url.scheme().to_owned()));
        }
        let host = url.host_str().and_then(DestinationHost::parse);
        let host = host.ok_or_else(|| FetchError::InvalidUrl(url.to_string()))?;
        let denied = |error: &dyn Error| FetchError::Denied(error.to_string());
        let name = host.to_string();
        hosts.admit(&name).map_err(|error| denied(&error))?;
        if let DestinationHost::Address(address) = host {
            let checked = self.0.dialer.check(address);
            checked.map_err(|error| FetchError::NotPublic(error.to_string()))?;
        }
        Ok(name)
    }

    pub(crate) fn client(&self) -> Result<&Client, FetchError> {
        let client = self.0.client.get_or_init(|| {
            // Fails if the program has already installed a provider, which it then keeps.
            let _ = rustls::crypto::ring::default_provider().install_default();
            let client = Client::builder()
                .user_agent(concat!("isol8/", env!("CARGO_PKG_VERSION")))
                .dns_resolver(CheckedResolver(self.0.dialer.clone()))
                .connect_timeout(self.0.limits.connect_timeout)
                .redirect(redirect::Policy::none())
                // The rules would be checked on the proxy's address instead of the host's.
                .no_proxy();
            let client = trusting(client, self.0.certificates.as_deref()).build();
            client.map_err(|error| FetchError::Setup(innermost(&error)))
        });
        client.as_ref().map_err(FetchError::clone)
    }
}

fn check_port(url: &Url, host: &str, hosts: &Policy) -> Result<(), FetchError> {
    let port = url.port_or_known_default().unwrap_or_default();
    let admitted = hosts.admit_port(host, port, url.scheme() == "https");
    admitted.map_err(|denied| FetchError::Denied(denied.to_string()))
}

/// Returns the target of a redirect; `None` if the answer is not a redirect.
fn redirect(from: &Url, response: &Response) -> Result<Option<Url>, FetchError> {
    match response.status().as_u16() {
        301 | 302 | 303 | 307 | 308 => {}
        _ => return Ok(None),
    }
    let location = response.headers().get(LOCATION);
    let next = location
        .and_then(|location| location.to_str().ok())
        .and_then(|location| from.join(location).ok());
    let lost = || FetchError::Redirect("a redirect without a usable Location".to_owned());
    next.map(Some).ok_or_else(lost)
}

async fn read(host: &str, mut response: Response, limit: u64) -> Result<Bytes, FetchError> {
    let fits = |bytes: u64| match bytes <= limit {
        true => Ok(()),
        false => Err(FetchError::TooLarge(limit)),
    };
    fits(response.content_length().unwrap_or(0))?;
    let mut body = BytesMut::new();
    while let Some(piece) = response
        .chunk()
        .await
        .map_err(|error| failure(host, &error))?
    {
        fits((body.len() + piece.len()) as u64)?;
        body.extend_from_slice(&piece);
    }
    Ok(body.freeze())
}

/// Converts an error of reqwest, whose own text contains the URL and the address.
pub(crate) fn failure(host: &str, error: &reqwest::Error) -> FetchError {
    let mut cause: Option<&dyn Error> = Some(error);
    while let Some(error) = cause {
        match error.downcast_ref::<DialError>() {
            Some(error @ DialError::NoAddress(_)) => {
                return FetchError::NotPublic(error.to_string());
            }
            Some(error) => return FetchError::Unreachable(error.to_string()),
            None if is_untrusted(error) => return FetchError::Untrusted(host.to_owned()),
            None => cause = cause_of(error),
        }
    }
    let what = match error {
        error if error.is_timeout() => "did not answer in time",
        error if error.is_connect() => {
            "does not accept connections, or not over TLS that is trusted"
        }
        _ => "did not answer in HTTP to its end",
    };
    log::debug!(host, error:% = innermost(error); "fetch failed");
    FetchError::Unreachable(format!("{host} {what}"))
}

/// Adds PEM certificates that the client trusts in addition to its own. Certificates that cannot be parsed are ignored,
/// as other programs ignore them.
fn trusting(client: reqwest::ClientBuilder, certificates: Option<&str>) -> reqwest::ClientBuilder {
    let bundle = Certificate::from_pem_bundle(certificates.unwrap_or_default().as_bytes());
    bundle
        .unwrap_or_default()
        .into_iter()
        .fold(client, reqwest::ClientBuilder::add_root_certificate)
}

/// Returns whether an error is a TLS error about the host's certificate.
fn is_untrusted(error: &(dyn Error + 'static)) -> bool {
    let tls = error.downcast_ref::<rustls::Error>();
    matches!(tls, Some(rustls::Error::InvalidCertificate(_)))
}

/// Returns the error that caused another one. The `source` of an I/O error skips the error that it wraps, so that one
/// is returned instead.
fn cause_of<'e>(error: &'e (dyn Error + 'static)) -> Option<&'e (dyn Error + 'static)> {
    let wrapped = error.downcast_ref::<std::io::Error>();
    match wrapped.and_then(std::io::Error::get_ref) {
        Some(wrapped) => Some(wrapped),
        None => error.source(),
    }
}

fn innermost(error: &reqwest::Error) -> String {
    let mut error: &dyn Error = error;
    while let Some(source) = error.source() {
        error = source;
    }
    error.to_string()
}

/// Resolves names for reqwest to admitted addresses only. reqwest connects to exactly those.
struct CheckedResolver(Dialer);

impl reqwest::dns::Resolve for CheckedResolver {
    fn resolve(&self, name: Name) -> Resolving {
        let dialer = self.0.clone();
        Box::pin(async move {
            let found = dialer.lookup(name.as_str()).await?;
            // Port 0 stands for the URL's port.
            let addresses = found.into_iter().map(|found| SocketAddr::new(found, 0));
            Ok(Box::new(addresses) as Addrs)
        })
    }
}
