//! Packages that a request has installed: which names are taken, and what their installation reaches.

mod npm;
mod python;

use std::collections::BTreeMap;
use std::sync::{Arc, LazyLock};

use isol8_actors::{Install, Network};
use isol8_api::Runtime;
use isol8_egress::{Egress, EgressError, Filter, LocalHost, Policy};
use isol8_registry_cache::Client;
use regex::Regex;

use crate::config::Config;
use crate::jobs::JobError;
use crate::network::Filtered;

/// Where the usual packages of a runtime come from: names of hosts.
#[must_use]
pub fn registries(runtime: Runtime) -> Vec<String> {
    let hosts: &[&str] = match runtime {
        Runtime::Python => &["pypi.org", "files.pythonhosted.org"],
        Runtime::Node | Runtime::Bun => &["registry.npmjs.org"],
        Runtime::Deno => &["registry.npmjs.org", "jsr.io", "npm.jsr.io"],
        Runtime::Bash => &[],
    };
    hosts.iter().map(|host| (*host).to_owned()).collect()
}

/// Of an environment: names and values.
type Variables = Vec<(String, String)>;

const MEMBER: &str = "request.installPackages";

/// Most packages of one request, and the longest in bytes.
pub(crate) const MOST_PACKAGES: usize = 100;
const LONGEST: usize = 256;

/// What pip, npm and bun take for archives.
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

#[allow(clippy::expect_used)] // They are constants, and a test compiles each.
fn pattern(text: &str) -> Regex {
    Regex::new(&format!("^(?:{text})$")).expect("a constant pattern compiles")
}

/// A package of Debian, and perhaps its version.
static DEBIAN: LazyLock<Regex> =
    LazyLock::new(|| pattern(r"[a-z0-9][a-z0-9+.-]+(=[A-Za-z0-9.+:~-]+)?"));

/// Whether all of these are packages that a package manager takes from its registry. A URL is one where its host is
/// among `registries`.
///
/// # Errors
/// The place of the first that is not, and what it is.
pub fn check(
    runtime: Runtime,
    packages: &[String],
    registries: &[String],
) -> Result<(), (usize, String)> {
    for (index, package) in packages.iter().enumerate() {
        let checked = match runtime {
            _ if package.len() > LONGEST => Err(format!("longer than {LONGEST} bytes")),
            Runtime::Python if package.contains("://") => python::check(package, registries),
            _ if is_archive(package) => Err("it names a file".to_owned()),
            Runtime::Python => python::check(package, registries),
            Runtime::Node | Runtime::Bun => npm::check(package),
            Runtime::Deno => npm::check_of_deno(package),
            Runtime::Bash if DEBIAN.is_match(package) => Ok(()),
            Runtime::Bash => Err("expected a name of Debian's such as jq".to_owned()),
        };
        if let Err(problem) = checked {
            let given: String = package.chars().take(LONGEST).collect();
            return Err((index, format!("{given:?} is no package: {problem}")));
        }
    }
    Ok(())
}

/// As [`check`], for packages that an image holds. Deno finds those of npm there, and no others.
///
/// # Errors
/// The place of the first that cannot be, and why.
pub fn check_for_image(runtime: Runtime, packages: &[String]) -> Result<(), (usize, String)> {
    check(runtime, packages, &[])?;
    let of_jsr = |package: &String| package.starts_with("jsr:");
    match packages.iter().position(of_jsr) {
        Some(index) => Err((
            index,
            "expected a package of npm, images hold none of jsr".to_owned(),
        )),
        None => Ok(()),
    }
}

/// What a request asks to be installed.
///
/// # Errors
/// [`JobError`] names the first that cannot be.
pub fn install(
    runtime: Runtime,
    packages: Vec<String>,
    config: &Config,
) -> Result<Option<Install>, JobError> {
    if packages.is_empty() {
        return Ok(None);
    }
    if packages.len() > MOST_PACKAGES {
        let problem = format!(
            "{} entries, expected at most {MOST_PACKAGES}",
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

/// The variables that say where packages of a runtime come from, and what reaches their registries; `None`
/// where nothing is installed for it.
fn network(
    runtime: Runtime,
    config: &Config,
) -> Result<(Variables, Option<Arc<dyn Network>>), JobError> {
    let registries = config
        .registries
        .get(&runtime)
        .map_or(&[][..], Vec::as_slice);
    // A filter that lists no host would admit every one.
    if registries.is_empty() || runtime == Runtime::Bash {
        return Ok((Vec::new(), None));
    }
    let policy = policy(registries, &config.egress);
    let policy = policy.map_err(|error| JobError::invalid(MEMBER, error))?;
    let (source, site) = cached(runtime, registries, config, &policy);
    let network = Filtered::inner(&config.egress, policy, site);
    Ok((source, Some(Arc::new(network))))
}

/// Why what no image holds cannot be had.
pub(crate) fn not_installed(runtime: Runtime) -> JobError {
    if runtime == Runtime::Bash {
        let problem =
            "bash has no package manager that works without root, use an image that holds them";
        return JobError::invalid(MEMBER, problem);
    }
    let problem =
        format!("this server installs no packages, runtimes.{runtime}.registries is empty");
    JobError::unsupported(MEMBER, &problem)
}

/// The registries alone, each on the port that it names, or the Web's.
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

/// An entry of `registries`: an IPv6 address has no port there.
pub(crate) fn host_and_port(registry: &str) -> (&str, Option<u16>) {
    match registry.rsplit_once(':') {
        Some((host, port)) if !host.contains(':') => (host, port.parse().ok()),
        _ => (registry, None),
    }
}

/// The variables that lead a package manager to the cache, and the cache as it sees it; nothing where it may
/// be meant to ask another registry than the one that is cached.
fn cached(
    runtime: Runtime,
    registries: &[String],
    config: &Config,
    policy: &Policy,
) -> (Variables, Option<Arc<dyn LocalHost>>) {
    let client = match runtime {
        Runtime::Python => Client::Pip,
        Runtime::Node => Client::Npm,
        Runtime::Bun => Client::Bun,
        Runtime::Deno => Client::Deno,
        Runtime::Bash => return (Vec::new(), None),
    };
    let host = client.host().to_owned();
    let address = format!("http://{host}/");
    let variables = match client {
        Client::Pip => vec![
            ("PIP_INDEX_URL", format!("{address}simple/")),
            ("PIP_TRUSTED_HOST", host),
            ("UV_DEFAULT_INDEX", format!("{address}simple/")),
        ],
        Client::Npm | Client::Bun => vec![("npm_config_registry", address)],
        Client::Deno => vec![("NPM_CONFIG_REGISTRY", address)],
    };
    let index = match client {
        Client::Pip => &config.packages.python,
        Client::Npm | Client::Deno | Client::Bun => &config.packages.npm,
    };
    let usual = self::registries(runtime);
    let is_index = |registry: &str| index.host_str() == Some(host_and_port(registry).0);
    let is_alone = registries
        .iter()
        .all(|registry| is_index(registry) || usual.contains(registry));
    let is_there = registries.iter().any(|registry| is_index(registry));
    match &config.package_cache {
        Some(cache) if is_alone && is_there => {
            let site = cache.site(client, &config.egress, policy.clone());
            let variables = variables.into_iter();
            let variables = variables.map(|(name, value)| (name.to_owned(), value));
            (variables.collect(), Some(site))
        }
        _ => (Vec::new(), None),
    }
}

/// Whether package managers take it for a file of the working directory, where there is one of that name.
fn is_archive(package: &str) -> bool {
    let package = package.to_ascii_lowercase();
    ARCHIVES.iter().any(|ending| package.ends_with(ending))
}

/// Deno wants to be told where from.
pub(crate) fn complete(runtime: Runtime, package: String) -> String {
    let is_bare =
        runtime == Runtime::Deno && !package.starts_with("npm:") && !package.starts_with("jsr:");
    if is_bare {
        format!("npm:{package}")
    } else {
        package
    }
}

/// Registries of every runtime, with those that the configuration names instead.
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
