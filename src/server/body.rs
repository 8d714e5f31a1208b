//! Reading a request's JSON body, within bounds.

use actix_web::HttpRequest;
use actix_web::http::header::CONTENT_LENGTH;
use actix_web::web::{self, Bytes, BytesMut};
use futures::StreamExt as _;
use isol8_api::ErrorCode;
use serde::de::DeserializeOwned;
use tokio::time::{Instant, timeout_at};

use super::State;
use super::bodies::{SMALL, Share};
use super::error::ApiError;
use super::json::{self, Bound, Parsed};
use crate::config::Config;

/// A body that was read, and its share of the memory for bodies, which is to be held for as long as what was
/// made of it.
#[derive(Debug)]
pub struct Body {
    /// All of it.
    pub bytes: Bytes,
    /// Its share.
    pub share: Share,
}

/// Reads a whole body as JSON. Its content type is not looked at: the TypeScript client's is JSON,
/// and what is not JSON says so by itself.
///
/// # Errors
/// 400 with the path of the member at fault, and those of [`read`].
pub async fn json<T: DeserializeOwned + Send + 'static>(
    request: &HttpRequest,
    payload: web::Payload,
    state: &State,
) -> Result<(T, Share), ApiError> {
    let Body { bytes, share } = read(request, payload, state).await?;
    let parsed = state.bodies.work(bytes.len(), move || parse(&bytes, &[]));
    Ok((parsed.await??.value, share))
}

/// Parses a body that was read. Large ones take long: [`Bodies::work`](super::bodies::Bodies::work).
///
/// # Errors
/// 400 with the path of the member at fault.
pub fn parse<T: DeserializeOwned>(body: &[u8], bounds: &[Bound]) -> Result<Parsed<T>, ApiError> {
    let invalid = |text| ApiError::new(ErrorCode::InvalidRequest, text);
    // serde takes an array for a struct as well, and its errors about other values name only types
    // of ours.
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
/// 408 if the body is slow, 413 if it is too large, 503 if there was no memory for it in the time that it has.
pub async fn read(
    request: &HttpRequest,
    payload: web::Payload,
    state: &State,
) -> Result<Body, ApiError> {
    let config = state.config();
    let reading = Reading {
        state,
        config: &config,
        deadline: Instant::now() + config.body_timeout,
        declared: declared(request),
    };
    reading.all(payload).await
}

/// The length that the client says its body has.
fn declared(request: &HttpRequest) -> Option<usize> {
    let length = request.headers().get(CONTENT_LENGTH)?;
    length.to_str().ok()?.parse().ok()
}

struct Reading<'a> {
    state: &'a State,
    config: &'a Config,
    deadline: Instant,
    declared: Option<usize>,
}

impl Reading<'_> {
    async fn all(&self, mut payload: web::Payload) -> Result<Body, ApiError> {
        let most = self.config.max_body;
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
                // The length is unknown, so the share is for the longest. There is no second one: a body that
                // holds a share and waits for more would stop all others.
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
                    self.config.body_timeout.as_millis()
                ),
            )),
        }
    }

    async fn share(&self, bytes: usize) -> Result<Share, ApiError> {
        let taking = self.state.bodies.share(bytes);
        let taken = timeout_at(self.deadline, taking).await;
        taken.map_err(|_| ApiError::no_memory())
    }
}
