//! Resolves host names to addresses.

use std::fmt;
use std::io;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use async_trait::async_trait;
use hickory_resolver::TokioResolver;
use hickory_resolver::config::{LookupIpStrategy, ResolveHosts, ResolverConfig};
use hickory_resolver::net::runtime::TokioRuntimeProvider;
use hickory_resolver::proto::op::Query;
use hickory_resolver::proto::rr::{Name, RecordType};
use hickory_resolver::{Hosts, ResolverBuilder};

/// The host's files that configure how names are resolved.
const RESOLVER_FILES: [&str; 2] = ["/etc/hosts", "/etc/resolv.conf"];

/// Maximum time for which an address is cached, even if the TTL of its record is longer.
const POSITIVE_TTL: Duration = Duration::from_secs(30);

/// Maximum time for which it is cached that a name has no address.
const NEGATIVE_TTL: Duration = Duration::from_secs(5);

/// Maximum number of answers in the cache.
const CACHED_ANSWERS: u64 = 1024;

/// Resolves names.
#[async_trait]
pub trait Resolve: fmt::Debug + Send + Sync {
    /// Returns all addresses of a name, the preferred ones first. Dropping the future cancels the lookup.
    ///
    /// # Errors
    /// Returns an error if the name has no address, or if no name server answers.
    async fn resolve(&self, name: &str) -> io::Result<Vec<IpAddr>>;
}

/// Resolves names by the host's `/etc/hosts` and `/etc/resolv.conf`, which are read again when they change.
/// Other sources of `/etc/nsswitch.conf` are not used, because each lookup in them would cost a thread that cannot be
/// cancelled.
#[derive(Debug, Default)]
pub struct SystemResolver {
    /// Never locked across an `await`.
    current: Mutex<Option<(FileVersions, Arc<LoadedResolver>)>>,
}

/// Modification time and size of each of [`RESOLVER_FILES`]; `None` for a file that cannot be read.
type FileVersions = [Option<(SystemTime, u64)>; RESOLVER_FILES.len()];

/// A resolver that was built from the contents of the host's files.
#[derive(Debug)]
struct LoadedResolver {
    hosts: Hosts,
    servers: TokioResolver,
}

impl SystemResolver {
    fn names(&self) -> io::Result<Arc<LoadedResolver>> {
        let versions = RESOLVER_FILES.map(version);
        let mut current = self.current.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((known, names)) = &*current
            && *known == versions
        {
            return Ok(Arc::clone(names));
        }
        let names = Arc::new(LoadedResolver::load()?);
        *current = Some((versions, Arc::clone(&names)));
        Ok(names)
    }
}

#[async_trait]
impl Resolve for SystemResolver {
    async fn resolve(&self, name: &str) -> io::Result<Vec<IpAddr>> {
        let names = self.names()?;
        let name = Name::from_ascii(name).map_err(io::Error::other)?;
        let listed = names.listed(&name);
        if !listed.is_empty() {
            return Ok(listed);
        }
        let found = names.servers.lookup_ip(name).await;
        Ok(found.map_err(io::Error::other)?.iter().collect())
    }
}

impl LoadedResolver {
    fn load() -> io::Result<Self> {
        let builder = TokioResolver::builder_tokio().unwrap_or_else(|error| {
            log::warn!(error:%; "/etc/resolv.conf names no server, only /etc/hosts is used");
            without_servers()
        });
        Ok(Self {
            hosts: Hosts::from_system().unwrap_or_default(),
            servers: configured(builder).build().map_err(io::Error::other)?,
        })
    }

    /// Returns the addresses that `/etc/hosts` has for a name. As in glibc, name servers are not asked for such a name.
    fn listed(&self, name: &Name) -> Vec<IpAddr> {
        let kinds = [RecordType::A, RecordType::AAAA];
        let found = kinds.map(|kind| {
            let query = Query::query(name.clone(), kind);
            self.hosts.lookup_static_host(&query)
        });
        let answers = found.iter().flatten().flat_map(|found| found.answers());
        answers.filter_map(|record| record.data.ip_addr()).collect()
    }
}

fn without_servers() -> ResolverBuilder<TokioRuntimeProvider> {
    let config = ResolverConfig::from_parts(None, Vec::new(), Vec::new());
    TokioResolver::builder_with_config(config, TokioRuntimeProvider::default())
}

fn configured(
    mut builder: ResolverBuilder<TokioRuntimeProvider>,
) -> ResolverBuilder<TokioRuntimeProvider> {
    let options = builder.options_mut();
    options.ip_strategy = LookupIpStrategy::Ipv4AndIpv6;
    options.use_hosts_file = ResolveHosts::Never;
    options.cache_size = CACHED_ANSWERS;
    options.positive_max_ttl = Some(POSITIVE_TTL);
    options.negative_max_ttl = Some(NEGATIVE_TTL);
    builder
}

fn version(path: &str) -> Option<(SystemTime, u64)> {
    let metadata = std::fs::metadata(path).ok()?;
    Some((metadata.modified().ok()?, metadata.len()))
}
