//! Requests of the server itself to the real registries.

use isol8_egress::{Egress, FetchError, FetchStream, Policy};
use url::Url;

/// Maximum number of redirects that are followed.
const MAX_REDIRECTS: usize = 3;

/// The reason why a registry has no usable answer.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum RegistryError {
    #[error("the registry has no such thing")]
    NotFound,
    #[error("{0}")]
    Fetch(#[from] FetchError),
    #[error("the registry answered {0}")]
    Status(u16),
    #[error("the registry's answer is not in the expected format")]
    Malformed,
    #[error("the registry's answer is too large")]
    TooLarge,
    #[error("the registry sent a file that does not match its hash")]
    Altered,
    #[error("too much is being fetched at once, try again later")]
    Busy,
    #[error("the file cannot be written to disk")]
    Disk,
}

/// Requests an index page.
pub(crate) async fn page(
    url: &Url,
    accept: &str,
    egress: &Egress,
    policy: &Policy,
) -> Result<FetchStream, RegistryError> {
    get(
        url,
        &[("accept", accept), ("accept-encoding", "gzip")],
        egress,
        policy,
    )
    .await
}

/// Fetches a URL. Follows redirects to hosts that the policy admits, unless the request has credentials, which go
/// only to the host that they were meant for.
pub(crate) async fn get(
    url: &Url,
    headers: &[(&str, &str)],
    egress: &Egress,
    policy: &Policy,
) -> Result<FetchStream, RegistryError> {
    let is_safe = url.scheme() == "https";
    let mut url = url.clone();
    let has_credentials = headers
        .iter()
        .any(|(name, _)| matches!(*name, "authorization" | "cookie"));
    for _ in 0..=MAX_REDIRECTS {
        let answer = egress.fetch_stream(&url, policy, !is_safe, headers).await?;
        match answer.status() {
            200 => return Ok(answer),
            301 | 302 | 303 | 307 | 308 if !has_credentials => {
                let location = answer.header("location").ok_or(RegistryError::Malformed)?;
                url = url.join(location).map_err(|_| RegistryError::Malformed)?;
            }
            404 | 410 => return Err(RegistryError::NotFound),
            status => return Err(RegistryError::Status(status)),
        }
    }
    Err(RegistryError::Malformed)
}
