//! Fetches code that a request names by URL, and caches it.

use std::sync::Arc;
use std::time::Instant;

use isol8_actors::{Job, Program};
use isol8_api::{ErrorCode, SessionId};
use isol8_config::RemoteCodeConfig;
use isol8_egress::{Egress, FetchLimits};
use moka::future::Cache;
use sha2::{Digest as _, Sha256};
use tokio::sync::Semaphore;
use tokio::time::timeout;

use crate::active::ActiveConfig;
use crate::jobs::{CODE_HASH, CODE_URL, JobError, ParsedRequest, RemoteSource};

/// Largest number of redirects that are followed.
const MAX_REDIRECTS: usize = 5;

/// Largest number of simultaneous fetches. Each may hold as many bytes as code may have.
const MAX_FETCHES: usize = 32;

/// Approximate size of a cache entry in addition to its texts, in bytes.
const ENTRY_BYTES: usize = 256;

/// Fetches code, and caches it for a while.
#[derive(Clone, Debug)]
pub struct RemoteCode {
    fetches: Arc<Semaphore>,
    /// Cached code by URL, and by whether it was allowed to come over `http:`.
    cache: Cache<(String, bool), CachedCode>,
}

#[derive(Clone, Debug)]
struct CachedCode {
    code: Arc<str>,
    hash: String,
    since: Instant,
    /// The configuration it was fetched under, because another configuration may not accept it.
    config: Arc<RemoteCodeConfig>,
}

impl RemoteCode {
    /// Returns a cache that holds this many bytes.
    #[must_use]
    pub fn new(cache_bytes: u64) -> Self {
        let bytes = |(url, _): &(String, bool), kept: &CachedCode| {
            u32::try_from(url.len() + kept.code.len() + ENTRY_BYTES).unwrap_or(u32::MAX)
        };
        Self {
            fetches: Arc::new(Semaphore::new(MAX_FETCHES)),
            cache: Cache::builder()
                .max_capacity(cache_bytes)
                .weigher(bytes)
                .build(),
        }
    }

    /// Returns the job with its code, which is fetched if necessary.
    ///
    /// # Errors
    /// Returns a [`JobError`] that names the member and the problem found under the URL.
    pub async fn complete(
        &self,
        parsed: ParsedRequest,
        config: &ActiveConfig,
    ) -> Result<(Job, Option<SessionId>), JobError> {
        let ParsedRequest {
            mut job,
            session,
            remote,
        } = parsed;
        if let Some(source) = remote {
            let fetched = self.get(&source, config).await?;
            check_hash(&source, &fetched)?;
            if let Program::Source { code, .. } = &mut job.program {
                *code = fetched.code.to_string();
            }
        }
        Ok((job, session))
    }

    async fn get(&self, source: &RemoteSource, all: &ActiveConfig) -> Result<CachedCode, JobError> {
        let (config, egress) = (&all.remote_code, all.egress());
        let key = (source.url.clone(), source.allow_http);
        if let Some(kept) = self.cache.get(&key).await {
            if kept.since.elapsed() < config.keep && Arc::ptr_eq(&kept.config, config) {
                return Ok(kept);
            }
            self.cache.invalidate(&key).await;
        }
        if config.keep.is_zero() {
            return self.fetch(source, config, egress).await;
        }
        // Simultaneous requests for the same URL wait for this fetch.
        let fetched = self
            .cache
            .try_get_with(key, self.fetch(source, config, egress));
        fetched.await.map_err(|error| JobError::clone(&error))
    }

    async fn fetch(
        &self,
        source: &RemoteSource,
        config: &Arc<RemoteCodeConfig>,
        egress: &Egress,
    ) -> Result<CachedCode, JobError> {
        let Ok(Ok(_place)) = timeout(config.timeout, self.fetches.acquire()).await else {
            return Err(JobError {
                path: CODE_URL.to_owned(),
                problem: format!("too many fetches in progress ({MAX_FETCHES}), try again later"),
                code: ErrorCode::Unavailable,
            });
        };
        let limits = FetchLimits {
            max_bytes: config.max_bytes,
            timeout: config.timeout,
            redirects: MAX_REDIRECTS,
            allow_http: source.allow_http,
            hosts: config.hosts.clone(),
        };
        let fetched = egress.fetch(&source.url, &limits).await;
        let bytes = fetched.map_err(|error| JobError::invalid(CODE_URL, error))?;
        let hash = hex(&Sha256::digest(&bytes));
        let code = String::from_utf8(bytes.into())
            .map_err(|_| JobError::invalid(CODE_URL, "the content is not UTF-8 text"))?;
        Ok(CachedCode {
            code: code.into(),
            hash,
            since: Instant::now(),
            config: Arc::clone(config),
        })
    }
}

fn check_hash(source: &RemoteSource, fetched: &CachedCode) -> Result<(), JobError> {
    if source
        .hash
        .as_ref()
        .is_none_or(|hash| *hash == fetched.hash)
    {
        return Ok(());
    }
    let problem = format!("the code at {CODE_URL} has the SHA-256 {}", fetched.hash);
    Err(JobError::invalid(CODE_HASH, problem))
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
