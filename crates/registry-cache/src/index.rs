//! IndexCache: which files a package has, by its registry. Kept in memory, and never on disk, because they say what
//! the files on disk must be.

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

/// Largest page in bytes. The largest of the usual registries have about 30 MiB.
const MAX_PAGE_BYTES: usize = 64 << 20;

/// Bytes of all pages that are kept.
const MAX_CACHED_BYTES: u64 = 96 << 20;

/// Bytes that a listed file takes beside its texts, about.
const ENTRY_BYTES: usize = 256;

/// Memory of all pages that are being fetched together, in units of [`MEMORY_UNIT`].
const FETCH_MEMORY_UNITS: usize = 4096;

/// Bytes of one unit.
const MEMORY_UNIT: usize = 64 << 10;

/// A page of a registry.
#[derive(Clone, Debug)]
pub(crate) struct IndexPage {
    pub(crate) body: Bytes,
    pub(crate) kind: &'static str,
    /// By the names that the files have here.
    pub(crate) files: Arc<HashMap<String, ListedFile>>,
    fetched_at: Instant,
}

/// A file that a page lists.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct ListedFile {
    pub(crate) url: Url,
    /// None where the registry has none that can be relied on.
    pub(crate) digest: Option<Digest>,
}

/// A page that its registry would not have sent.
#[derive(Debug)]
pub(crate) struct MalformedIndex;

/// Identifies a page.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) enum IndexKey {
    Python(String),
    /// Whether it is what an installation needs, or everything.
    Npm(String, Detail),
}

/// How much of a package npm's registry is asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Detail {
    Abbreviated,
    Full,
}

/// The pages that were fetched of late.
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

    /// A page as the registry has it, or had it a moment ago.
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
            // Requests for the same page meanwhile wait for this one.
            let fetching = self.fetch(key, registry, egress, policy, share);
            self.kept.try_get_with(key.clone(), fetching)
        };
        let fetched = match fetch().await {
            // The share that was used up may have been another installation's.
            Err(failure) if *failure == RegistryError::Busy => fetch().await,
            fetched => fetched,
        };
        fetched.map_err(|failure| RegistryError::clone(&failure))
    }

    /// Returns the file that a page lists under a name. An old page serves too: a file never becomes another.
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
        // A large one takes a while.
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

    /// Reads a page. The memory of all pages that are being read is bounded.
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
                // In small steps, because little may become much.
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

/// Memory for a page that is being read, of all pages' and of the installation's share.
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

    /// Has room for so many bytes.
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
    /// By what a client accepts.
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
