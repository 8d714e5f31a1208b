//! The checked configuration.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;

use isol8_actors::admission::AdmissionConfig;
use isol8_actors::pruner::PrunerConfig;
use isol8_actors::registry::RegistryConfig;
use isol8_api::Runtime;
use isol8_egress::EgressConfig;

use crate::limits::{Ceilings, Defaults, RequestLimits};
use crate::packages::PackageSettings;
use crate::policy::PolicySettings;
use crate::pool::PoolSettings;
use crate::remote_code::RemoteCodeConfig;
use crate::server::HttpSettings;
use crate::startup::Startup;

/// The checked configuration: plain data, in sections.
#[derive(Clone, Debug)]
pub struct Config {
    /// The files that were read; a later file overrides an earlier one.
    pub sources: Vec<PathBuf>,
    /// The keys of each file that this program does not use.
    pub unused: Vec<(PathBuf, Vec<&'static str>)>,
    /// Whether to log in detail. Logging can become more detailed at any time, but less detailed only at a start.
    pub debug: bool,
    /// Settings that need a restart. All others take effect at a reload.
    pub startup: Startup,
    /// Limits and times of HTTP requests.
    pub http: HttpSettings,
    /// Limits for runs at the same time and for waiting requests.
    pub admission: AdmissionConfig,
    /// Limits for sessions.
    pub sessions: RegistryConfig,
    /// Rules for the end of idle sessions.
    pub cleanup: PrunerConfig,
    /// Sandboxes kept ready.
    pub pool: PoolSettings,
    /// Settings for requests that do not set them.
    pub defaults: Defaults,
    /// Upper limits for the settings of a request.
    pub ceilings: Ceilings,
    /// Limits for the size of one request.
    pub limits: RequestLimits,
    /// Grants of options that weaken isolation.
    pub policy: PolicySettings,
    /// Rules for the network of sandboxes, and for fetches that the server does for clients.
    pub network: EgressConfig,
    /// Hosts from which packages of each runtime are installed.
    pub registries: BTreeMap<Runtime, Vec<String>>,
    /// Settings for code that is fetched for requests. A changed configuration has a new value behind the `Arc`.
    pub remote_code: Arc<RemoteCodeConfig>,
    /// Settings of the package cache and of installations.
    pub packages: PackageSettings,
}

impl Config {
    /// Returns the configuration after a reload, and the changed keys that need a restart. The settings of [`Startup`]
    /// stay as they are; those of `read` replace all others.
    #[must_use]
    pub fn reload(&self, read: Self) -> (Self, Vec<&'static str>) {
        let debug = (self.debug && !read.debug).then_some("debug");
        let changed = self.startup.changed_keys(&read.startup);
        let reloaded = Self {
            startup: self.startup.clone(),
            ..read
        };
        (reloaded, debug.into_iter().chain(changed).collect())
    }
}
