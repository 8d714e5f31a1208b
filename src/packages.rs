//! Packages that a request installs: the accepted names, and the registries that the installation can reach.

mod npm;
mod python;

use std::collections::BTreeMap;
use std::sync::{Arc, LazyLock};

use isol8_actors::{Install, Network};
use isol8_api::Runtime;
use isol8_egress::{Egress, EgressError, Filter, LocalHost, Policy};
use isol8_registry_cache::{PackageManager, host_for};
use isol8_runtimes::{Installer, PackageNotation};
use regex::Regex;

use crate::config::Config;
use crate::jobs::JobError;
use crate::network::FilteredNetwork;

/// Returns the host names of the registries that a runtime's packages usually come from.
#[must_use]
pub fn registries(runtime: Runtime) -> Vec<String> {
    let hosts = runtime.facts().packages.registries;
    hosts.iter().map(|host| (*host).to_owned()).collect()
}

/// Environment variables: names and values.
type Variables = Vec<(String, String)>;

const MEMBER: &str = "request.installPackages";

/// Largest number of packages in one request, and largest size of one in bytes.
pub(crate) const MAX_PACKAGES: usize = 100;
const MAX_PACKAGE_LENGTH: usize = 256;

/// Endings that pip, npm and bun treat as archives.
const ARCHIVES: [&str; 13] = [
    ".whl",
    ".zip",
    ".tar",
    ".tgz",
    ".tbz",
    ".txz",
    ".tlz",
    ".tar.gz",
    ".tar.bz2",
    ".tar.xz",
    ".tar.lz",
    ".tar.lzma",
    ".tar.zst",
];

#[allow(clippy::expect_used)] // All patterns are constants, and a test compiles each.
fn pattern(text: &str) -> Regex {
    Regex::new(&format!("^(?:{text})$")).expect("a constant pattern compiles")
}

/// Matches a package of Debian, with an optional version.
static DEBIAN: LazyLock<Regex> =
    LazyLock::new(|| pattern(r"[a-z0-9][a-z0-9+.-]+(=[A-Za-z0-9.+:~-]+)?"));

/// Checks that all packages are ones that a package manager takes from its registry. A URL is accepted if its host
/// is among `registries`.
///
/// # Errors
/// Returns the index of the first package that is not accepted, and the problem.
pub fn check(
    runtime: Runtime,
    packages: &[String],
    registries: &[String],
) -> Result<(), (usize, String)> {
    for (index, package) in packages.iter().enumerate() {
        let checked = match runtime.facts().packages.notation {
            _ if package.len() > MAX_PACKAGE_LENGTH => {
                Err(format!("longer than {MAX_PACKAGE_LENGTH} bytes"))
            }
            PackageNotation::Python if package.contains("://") => {
                python::check(package, registries)
            }
            _ if is_archive(package) => Err("it names a file".to_owned()),
            PackageNotation::Python => python::check(package, registries),
            PackageNotation::Npm => npm::check(package),
            PackageNotation::NpmOrJsr => npm::check_of_deno(package),
            PackageNotation::Debian if DEBIAN.is_match(package) => Ok(()),
            PackageNotation::Debian => {
                Err("expected the name of a Debian package such as jq".to_owned())
            }
        };
        if let Err(problem) = checked {
            let given: String = package.chars().take(MAX_PACKAGE_LENGTH).collect();
            return Err((index, format!("{given:?} is not a package: {problem}")));
        }
    }
    Ok(())
}

/// Checks packages for an image, like [`check`]. In an image, deno finds packages of npm and no others.
///
/// # Errors
/// Returns the index of the first package that is not accepted, and the problem.
pub fn check_for_image(runtime: Runtime, packages: &[String]) -> Result<(), (usize, String)> {
    check(runtime, packages, &[])?;
    let of_jsr = |package: &String| package.starts_with("jsr:");
    match packages.iter().position(of_jsr) {
        Some(index) => Err((
            index,
            "expected a package of npm, images cannot hold packages of jsr".to_owned(),
        )),
        None => Ok(()),
    }
}

/// Returns the installation that a request asks for, if any.
///
/// # Errors
/// Returns a [`JobError`] that names the first package that is not accepted.
pub fn install(
    runtime: Runtime,
    packages: Vec<String>,
    config: &Config,
) -> Result<Option<Install>, JobError> {
    if packages.is_empty() {
        return Ok(None);
    }
    if packages.len() > MAX_PACKAGES {
        let problem = format!(
            "{} entries, expected at most {MAX_PACKAGES}",
            packages.len()
        );
        return Err(JobError::invalid(MEMBER, problem));
    }
    let registries = config
        .registries
        .get(&runtime)
        .map_or(&[][..], Vec::as_slice);
    check(runtime, &packages, registries)
        .map_err(|(index, problem)| JobError::invalid(format!("{MEMBER}[{index}]"), problem))?;
    let (source, network) = network(runtime, config)?;
    Ok(Some(Install {
        packages: packages
            .into_iter()
            .map(|package| complete(runtime, package))
            .collect(),
        missing: BTreeMap::new(),
        timeout: config.packages.install_timeout,
        source,
        network,
    }))
}

/// Returns the variables that point a package manager to its registry, and the network that reaches the runtime's
/// registries; `None` if packages are not installed for the runtime.
fn network(
    runtime: Runtime,
    config: &Config,
) -> Result<(Variables, Option<Arc<dyn Network>>), JobError> {
    let registries = config
        .registries
        .get(&runtime)
        .map_or(&[][..], Vec::as_slice);
    // Refuse an empty list, because a filter without hosts would allow every host.
    let Some(installer) = &runtime.facts().packages.installer else {
        return Ok((Vec::new(), None));
    };
    if registries.is_empty() {
        return Ok((Vec::new(), None));
    }
    let policy = policy(registries, &config.egress);
    let policy = policy.map_err(|error| JobError::invalid(MEMBER, error))?;
    let (source, site) = cached(installer, runtime, registries, config, &policy);
    let network = FilteredNetwork::internal(&config.egress, policy, site);
    Ok((source, Some(Arc::new(network))))
}

/// Returns the error for packages that are missing from all images and cannot be installed.
pub(crate) fn not_installed(runtime: Runtime) -> JobError {
    if runtime.facts().packages.installer.is_none() {
        let problem = format!(
            "{runtime} has no package manager that works without root, use an image that holds them"
        );
        return JobError::invalid(MEMBER, problem);
    }
    let problem =
        format!("this server installs no packages, runtimes.{runtime}.registries is empty");
    JobError::unsupported(MEMBER, &problem)
}

/// Returns a policy that allows only the registries, each on the port that it names or the ports of the Web.
fn policy(registries: &[String], egress: &Egress) -> Result<Policy, EgressError> {
    let named = registries.iter().map(|registry| host_and_port(registry));
    let ports = named.clone();
    let filter = Filter {
        whitelist: named
            .map(|(host, _)| format!("^{}$", regex::escape(host)))
            .collect(),
        blacklist: Vec::new(),
    };
    let ports = ports.filter_map(|(host, port)| Some((host.to_owned(), port?)));
    Ok(egress.policy(&filter)?.on_web_ports(ports))
}

/// Splits an entry of `registries` into host and port. An IPv6 address cannot have a port there.
pub(crate) fn host_and_port(registry: &str) -> (&str, Option<u16>) {
    match registry.rsplit_once(':') {
        Some((host, port)) if !host.contains(':') => (host, port.parse().ok()),
        _ => (registry, None),
    }
}

/// Returns the variables that point a package manager to the cache, and the cache as a host for it. Returns nothing
/// if the configuration may mean another registry than the cached one.
fn cached(
    installer: &Installer,
    runtime: Runtime,
    registries: &[String],
    config: &Config,
    policy: &Policy,
) -> (Variables, Option<Arc<dyn LocalHost>>) {
    let client = installer.manager;
    let host = host_for(client);
    let variables = installer.registry_variables.iter();
    let variables = variables.map(|(name, value)| ((*name).to_owned(), value.replace("{}", host)));
    let index = match client {
        PackageManager::Pip => &config.packages.python,
        PackageManager::Npm | PackageManager::Deno | PackageManager::Bun => &config.packages.npm,
    };
    let usual = self::registries(runtime);
    let is_index = |registry: &str| index.host_str() == Some(host_and_port(registry).0);
    let is_alone = registries
        .iter()
        .all(|registry| is_index(registry) || usual.contains(registry));
    let is_there = registries.iter().any(|registry| is_index(registry));
    match &config.package_cache {
        Some(cache) if is_alone && is_there => {
            let site = cache.handler(client, &config.egress, policy.clone());
            (variables.collect(), Some(site))
        }
        _ => (Vec::new(), None),
    }
}

/// Returns whether package managers take the name for a file in the working directory, if such a file exists.
fn is_archive(package: &str) -> bool {
    let package = package.to_ascii_lowercase();
    ARCHIVES.iter().any(|ending| package.ends_with(ending))
}

/// Adds the registry's prefix to a package without one, for a runtime that has packages of two registries.
pub(crate) fn complete(runtime: Runtime, package: String) -> String {
    let needs_prefix = runtime.facts().packages.notation == PackageNotation::NpmOrJsr;
    let is_bare = needs_prefix && !package.starts_with("npm:") && !package.starts_with("jsr:");
    if is_bare {
        format!("npm:{package}")
    } else {
        package
    }
}

/// Returns the registries of every runtime; the configured ones replace the usual ones.
#[must_use]
pub fn registries_with(
    own: impl IntoIterator<Item = (Runtime, Vec<String>)>,
) -> BTreeMap<Runtime, Vec<String>> {
    let usual = Runtime::ALL
        .into_iter()
        .map(|runtime| (runtime, registries(runtime)));
    usual.chain(own).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn registries_may_name_a_port() {
        for (registry, expected) in [
            ("pypi.org", ("pypi.org", None)),
            (
                "packages.example.com:8443",
                ("packages.example.com", Some(8443)),
            ),
            ("::1", ("::1", None)),
        ] {
            assert_eq!(host_and_port(registry), expected);
        }
    }

    #[test]
    fn names_of_archives_are_files_to_package_managers() {
        for package in [
            "a.tgz",
            "a.TAR",
            "x@a.tar.gz",
            "@a/b.tgz",
            "a-1-py3-none-any.whl",
            "a.zip",
            "a==1.zip",
            "a.tbz",
            "a.tar.lzma",
        ] {
            assert!(is_archive(package), "{package}");
        }
        for package in [
            "socket.io",
            "zip",
            "tar",
            "a.tgz.b",
            "unzip@1.0",
            "x.tar-fs",
            "zope.zipper",
        ] {
            assert!(!is_archive(package), "{package}");
        }
    }
}
