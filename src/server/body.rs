//! Reads the JSON body of a request within bounds of size, time and memory.

use actix_web::HttpRequest;
use actix_web::http::header::CONTENT_LENGTH;
use actix_web::web::{self, Bytes, BytesMut};
use futures::StreamExt as _;
use isol8_api::ErrorCode;
use isol8_config::Config;
use serde::de::DeserializeOwned;
use tokio::time::{Instant, timeout_at};

use super::ServerState;
use super::bodies::{MemoryShare, SMALL};
use super::error::ApiError;
use super::json::{self, Bound, Parsed};

/// A body that was read, and its share of the memory for bodies. The share must be held for as long as the values that
/// are parsed from the body.
#[derive(Debug)]
pub struct Body {
    /// The whole body.
    pub bytes: Bytes,
    /// The body's share of memory.
    pub share: MemoryShare,
}

/// Reads a whole body as JSON. The content type is not checked: the TypeScript client sends JSON, and any other body
/// fails to parse.
///
/// # Errors
/// 400 with the path of the member at fault, and the errors of [`read`].
pub async fn json<T: DeserializeOwned + Send + 'static>(
    request: &HttpRequest,
    payload: web::Payload,
    state: &ServerState,
) -> Result<(T, MemoryShare), ApiError> {
    let Body { bytes, share } = read(request, payload, state).await?;
    let parsed = state.bodies.work(bytes.len(), move || parse(&bytes, &[]));
    Ok((parsed.await??.value, share))
}

/// Parses a body that was read. A large body takes long, so call this through
/// [`BodyBudget::work`](super::bodies::BodyBudget::work).
///
/// # Errors
/// 400 with the path of the member at fault.
pub fn parse<T: DeserializeOwned>(body: &[u8], bounds: &[Bound]) -> Result<Parsed<T>, ApiError> {
    let invalid = |text| ApiError::new(ErrorCode::InvalidRequest, text);
    // serde accepts an array in the place of a struct as well, and its errors about other values name only types of this
    // program.
    if let Some(first) = body.trim_ascii_start().first()
        && *first != b'{'
    {
        let text = "body: expected value of type object, starting with {";
        return Err(invalid(text.to_owned()));
    }
    json::read(body, bounds).map_err(invalid)
}

/// Reads a whole body. A body that is not small waits until there is memory for it.
///
/// # Errors
/// 408 if the body does not arrive within `server.bodyTimeoutMs`, 413 if it is too large, 503 if there was no memory for
/// it in that time.
pub async fn read(
    request: &HttpRequest,
    payload: web::Payload,
    state: &ServerState,
) -> Result<Body, ApiError> {
    let config = state.config();
    let reader = BodyReader {
        state,
        config: &config,
        deadline: Instant::now() + config.http.body_timeout,
        declared: declared_length(request),
    };
    reader.read_all(payload).await
}

/// Returns the body's length as the client declared it.
fn declared_length(request: &HttpRequest) -> Option<usize> {
    let length = request.headers().get(CONTENT_LENGTH)?;
    length.to_str().ok()?.parse().ok()
}

struct BodyReader<'a> {
    state: &'a ServerState,
    config: &'a Config,
    deadline: Instant,
    declared: Option<usize>,
}

impl BodyReader<'_> {
    async fn read_all(&self, mut payload: web::Payload) -> Result<Body, ApiError> {
        let most = self.config.http.max_body;
        let expected = self.declared.unwrap_or(0).min(most);
        let mut share = self.share(expected).await?;
        let mut body = BytesMut::with_capacity(expected);
        while let Some(piece) = self.next(&mut payload).await? {
            let length = body.len() + piece.len();
            if length > most {
                let text = format!(
                    "body is larger than {most} bytes: send large files by PUT /session/{{id}}/files/{{path}}, or have \
                     the operator raise server.maxBodySize"
                );
                return Err(ApiError::new(ErrorCode::PayloadTooLarge, text));
            }
            if length > SMALL && !share.is_held() {
                // The length is unknown, so the share is for the longest body. A second share later is no option: a body
                // that holds a share and waits for more would block all others.
                share = self.share(most).await?;
            }
            body.extend_from_slice(&piece);
        }
        share.shrink(body.len());
        Ok(Body {
            bytes: body.freeze(),
            share,
        })
    }

    async fn next(&self, payload: &mut web::Payload) -> Result<Option<Bytes>, ApiError> {
        match timeout_at(self.deadline, payload.next()).await {
            Ok(Some(Ok(piece))) => Ok(Some(piece)),
            Ok(Some(Err(error))) => Err(ApiError::new(
                ErrorCode::InvalidRequest,
                format!("body: {error}"),
            )),
            Ok(None) => Ok(None),
            Err(_) => Err(ApiError::new(
                ErrorCode::RequestTimeout,
                format!(
                    "body did not arrive within {} ms",
                    self.config.http.body_timeout.as_millis()
                ),
            )),
        }
    }

    async fn share(&self, bytes: usize) -> Result<MemoryShare, ApiError> {
        let taking = self.state.bodies.share(bytes);
        let taken = timeout_at(self.deadline, taking).await;
        taken.map_err(|_| ApiError::no_memory())
    }
}
