//! Packages that a request installs, and the registries that the installation can reach.

use std::collections::BTreeMap;
use std::sync::Arc;

use isol8_actors::{Install, Network};
use isol8_api::Runtime;
use isol8_config::package_names::{check, host_and_port, registries as usual_registries};
use isol8_egress::{Egress, EgressError, Filter, LocalHost, Policy};
use isol8_registry_cache::{PackageManager, host_for};
use isol8_runtimes::{Installer, PackageNotation};

use crate::active::ActiveConfig;
use crate::jobs::JobError;
use crate::network::FilteredNetwork;

/// Environment variables: names and values.
type Variables = Vec<(String, String)>;

const MEMBER: &str = "request.installPackages";

/// Largest number of packages in one request.
pub const MAX_PACKAGES: usize = 100;

/// Returns the installation that a request asks for, if any.
///
/// # Errors
/// Returns a [`JobError`] that names the first package that is not accepted.
pub fn install(
    runtime: Runtime,
    packages: Vec<String>,
    config: &ActiveConfig,
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
    config: &ActiveConfig,
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
    let policy = policy(registries, config.egress());
    let policy = policy.map_err(|error| JobError::invalid(MEMBER, error))?;
    let (source, site) = cached(installer, runtime, registries, config, &policy);
    let network = FilteredNetwork::internal(config.egress(), policy, site);
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

/// Returns the variables that point a package manager to the cache, and the cache as a host for it. Returns nothing
/// if the configuration may mean another registry than the cached one.
fn cached(
    installer: &Installer,
    runtime: Runtime,
    registries: &[String],
    config: &ActiveConfig,
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
    let usual = usual_registries(runtime);
    let is_index = |registry: &str| index.host_str() == Some(host_and_port(registry).0);
    let is_alone = registries
        .iter()
        .all(|registry| is_index(registry) || usual.contains(registry));
    let is_there = registries.iter().any(|registry| is_index(registry));
    match config.package_cache() {
        Some(cache) if is_alone && is_there => {
            let site = cache.handler(client, config.egress(), policy.clone());
            (variables.collect(), Some(site))
        }
        _ => (Vec::new(), None),
    }
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
