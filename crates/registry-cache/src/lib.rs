//! A cache of package registries that every tenant shares and none can write to.
//!
//! Package managers in sandboxes connect to a host that exists inside the server only, [`host_for`], over
//! the connections of their run. The server itself fetches from the real registry, over TLS and by the rules of
//! `isol8-egress`. The only input that the cache takes from a sandbox is the name of a package and of one of its files.
//! A request with credentials is passed on to the registry and is not cached.
//!
//! *Index pages*, which list a package's files with their hashes, are kept in memory for a short while. *Files* are
//! kept on disk. Each time a file is served, its hash is compared with the one on the index page. Therefore no file on
//! disk is trusted, be it damaged, half written, or written by another server.
//!
//! This crate knows neither sandboxes, tenants, the HTTP server nor the configuration.
//!
//! Modules, in reading order: `route`, the paths that can be requested; `index`, `python` and `npm`, the registries'
//! index pages; `store`, the files on disk; `download`, one download for all clients that wait for the same file;
//! `handler`, the answers.

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
pub use isol8_runtimes::PackageManager;
use url::Url;

use download::Downloads;
use handler::RegistryHandler;
use index::IndexCache;
use store::FileStore;

/// The host that package managers are configured to use. The name is not in the DNS: `.internal` is for private use.
const HOST: &str = "registry.isol8.internal";

/// The settings of the cache.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settings {
    /// Directory of the cached files, created with the first file. Several servers may share it.
    pub directory: PathBuf,
    /// Maximum size of all cached files in bytes; the files used least recently are removed first. A file larger than a
    /// quarter of it is not cached.
    pub max_bytes: u64,
    /// How long an index page is served before the registry is asked again.
    pub page_ttl: Duration,
    /// URL of the index of Python packages, such as `https://pypi.org/simple/`; ends with a slash.
    pub python: Url,
    /// URL of the npm registry, such as `https://registry.npmjs.org/`; ends with a slash.
    pub npm: Url,
}

/// Returns the host that a package manager is configured to use, over `http:`. All but deno use the same host.
#[must_use]
pub fn host_for(client: PackageManager) -> &'static str {
    match client {
        PackageManager::Pip | PackageManager::Npm | PackageManager::Bun => HOST,
        // With `https:` this name reaches the real host, through a tunnel.
        PackageManager::Deno => "registry.npmjs.org",
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
    /// Creates a cache. Uses neither the disk nor the network.
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

    /// Returns the registry as one package manager sees it. Files come only from hosts that the policy admits, also
    /// those that the cache already holds because another client requested them.
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
