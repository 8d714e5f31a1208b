//! Code that a request names by URL: checks whether it may be fetched, fetches it, and caches it.

use std::sync::Arc;
use std::time::Instant;

use isol8_actors::{Job, Program};
use isol8_api::{ErrorCode, ExecutionRequest, SessionId};
use isol8_config::RemoteCodeConfig;
use isol8_egress::{Egress, FetchLimits};
use moka::future::Cache;
use sha2::{Digest as _, Sha256};
use tokio::sync::Semaphore;
use tokio::time::timeout;

use crate::active::ActiveConfig;
use crate::jobs::{JobError, ParsedRequest, shown};

/// The member with the URL.
const CODE_URL: &str = "request.codeUrl";

/// Longest URL that is fetched, in bytes: the length that servers on the Web accept at least (RFC 9110, 4.1).
const MAX_URL_LENGTH: usize = 8_000;

/// The member with the expected hash of the code.
const CODE_HASH: &str = "request.codeHash";

/// Largest number of redirects that are followed.
const MAX_REDIRECTS: usize = 5;

/// Largest number of simultaneous fetches. Each may hold as many bytes as code may have.
const MAX_FETCHES: usize = 32;

/// Approximate size of a cache entry in addition to its texts, in bytes.
const ENTRY_BYTES: usize = 256;

/// Code that has to be fetched. The scheme of the URL and the form of the hash have been checked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RemoteSource {
    url: String,
    /// Whether `http:` may be used, also in redirects.
    allow_http: bool,
    /// The expected SHA-256 in lower-case hexadecimal digits.
    hash: Option<String>,
}

impl RemoteSource {
    /// Takes the URL out of a request that has one instead of code, and leaves empty code in it.
    ///
    /// # Errors
    /// Returns a [`JobError`] if the configuration does not accept the URL or the hash.
    pub fn take(
        request: &mut ExecutionRequest,
        config: &RemoteCodeConfig,
    ) -> Result<Option<Self>, JobError> {
        if request.code.is_some() || request.cmd.is_some() {
            return Ok(None); // The check of the rest of the request refuses more than one source.
        }
        let Some(url) = request.code_url.take() else {
            return Ok(None);
        };
        if !config.enabled {
            let problem =
                "this server fetches no code (remoteCode.enabled is off), send it as code";
            return Err(JobError::unsupported(CODE_URL, problem));
        }
        let allow_http = config.http && request.allow_insecure_code_url;
        check_scheme(&url, request.allow_insecure_code_url, config)?;
        let hash = request.code_hash.as_deref().map(check_form).transpose()?;
        if hash.is_none() && config.require_hash {
            let problem = "required by this server, expected the SHA-256 of the code in hex";
            return Err(JobError::invalid(CODE_HASH, problem));
        }
        request.code = Some(String::new());
        Ok(Some(Self {
            url,
            allow_http,
            hash,
        }))
    }
}

/// Checks the scheme and length of a URL. The fetch checks the rest, because it also sees redirects.
fn check_scheme(
    url: &str,
    allow_insecure: bool,
    config: &RemoteCodeConfig,
) -> Result<(), JobError> {
    if url.len() > MAX_URL_LENGTH {
        let problem = format!("{} bytes, expected at most {MAX_URL_LENGTH}", url.len());
        return Err(JobError::invalid(CODE_URL, problem));
    }
    let scheme = url.split_once("://").map_or("", |(scheme, _)| scheme);
    let problem = match scheme.to_ascii_lowercase().as_str() {
        "https" if config.https => return Ok(()),
        "http" if config.http && allow_insecure => return Ok(()),
        "http" if config.http => "http: needs allowInsecureCodeUrl".to_owned(),
        "http" | "https" => format!("this server does not accept {scheme}:"),
        _ => format!("{url:?} is not a URL of the Web"),
    };
    Err(JobError::invalid(CODE_URL, problem))
}

fn check_form(hash: &str) -> Result<String, JobError> {
    if hash.len() == 64 && hash.bytes().all(|byte| byte.is_ascii_hexdigit()) {
        return Ok(hash.to_ascii_lowercase());
    }
    let hash = shown(hash);
    let problem = format!("{hash:?} is not a SHA-256, expected 64 hexadecimal digits");
    Err(JobError::invalid(CODE_HASH, problem))
}

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
