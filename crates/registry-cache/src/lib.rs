//! A cache of package registries that every tenant shares and none can write to.
//!
//! Package managers in sandboxes ask a host that exists inside the server only, [`PackageManager::host`], over their run's own
//! connections. The server itself fetches their requests from the real registry, over TLS and by the rules of
//! `isol8-egress`. From a sandbox only the name of a package and of one of its files get in; a request with credentials
//! is passed on and leaves nothing behind.
//!
//! *Pages*, which list a package's files with their hashes, are kept in memory for a short while. *Files* are
//! kept on disk, and each time one is served its hash is compared with what a page of the registry says. So
//! nothing on the disk is trusted, be it damaged, half written, or another server's.
//!
//! This crate knows neither sandboxes, tenants, the HTTP server nor the configuration.
//!
//! Read `route`, which says what can be asked for; `page`, `python` and `npm`, which read the registry's
//! answers; `store`, the disk; `flight`, one download for all who wait; and `site`, which answers.

mod digest;
mod download;
#[cfg(fuzzing)]
pub mod fuzzing;
mod handler;
mod index;
mod npm;
mod python;
mod route;
mod share;
mod store;
mod upstream;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use isol8_egress::{Egress, LocalHost, Policy};
use url::Url;

use download::Downloads;
use handler::RegistryHandler;
use index::IndexCache;
use store::FileStore;

/// The host that package managers are pointed at. The name is not in the DNS: `.internal` is for private use.
const HOST: &str = "registry.isol8.internal";

/// The settings of the cache.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settings {
    /// Directory of the files; created with the first one. Several servers may share it.
    pub directory: PathBuf,
    /// Most bytes of files that are kept; those used last stay. No file larger than a quarter is kept.
    pub max_bytes: u64,
    /// How long a page is served before the registry is asked again.
    pub page_ttl: Duration,
    /// The index of Python's packages, such as `https://pypi.org/simple/`; ends with a slash.
    pub python: Url,
    /// The registry of npm's, such as `https://registry.npmjs.org/`; ends with a slash.
    pub npm: Url,
}

/// The client: package managers differ in their use of the URLs that a registry names.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PackageManager {
    /// Follows the URLs of its index.
    Pip,
    /// Replaces the usual registry's host in URLs by that of the one it was told of.
    Npm,
    /// The same; but it finds again only what it has of a registry of the same name.
    Deno,
    /// Follows the URLs of its registry.
    Bun,
}

impl PackageManager {
    /// The host that it is pointed at, over `http:`. Most have the same one.
    #[must_use]
    pub fn host(self) -> &'static str {
        match self {
            Self::Pip | Self::Npm | Self::Bun => HOST,
            // In a URL with `https:` the host is the real one, reached by a tunnel.
            Self::Deno => "registry.npmjs.org",
        }
    }
}

/// The cache. Cheap to clone; clones share all of it.
#[derive(Clone, Debug)]
pub struct RegistryCache(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    settings: Settings,
    pages: IndexCache,
    downloads: Downloads,
}

impl RegistryCache {
    /// Touches neither disk nor network.
    #[must_use]
    pub fn new(settings: Settings) -> Self {
        let store = FileStore::new(settings.directory.clone(), settings.max_bytes);
        Self(Arc::new(Shared {
            pages: IndexCache::new(settings.page_ttl),
            downloads: Downloads::new(Arc::new(store)),
            settings,
        }))
    }

    /// Returns the cache's settings.
    #[must_use]
    pub fn settings(&self) -> &Settings {
        &self.0.settings
    }

    /// The registry as one package manager sees it. Its fetches, and files that were fetched for others, come only from
    /// hosts that the policy admits.
    #[must_use]
    pub fn handler(
        &self,
        client: PackageManager,
        egress: &Egress,
        policy: Policy,
    ) -> Arc<dyn LocalHost> {
        Arc::new(RegistryHandler::new(
            self.clone(),
            client,
            egress.clone(),
            policy,
        ))
    }
}
