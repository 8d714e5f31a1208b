//! Explains why a server cannot be reached, and what to do about it.

use std::error::Error;
use std::io;

use rustls::Error as TlsError;

/// Explains a failure below HTTP in one sentence, with the fix where the cause is known.
pub(crate) fn reason(error: &reqwest::Error) -> String {
    let server = Server::of(error);
    explanation(error, &server)
        .unwrap_or_else(|| format!("{}: {}", server.address, innermost(error)))
}

/// The server of a request, as given by its address.
struct Server {
    scheme: String,
    address: String,
    host: String,
}

impl Server {
    fn of(error: &reqwest::Error) -> Self {
        let url = error.url();
        let host = url.and_then(|url| url.host_str()).unwrap_or("the server");
        let port = url.and_then(|url| url.port_or_known_default());
        Self {
            scheme: url.map_or("http", |url| url.scheme()).to_owned(),
            address: port.map_or_else(|| host.to_owned(), |port| format!("{host}:{port}")),
            host: host.to_owned(),
        }
    }
}

fn explanation(error: &reqwest::Error, server: &Server) -> Option<String> {
    let Server {
        scheme,
        address,
        host,
    } = server;
    if let Some(tls) = causes(error).find_map(tls_error) {
        return tls_explanation(tls, address);
    }
    let text = innermost(error);
    if text.contains("failed to lookup address") {
        return Some(format!(
            "no address of {host} is known ({text}): correct the name, or the resolver"
        ));
    }
    if text.contains("invalid HTTP version") || text.contains("invalid HTTP header") {
        let fix = match scheme.as_str() {
            "http" => format!("write https://{address} where it takes TLS"),
            _ => "correct the port".to_owned(),
        };
        return Some(format!(
            "what listens on {address} does not answer in HTTP: {fix}"
        ));
    }
    let kind = causes(error).find_map(io_kind);
    if error.is_connect() && kind == Some(io::ErrorKind::ConnectionRefused) {
        return Some(format!(
            "nothing listens on {address}: start the server (`isol8 serve`), or correct the address"
        ));
    }
    if error.is_connect() && error.is_timeout() {
        return Some(format!(
            "{address} does not answer: correct the address, or have the network let it through"
        ));
    }
    None
}

fn tls_explanation(error: &TlsError, address: &str) -> Option<String> {
    match error {
        TlsError::InvalidMessage(_) => Some(format!(
            "{address} does not speak TLS: write http://{address}, or have it serve TLS"
        )),
        TlsError::InvalidCertificate(problem) => Some(format!(
            "the certificate of {address} is not accepted ({problem}): name the file of its authority's certificate in SSL_CERT_FILE"
        )),
        _ => None,
    }
}

fn tls_error<'e>(mut error: &'e (dyn Error + 'static)) -> Option<&'e TlsError> {
    // An I/O error is transparent: its source is not what it holds, but the source of that.
    while let Some(held) = error
        .downcast_ref::<io::Error>()
        .and_then(io::Error::get_ref)
    {
        error = held;
    }
    error.downcast_ref()
}

fn io_kind(error: &(dyn Error + 'static)) -> Option<io::ErrorKind> {
    error.downcast_ref::<io::Error>().map(io::Error::kind)
}

fn causes(error: &reqwest::Error) -> impl Iterator<Item = &(dyn Error + 'static)> {
    std::iter::successors(error.source(), |error| {
        let error: &(dyn Error + 'static) = *error;
        error.source()
    })
}

/// Returns the text of the innermost error. The outer errors only say that a request failed.
pub(crate) fn innermost(error: &reqwest::Error) -> String {
    causes(error)
        .last()
        .map_or_else(|| error.to_string(), ToString::to_string)
}
