//! The certificates that programs in sandboxes trust: those of `network.caBundle`, and the host's own.

use std::fs;
use std::path::{Path, PathBuf};

use isol8_backend::Certificates;

use crate::error::ConfigError;

/// Files in which distributions keep the certificates that a host trusts: Debian and its relatives, Fedora, openSUSE,
/// Alpine.
const USUAL: [&str; 4] = [
    "/etc/ssl/certs/ca-certificates.crt",
    "/etc/pki/tls/certs/ca-bundle.crt",
    "/etc/ssl/ca-bundle.pem",
    "/etc/ssl/cert.pem",
];

const KEY: &str = "network.caBundle";

/// Returns the host's certificates, with those of the bundles that the configuration names; `None` if there are none at
/// all.
pub(super) fn all(named: Option<&str>, of_images: Option<&Path>) -> Option<Certificates> {
    // An unreadable file is skipped here; `isol8 setup` reports it.
    let of_images = of_images.and_then(|path| fs::read_to_string(path).ok());
    let host = host_bundle().and_then(|path| fs::read_to_string(path).ok());
    let own = [of_images.as_deref(), host.as_deref()];
    Certificates::merge([named].into_iter().chain(own).flatten())
}

/// Returns the file of the host's certificates: the one that OpenSSL's variable names, or the first of the usual paths.
#[must_use]
pub fn host_bundle() -> Option<PathBuf> {
    let variable = std::env::var_os("SSL_CERT_FILE").map(PathBuf::from);
    let usual = USUAL.iter().map(PathBuf::from);
    variable
        .into_iter()
        .chain(usual)
        .find(|path| path.is_file())
}

/// Reads the file of `network.caBundle`.
///
/// # Errors
/// [`ConfigError::OutOfRange`] if the file cannot be read or holds no certificate.
pub(super) fn read(path: &Path) -> Result<String, ConfigError> {
    let refused = |expected: String| ConfigError::OutOfRange {
        key: KEY,
        given: path.display().to_string(),
        expected,
    };
    let text = fs::read_to_string(path)
        .map_err(|error| refused(format!("expected a file of certificates in PEM: {error}")))?;
    match Certificates::merge([text.as_str()]) {
        Some(_) => Ok(text),
        None => Err(refused(
            "expected a file with certificates in PEM, 2 MiB at most".to_owned(),
        )),
    }
}
