//! Index pages of npm's registry, called packuments: the metadata of all versions of a package.

use std::collections::HashMap;

use regex::bytes::{NoExpand, Regex};
use serde::Deserialize;
use url::Url;

use crate::digest::Digest;
use crate::index::{ListedFile, MalformedIndex};
use crate::route::npm_file;

/// Content type of an abbreviated page, which holds only what an installation needs.
pub(crate) const ABBREVIATED: &str = "application/vnd.npm.install-v1+json";

/// Content type of a full page.
pub(crate) const FULL: &str = "application/json";

/// URL of the default registry, which npm and deno replace by the configured one.
pub(crate) const DEFAULT_REGISTRY: &str = "https://registry.npmjs.org/";

#[derive(Deserialize)]
struct Packument {
    #[serde(default)]
    versions: HashMap<String, Version>,
}

#[derive(Deserialize)]
struct Version {
    dist: Option<Dist>,
}

#[derive(Deserialize)]
struct Dist {
    tarball: String,
    integrity: Option<String>,
}

/// Returns the files that a page lists below the registry's own URL. Package managers do not request other files from
/// the cache.
pub(crate) fn read(
    registry: &Url,
    package: &str,
    body: &[u8],
) -> Result<HashMap<String, ListedFile>, MalformedIndex> {
    let packument: Packument = serde_json::from_slice(body).map_err(|_| MalformedIndex)?;
    let dists = packument.versions.into_values();
    let listed = dists.filter_map(|version| {
        let dist = version.dist?;
        // The pages of a mirror may still have the URLs of the default registry.
        let rest = [registry.as_str(), DEFAULT_REGISTRY]
            .iter()
            .find_map(|base| dist.tarball.strip_prefix(base))?;
        let name = rest.rsplit_once("/-/")?.1;
        let url = registry.join(&format!("{package}/-/{name}")).ok()?;
        let digest = dist.integrity.as_deref().and_then(Digest::integrity);
        Some((npm_file(package, name), ListedFile { url, digest }))
    });
    Ok(listed.collect())
}

/// Returns the page with the base URL of its tarballs replaced.
pub(crate) fn rewrite_tarballs(address: &str, registry: &Url, body: &[u8]) -> Vec<u8> {
    let mut body = body.to_vec();
    for base in [registry.as_str(), DEFAULT_REGISTRY] {
        if base == address {
            continue;
        }
        // Inside a JSON string each quotation mark is escaped by a backslash, so the pattern does not match there.
        let pattern = format!(r#"("tarball"\s*:\s*"){}"#, regex::escape(base));
        let Ok(pattern) = Regex::new(&pattern) else {
            continue; // Too long to be the URL of a registry.
        };
        let replaced = pattern.replace_all(&body, |found: &regex::bytes::Captures<'_>| {
            [&found[1], NoExpand(address.as_bytes()).0].concat()
        });
        body = replaced.into_owned();
    }
    body
}

#[cfg(test)]
mod tests {
    use super::*;

    const INTEGRITY: &str = "sha512-3a81oZNherrMQXNJriBBMRLm+k6JqX6iCp7u5ktV05ohkpkqJ0/BqDa6PCOj/uu9RU1EI2Q86A4qmslPpUyknw==";

    fn page() -> String {
        format!(
            r#"{{"readme": "\"tarball\":\"https://npm.example/r/", "versions": {{
            "1.0.0": {{"dist": {{"tarball": "https://npm.example/r/@a/b/-/b-1.0.0.tgz", "integrity": "{INTEGRITY}"}}}},
            "1.0.1": {{"dist": {{"tarball":"https://registry.npmjs.org/@a/b/-/b-1.0.1.tgz", "shasum": "1"}}}},
            "2.0.0": {{"dist": {{"tarball": "https://other.example/b.tgz"}}}}, "3.0.0": {{}}}}}}"#
        )
    }

    #[test]
    fn files_of_the_registry_are_listed() {
        let registry = "https://npm.example/r/".parse().unwrap();
        let listed = read(&registry, "@a/b", page().as_bytes()).unwrap();
        assert_eq!(listed.len(), 2);
        let first = &listed["@a/b/-/b-1.0.0.tgz"];
        assert_eq!(first.digest, Digest::integrity(INTEGRITY));
        assert_eq!(
            first.url.as_str(),
            "https://npm.example/r/@a/b/-/b-1.0.0.tgz"
        );
        let second = &listed["@a/b/-/b-1.0.1.tgz"];
        assert_eq!(second.digest, None);
        assert_eq!(
            second.url.as_str(),
            "https://npm.example/r/@a/b/-/b-1.0.1.tgz"
        );
        assert!(read(&registry, "x", b"<html>").is_err());
    }

    #[test]
    fn only_addresses_of_files_are_replaced() {
        let registry = "https://npm.example/r/".parse().unwrap();
        let led = rewrite_tarballs("http://here/", &registry, page().as_bytes());
        let expected = page()
            .replace(r#": "https://npm.example/r/"#, r#": "http://here/"#)
            .replace(r#":"https://registry.npmjs.org/"#, r#":"http://here/"#);
        assert_eq!(String::from_utf8(led).unwrap(), expected);
        assert!(expected.contains(r#"\"https://npm.example/r/""#));
    }
}
