//! Index pages, which list the files of a package with their hashes. Pages are kept in memory and never on disk,
//! because the files on disk are verified against them.

use std::collections::HashMap;
use std::io::Write as _;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use flate2::write::MultiGzDecoder;
use isol8_egress::{Egress, Policy};
use moka::future::Cache;
use tokio::sync::{Semaphore, SemaphorePermit};
use url::Url;

use crate::digest::Digest;
use crate::share::InstallationShare;
use crate::upstream::{self, RegistryError};
use crate::{npm, python};

/// Maximum size of a page in bytes. The largest pages of the default registries have about 30 MiB.
const MAX_PAGE_BYTES: usize = 64 << 20;

/// Maximum size of all cached pages in bytes.
const MAX_CACHED_BYTES: u64 = 96 << 20;

/// Approximate memory of a listed file in bytes, without its strings.
const ENTRY_BYTES: usize = 256;

/// Maximum memory of all pages that are being fetched, in units of [`MEMORY_UNIT`]: 256 MiB.
const FETCH_MEMORY_UNITS: usize = 4096;

/// Size of one unit of memory in bytes.
const MEMORY_UNIT: usize = 64 << 10;

/// An index page of a registry.
#[derive(Clone, Debug)]
pub(crate) struct IndexPage {
    pub(crate) body: Bytes,
    pub(crate) kind: &'static str,
    /// The listed files, by their names in the cache.
    pub(crate) files: Arc<HashMap<String, ListedFile>>,
    fetched_at: Instant,
}

/// A file that a page lists.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct ListedFile {
    pub(crate) url: Url,
    /// The file's hash; `None` if the registry publishes none that is collision-resistant.
    pub(crate) digest: Option<Digest>,
}

/// The error for a page that is not in the registry's format.
#[derive(Debug)]
pub(crate) struct MalformedIndex;

/// Identifies an index page.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) enum IndexKey {
    Python(String),
    /// A package of npm's registry, and how much the page says about it.
    Npm(String, Detail),
}

/// The level of detail that npm's registry is asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Detail {
    Abbreviated,
    Full,
}

/// A cache of recently fetched index pages.
#[derive(Debug)]
pub(crate) struct IndexCache {
    kept: Cache<IndexKey, IndexPage>,
    ttl: Duration,
    memory: Semaphore,
}

impl IndexCache {
    pub(crate) fn new(ttl: Duration) -> Self {
        let weigh = |_: &IndexKey, page: &IndexPage| {
            let names: usize = page
                .files
                .keys()
                .map(|name| 2 * name.len() + ENTRY_BYTES)
                .sum();
            u32::try_from(page.body.len() + names).unwrap_or(u32::MAX)
        };
        Self {
            kept: Cache::builder()
                .max_capacity(MAX_CACHED_BYTES)
                .weigher(weigh)
                .build(),
            ttl,
            memory: Semaphore::new(FETCH_MEMORY_UNITS),
        }
    }

    /// Returns a page, from memory if it is not older than the time to live, otherwise from the registry.
    pub(crate) async fn get(
        &self,
        key: &IndexKey,
        registry: &Url,
        egress: &Egress,
        policy: &Policy,
        share: &InstallationShare,
    ) -> Result<IndexPage, RegistryError> {
        if let Some(page) = self.kept.get(key).await {
            if page.fetched_at.elapsed() < self.ttl {
                return Ok(page);
            }
            self.kept.invalidate(key).await;
        }
        let _slot = share.page().await?;
        let fetch = || {
            // Concurrent requests for the same page wait for this fetch.
            let fetching = self.fetch(key, registry, egress, policy, share);
            self.kept.try_get_with(key.clone(), fetching)
        };
        let fetched = match fetch().await {
            // The fetch may have been one of another installation, whose share was used up.
            Err(failure) if *failure == RegistryError::Busy => fetch().await,
            fetched => fetched,
        };
        fetched.map_err(|failure| RegistryError::clone(&failure))
    }

    /// Returns the file that a cached page lists under a name. An expired page serves too, because a published file
    /// never changes.
    pub(crate) async fn listed(&self, keys: &[IndexKey], file: &str) -> Option<ListedFile> {
        for key in keys {
            if let Some(page) = self.kept.get(key).await
                && let Some(listed) = page.files.get(file)
            {
                return Some(listed.clone());
            }
        }
        None
    }

    async fn fetch(
        &self,
        key: &IndexKey,
        registry: &Url,
        egress: &Egress,
        policy: &Policy,
        share: &InstallationShare,
    ) -> Result<IndexPage, RegistryError> {
        let (url, accept) = match key {
            IndexKey::Python(name) => (registry.join(&format!("{name}/")), python::JSON),
            IndexKey::Npm(name, detail) => {
                (registry.join(&name.replace('/', "%2f")), detail.accept())
            }
        };
        let url = url.map_err(|_| RegistryError::NotFound)?;
        let body = self.read(&url, accept, egress, policy, share).await?;
        let (key, registry) = (key.clone(), registry.clone());
        // Parsing a large page takes too long for the async runtime.
        let parsing = tokio::task::spawn_blocking(move || match &key {
            IndexKey::Python(_) => {
                let (body, files) = python::read(&url, &body)?;
                Ok((Bytes::from(body), python::JSON, files))
            }
            IndexKey::Npm(name, detail) => {
                let files = npm::read(&registry, name, &body)?;
                Ok((Bytes::from(body), detail.accept(), files))
            }
        });
        let parsed = parsing.await.map_err(|_| RegistryError::Malformed)?;
        let (body, kind, files) = parsed.map_err(|MalformedIndex| RegistryError::Malformed)?;
        Ok(IndexPage {
            body,
            kind,
            files: Arc::new(files),
            fetched_at: Instant::now(),
        })
    }

    /// Reads the body of a page. The memory of all pages that are being read is bounded.
    async fn read(
        &self,
        url: &Url,
        accept: &str,
        egress: &Egress,
        policy: &Policy,
        share: &InstallationShare,
    ) -> Result<Vec<u8>, RegistryError> {
        let mut answer = upstream::page(url, accept, egress, policy).await?;
        let is_packed = answer.header("content-encoding") == Some("gzip");
        let mut reserved = MemoryReservation::new(&self.memory, share)?;
        let mut packed = MultiGzDecoder::new(Vec::new());
        let mut plain = Vec::new();
        while let Some(piece) = answer.chunk().await? {
            if is_packed {
                // In small steps, because a few compressed bytes may expand to many.
                for step in piece.chunks(1 << 10) {
                    packed
                        .write_all(step)
                        .map_err(|_| RegistryError::Malformed)?;
                    plain.append(packed.get_mut());
                    reserved.grow_to(plain.len())?;
                }
            } else {
                plain.extend_from_slice(&piece);
                reserved.grow_to(plain.len())?;
            }
        }
        if is_packed {
            let rest = packed.finish().map_err(|_| RegistryError::Malformed)?;
            plain.extend_from_slice(&rest);
        }
        Ok(plain)
    }
}

/// Memory for a page that is being read, taken from the memory of all pages and from the installation's share.
struct MemoryReservation<'p> {
    all: &'p Semaphore,
    share: &'p InstallationShare,
    from_all: SemaphorePermit<'p>,
    from_share: SemaphorePermit<'p>,
}

impl<'p> MemoryReservation<'p> {
    fn new(all: &'p Semaphore, share: &'p InstallationShare) -> Result<Self, RegistryError> {
        Ok(Self {
            all,
            share,
            from_share: share.memory()?,
            from_all: all.try_acquire().map_err(|_| RegistryError::Busy)?,
        })
    }

    /// Reserves memory until the reservation covers so many bytes.
    fn grow_to(&mut self, size: usize) -> Result<(), RegistryError> {
        if size > MAX_PAGE_BYTES {
            return Err(RegistryError::TooLarge);
        }
        while self.from_all.num_permits() * MEMORY_UNIT < size {
            self.from_share.merge(self.share.memory()?);
            let more = self.all.try_acquire().map_err(|_| RegistryError::Busy)?;
            self.from_all.merge(more);
        }
        Ok(())
    }
}

impl Detail {
    /// Returns the detail that a client asks for in its `Accept` header.
    pub(crate) fn wanted(accept: &str) -> Self {
        match accept.contains(npm::ABBREVIATED) {
            true => Self::Abbreviated,
            false => Self::Full,
        }
    }

    fn accept(self) -> &'static str {
        match self {
            Self::Abbreviated => npm::ABBREVIATED,
            Self::Full => npm::FULL,
        }
    }
}
