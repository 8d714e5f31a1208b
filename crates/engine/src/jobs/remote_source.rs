//! The source of code that a request names by URL: checks whether it may be fetched.

use isol8_api::ExecutionRequest;
use isol8_config::RemoteCodeConfig;

use super::error::{JobError, shown};

/// The member with the URL.
pub(crate) const CODE_URL: &str = "request.codeUrl";

/// Longest URL that is fetched, in bytes: the length that servers on the Web accept at least (RFC 9110, 4.1).
const MAX_URL_LENGTH: usize = 8_000;

/// The member with the expected hash of the code.
pub(crate) const CODE_HASH: &str = "request.codeHash";

/// Code that has to be fetched. The scheme of the URL and the form of the hash have been checked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RemoteSource {
    pub(crate) url: String,
    /// Whether `http:` may be used, also in redirects.
    pub(crate) allow_http: bool,
    /// The expected SHA-256 in lower-case hexadecimal digits.
    pub(crate) hash: Option<String>,
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
