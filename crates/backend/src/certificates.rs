//! The CA certificates that programs in sandboxes trust, and the environment variables by which programs find them.

use std::collections::BTreeSet;
use std::sync::Arc;

/// Largest bundle in bytes. The bundles of distributions have about 250 KiB.
pub const MAX_BUNDLE: usize = 2 << 20;

const BEGIN: &str = "-----BEGIN CERTIFICATE-----";
const END: &str = "-----END CERTIFICATE-----";

/// Environment variables that name a certificate file. Comments name the programs that read them; npm and bun read
/// the variable of Node.js.
pub const VARIABLES: [&str; 7] = [
    // OpenSSL, and so Python, curl, wget2, ruby; uv.
    "SSL_CERT_FILE",
    "CURL_CA_BUNDLE",
    // git is linked with GnuTLS on Debian.
    "GIT_SSL_CAINFO",
    "PIP_CERT",
    // Python's requests uses its own certificates without this variable.
    "REQUESTS_CA_BUNDLE",
    "NODE_EXTRA_CA_CERTS",
    "DENO_CERT",
];

/// A bundle of certificates in PEM format.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Certificates(Arc<str>);

impl Certificates {
    /// Merges the certificates of several PEM texts. Duplicates and all text around the certificates are dropped.
    /// Returns `None` if the texts hold no certificate, or more than [`MAX_BUNDLE`] bytes of them.
    #[must_use]
    pub fn merge<'t>(bundles: impl IntoIterator<Item = &'t str>) -> Option<Self> {
        let mut known = BTreeSet::new();
        let mut merged = String::new();
        for certificate in bundles.into_iter().flat_map(certificates) {
            if known.insert(certificate) {
                merged.push_str(certificate);
                merged.push('\n');
            }
        }
        let is_usable = !merged.is_empty() && merged.len() <= MAX_BUNDLE;
        is_usable.then(|| Self(merged.into()))
    }

    /// Returns the bundle as PEM text.
    #[must_use]
    pub fn pem(&self) -> &str {
        &self.0
    }

    /// Returns the number of certificates.
    #[must_use]
    pub fn count(&self) -> usize {
        certificates(&self.0).count()
    }
}

/// Returns each of [`VARIABLES`] as `NAME=path`, with the path of a bundle file.
pub fn environment(path: &str) -> impl Iterator<Item = String> {
    VARIABLES.iter().map(move |name| format!("{name}={path}"))
}

fn certificates(text: &str) -> impl Iterator<Item = &str> {
    text.split(END).filter_map(|part| {
        let begin = part.find(BEGIN)?;
        // The split removed the END line, which follows this part in `text`.
        let from = part.as_ptr() as usize - text.as_ptr() as usize + begin;
        let to = part.as_ptr() as usize - text.as_ptr() as usize + part.len() + END.len();
        text.get(from..to)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bundles_are_merged_without_what_stands_around_certificates() {
        let one = format!("{BEGIN}\nAAAA\n{END}");
        let two = format!("{BEGIN}\nBBBB\n{END}");
        let first = format!("# a comment\n{one}\n");
        let second = format!("{one}\nkey\n{two}\n-----BEGIN PRIVATE KEY-----\nx\n");
        let merged = Certificates::merge([first.as_str(), second.as_str()]).unwrap();
        assert_eq!(merged.pem(), format!("{one}\n{two}\n"));
        assert_eq!(merged.count(), 2);
    }

    #[test]
    fn a_text_without_a_whole_certificate_is_no_bundle() {
        for text in ["", "x", BEGIN, END, &format!("{BEGIN}\nAAAA")] {
            assert_eq!(Certificates::merge([text]), None, "{text}");
        }
    }

    #[test]
    fn every_variable_names_the_file() {
        let all: Vec<String> = environment("/ca").collect();
        assert!(all.contains(&"SSL_CERT_FILE=/ca".to_owned()));
        assert_eq!(all.len(), VARIABLES.len());
    }
}
