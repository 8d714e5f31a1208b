//! Code that a request names by its URL: whether it may be fetched, and what was.

use std::sync::Arc;
use std::time::Instant;

use isol8_actors::{Job, Program};
use isol8_api::{ErrorCode, ExecutionRequest, SessionId};
use isol8_egress::{Egress, FetchLimits};
use moka::future::Cache;
use sha2::{Digest as _, Sha256};
use tokio::sync::Semaphore;
use tokio::time::timeout;

use crate::config::{Config, RemoteCodeConfig};
use crate::jobs::{JobError, Order, shown};

/// The member that asks for it.
const CODE_URL: &str = "request.codeUrl";

/// Longest URL that is fetched, in bytes: what servers on the Web take at least (RFC 9110, 4.1).
const LONGEST_URL: usize = 8_000;

/// The member that says what it must be.
const CODE_HASH: &str = "request.codeHash";

/// Redirects that are followed.
const REDIRECTS: usize = 5;

/// Fetches at once. Each may hold as much as code may have.
const FETCHES: usize = 32;

/// What an entry of the cache takes beside its texts, about.
const ENTRY_BYTES: usize = 256;

/// Code that is to be fetched; its URL's scheme and the hash's form are checked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RemoteSource {
    url: String,
    /// Whether `http:` may be used, for redirects too.
    allow_http: bool,
    /// In lower case.
    hash: Option<String>,
}

impl RemoteSource {
    /// Takes the URL out of a request that has one instead of code; then its code is empty.
    ///
    /// # Errors
    /// [`JobError`] where the configuration does not accept it.
    pub fn take(
        request: &mut ExecutionRequest,
        config: &RemoteCodeConfig,
    ) -> Result<Option<Self>, JobError> {
        if request.code.is_some() || request.cmd.is_some() {
            return Ok(None); // Whoever checks the rest of the request says that it is too much.
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

/// What follows is the fetch's matter, which sees redirects too.
fn check_scheme(
    url: &str,
    allow_insecure: bool,
    config: &RemoteCodeConfig,
) -> Result<(), JobError> {
    if url.len() > LONGEST_URL {
        let problem = format!("{} bytes, expected at most {LONGEST_URL}", url.len());
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

/// Fetches code, and keeps it for a while.
#[derive(Clone, Debug)]
pub struct RemoteCode {
    fetches: Arc<Semaphore>,
    /// By URL, and whether it was allowed to come over `http:`.
    kept: Cache<(String, bool), Kept>,
}

#[derive(Clone, Debug)]
struct Kept {
    code: Arc<str>,
    hash: String,
    since: Instant,
    /// What it was fetched under: another configuration may not accept it.
    config: Arc<RemoteCodeConfig>,
}

impl RemoteCode {
    /// Keeps what was fetched within these bounds.
    #[must_use]
    pub fn new(config: &RemoteCodeConfig) -> Self {
        let bytes = |(url, _): &(String, bool), kept: &Kept| {
            u32::try_from(url.len() + kept.code.len() + ENTRY_BYTES).unwrap_or(u32::MAX)
        };
        Self {
            fetches: Arc::new(Semaphore::new(FETCHES)),
            kept: Cache::builder()
                .max_capacity(config.keep_bytes)
                .weigher(bytes)
                .build(),
        }
    }

    /// The job with its code, fetched where it has to be.
    ///
    /// # Errors
    /// [`JobError`] names the member, and what was found under the URL.
    pub async fn complete(
        &self,
        order: Order,
        config: &Config,
    ) -> Result<(Job, Option<SessionId>), JobError> {
        let Order {
            mut job,
            session,
            remote,
        } = order;
        if let Some(source) = remote {
            let fetched = self.get(&source, config).await?;
            check_hash(&source, &fetched)?;
            if let Program::Source { code, .. } = &mut job.program {
                *code = fetched.code.to_string();
            }
        }
        Ok((job, session))
    }

    async fn get(&self, source: &RemoteSource, all: &Config) -> Result<Kept, JobError> {
        let (config, egress) = (&all.remote_code, &all.egress);
        let key = (source.url.clone(), source.allow_http);
        if let Some(kept) = self.kept.get(&key).await {
            if kept.since.elapsed() < config.keep && Arc::ptr_eq(&kept.config, config) {
                return Ok(kept);
            }
            self.kept.invalidate(&key).await;
        }
        if config.keep.is_zero() {
            return self.fetch(source, config, egress).await;
        }
        // Whoever asks for the same meanwhile waits for this one.
        let fetched = self
            .kept
            .try_get_with(key, self.fetch(source, config, egress));
        fetched.await.map_err(|error| JobError::clone(&error))
    }

    async fn fetch(
        &self,
        source: &RemoteSource,
        config: &Arc<RemoteCodeConfig>,
        egress: &Egress,
    ) -> Result<Kept, JobError> {
        let Ok(Ok(_place)) = timeout(config.timeout, self.fetches.acquire()).await else {
            return Err(JobError {
                path: CODE_URL.to_owned(),
                problem: format!("{FETCHES} others are being fetched, try again later"),
                code: ErrorCode::Unavailable,
            });
        };
        let limits = FetchLimits {
            max_bytes: config.max_bytes,
            timeout: config.timeout,
            redirects: REDIRECTS,
            allow_http: source.allow_http,
            hosts: config.hosts.clone(),
        };
        let fetched = egress.fetch(&source.url, &limits).await;
        let bytes = fetched.map_err(|error| JobError::invalid(CODE_URL, error))?;
        let hash = hex(&Sha256::digest(&bytes));
        let code = String::from_utf8(bytes.into())
            .map_err(|_| JobError::invalid(CODE_URL, "what is there is not UTF-8 text"))?;
        Ok(Kept {
            code: code.into(),
            hash,
            since: Instant::now(),
            config: Arc::clone(config),
        })
    }
}

fn check_hash(source: &RemoteSource, fetched: &Kept) -> Result<(), JobError> {
    if source
        .hash
        .as_ref()
        .is_none_or(|hash| *hash == fetched.hash)
    {
        return Ok(());
    }
    let problem = format!("what {CODE_URL} gives has the SHA-256 {}", fetched.hash);
    Err(JobError::invalid(CODE_HASH, problem))
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
