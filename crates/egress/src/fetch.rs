//! Fetches for the server itself, where a client names the address.

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

/// Bounds of one fetch.
#[derive(Clone, Debug)]
pub struct FetchLimits {
    /// Most bytes of the body.
    pub max_bytes: u64,
    /// The time for everything together.
    pub timeout: Duration,
    /// Most redirects that are followed.
    pub redirects: usize,
    /// Whether `http:` is accepted beside `https:`, for redirects too.
    pub allow_http: bool,
    /// Hosts that may be fetched from, those of redirects too.
    pub hosts: Policy,
}

/// Nothing was fetched. The texts name no address but the ones that the client gave.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FetchError {
    /// Not the URL of something on the Web.
    #[error("{0:?} is not an absolute URL")]
    InvalidUrl(String),
    /// A scheme that is not accepted.
    #[error("{0}: is not accepted")]
    Scheme(String),
    /// A host or a port that is not accepted, or a name without a public address.
    #[error("{0}")]
    Denied(String),
    /// A name that has no public address, or no address at all.
    #[error("{0}")]
    NotPublic(String),
    /// A host whose certificate is not trusted.
    #[error("{0} has a certificate that is not trusted")]
    Untrusted(String),
    /// The host cannot be found, reached or understood.
    #[error("{0}")]
    Unreachable(String),
    /// The host answered, with something else.
    #[error("{host} answered {status}")]
    Status {
        /// The host that answered.
        host: String,
        /// The HTTP status.
        status: u16,
    },
    /// A redirect that leads nowhere, or one too many.
    #[error("{0}")]
    Redirect(String),
    /// The body is too large.
    #[error("larger than {0} bytes")]
    TooLarge(u64),
    /// The fetch took too long.
    #[error("not there after {} ms", .0.as_millis())]
    TimedOut(Duration),
    /// This host cannot fetch at all.
    #[error("nothing can be fetched: {0}")]
    Setup(String),
}

impl Egress {
    /// Fetches a text of the Web, following redirects. Every one obeys the rules anew.
    ///
    /// # Errors
    /// [`FetchError`].
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

    /// The host of a URL that may be asked. A name's addresses are checked when it is resolved.
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
            // A program that has chosen a provider already keeps its own.
            let _ = rustls::crypto::ring::default_provider().install_default();
            let client = Client::builder()
                .user_agent(concat!("isol8/", env!("CARGO_PKG_VERSION")))
                .dns_resolver(CheckedResolver(self.0.dialer.clone()))
                .connect_timeout(self.0.limits.connect_timeout)
                .redirect(redirect::Policy::none())
                // A connection to a proxy would not be the one that was checked.
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

/// Returns the address that an answer leads to, if it leads anywhere.
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

/// The text of reqwest contains the URL and the address.
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

/// The client with certificates in PEM that it trusts beside its own. Those that it cannot read are left out, as
/// programs leave them out.
fn trusting(client: reqwest::ClientBuilder, certificates: Option<&str>) -> reqwest::ClientBuilder {
    let bundle = Certificate::from_pem_bundle(certificates.unwrap_or_default().as_bytes());
    bundle
        .unwrap_or_default()
        .into_iter()
        .fold(client, reqwest::ClientBuilder::add_root_certificate)
}

/// Whether TLS ended because of the host's certificate.
fn is_untrusted(error: &(dyn Error + 'static)) -> bool {
    let tls = error.downcast_ref::<rustls::Error>();
    matches!(tls, Some(rustls::Error::InvalidCertificate(_)))
}

/// The error that caused another one. An I/O error names the cause of what it wraps, and not what it wraps.
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

/// Resolves names for reqwest, which connects to what it is told.
struct CheckedResolver(Dialer);

impl reqwest::dns::Resolve for CheckedResolver {
    fn resolve(&self, name: Name) -> Resolving {
        let dialer = self.0.clone();
        Box::pin(async move {
            let found = dialer.lookup(name.as_str()).await?;
            // The port is the URL's: 0 stands for that.
            let addresses = found.into_iter().map(|found| SocketAddr::new(found, 0));
            Ok(Box::new(addresses) as Addrs)
        })
    }
}
