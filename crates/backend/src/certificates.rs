//! The CA certificates that programs in sandboxes trust, and the environment variables by which programs find them.

use std::collections::BTreeSet;
use std::sync::Arc;

use isol8_api::Runtime;

/// Largest bundle in bytes. The bundles of distributions have about 250 KiB.
pub const MAX_BUNDLE: usize = 2 << 20;

const BEGIN: &str = "-----BEGIN CERTIFICATE-----";
const END: &str = "-----END CERTIFICATE-----";

/// Environment variables that name a certificate file, beside those of the runtimes. Comments name the programs that
/// read them.
const VARIABLES: [&str; 3] = [
    // OpenSSL, and so Python, curl, wget2, ruby; uv.
    "SSL_CERT_FILE",
    "CURL_CA_BUNDLE",
    // git is linked with GnuTLS on Debian.
    "GIT_SSL_CAINFO",
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

/// Returns each variable that names a certificate file as `NAME=path`, with the path of a bundle file.
pub fn environment(path: &str) -> impl Iterator<Item = String> {
    variables()
        .into_iter()
        .map(move |name| format!("{name}={path}"))
}

/// Returns every variable that names a certificate file, once: several runtimes read the variable of Node.js.
fn variables() -> Vec<&'static str> {
    let mut names = VARIABLES.to_vec();
    for runtime in Runtime::ALL {
        for name in runtime.facts().variables.certificates {
            if !names.contains(name) {
                names.push(name);
            }
        }
    }
    names
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
        let names = [
            "SSL_CERT_FILE",
            "CURL_CA_BUNDLE",
            "GIT_SSL_CAINFO",
            "PIP_CERT",
            "REQUESTS_CA_BUNDLE",
            "NODE_EXTRA_CA_CERTS",
            "DENO_CERT",
        ];
        assert_eq!(all, names.map(|name| format!("{name}=/ca")));
    }
}
