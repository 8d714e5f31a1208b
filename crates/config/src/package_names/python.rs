//! Checks requirements of Python packages, in the notation of PEP 508.

use std::str::FromStr as _;

use pep508_rs::{Requirement, VerbatimUrl, VersionOrUrl};
use url::Url;

use super::registry::host_and_port;

/// Checks one requirement: a name, extras, versions, markers, and a URL if its host is among `registries`.
///
/// # Errors
/// Returns a text with the expected form.
pub(super) fn check(requirement: &str, registries: &[String]) -> Result<(), String> {
    // A requirement is one line; package managers would read more from a second line.
    if requirement.contains(|found: char| found.is_control()) {
        return Err("expected one line".to_owned());
    }
    let parsed = Requirement::<VerbatimUrl>::from_str(requirement).map_err(|error| {
        let reason = error.to_string();
        let reason = reason.lines().next().unwrap_or_default();
        format!("{reason}; expected a requirement such as requests, numpy>=2 or tomli; python_version < '3.11'")
    })?;
    match parsed.version_or_url {
        Some(VersionOrUrl::Url(url)) => check_url(url.raw(), registries),
        Some(VersionOrUrl::VersionSpecifier(_)) | None => Ok(()),
    }
}

fn check_url(url: &Url, registries: &[String]) -> Result<(), String> {
    if url.scheme() != "https" {
        return Err(format!(
            "{}: is not accepted in its URL, only https:",
            url.scheme()
        ));
    }
    let host = url.host_str().unwrap_or_default();
    let port = url.port();
    let is_listed = registries
        .iter()
        .any(|registry| host_and_port(registry) == (host, port));
    match is_listed {
        true => Ok(()),
        false => Err(format!(
            "the host {host} of its URL is not among runtimes.python.registries"
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn checked(requirement: &str) -> Result<(), String> {
        check(
            requirement,
            &["pypi.org".to_owned(), "files.example:8443".to_owned()],
        )
    }

    #[test]
    fn requirements_are_taken_whole() {
        for requirement in [
            "six",
            "numpy>=2,<3",
            "uvicorn[standard]==0.30.*",
            "a~=1.0",
            "Zope.interface",
            "emoji >= 2.0",
            "tomli; python_version < '3.11'",
            "requests[socks, security] >=2.8.1 , ==2.8.* ; python_version < \"2.7\" and sys_platform == 'linux'",
            "name @ https://pypi.org/x.zip",
            "name[extra] @ https://files.example:8443/x ; os_name == 'posix'",
        ] {
            assert_eq!(checked(requirement), Ok(()), "{requirement}");
        }
    }

    #[test]
    fn options_paths_and_other_urls_are_not() {
        for requirement in [
            "",
            "-r",
            "--index-url=http://x",
            "./x",
            "/etc/passwd",
            "../x",
            "git+https://x/y",
            "a b",
            "a\nb",
            "x @ http://pypi.org/y",
            "x @ https://example.com/y",
            "x @ file:///etc/passwd",
            "x @ git+https://pypi.org/y",
            "x @ /tmp/x",
            "x @ ./x",
            "https://pypi.org/y.whl",
            "a/b",
            "six -e .",
            "six --hash=sha256:0",
            "six; import os",
        ] {
            assert!(checked(requirement).is_err(), "{requirement}");
        }
    }
}
