//! Reading a request's JSON body, within bounds.

use actix_web::web::{self, Bytes};
use isol8_api::ErrorCode;
use serde::de::DeserializeOwned;

use super::error::ApiError;
use crate::config::Config;

/// Members that are looked at for a misspelling.
const MOST_UNKNOWN: usize = 16;

/// A body, and the members in it that this server does not know.
#[derive(Debug)]
pub struct Parsed<T> {
    /// What it says.
    pub value: T,
    /// Paths such as `request.timeoutMS`.
    pub unknown: Vec<String>,
}

/// Reads a whole body as JSON. Its content type is not looked at: the TypeScript client's is JSON,
/// and what is not JSON says so by itself.
///
/// # Errors
/// 400 with the path of the member at fault, 408 where the body is slow, 413 where it is large.
pub async fn json<T: DeserializeOwned>(
    payload: web::Payload,
    config: &Config,
) -> Result<T, ApiError> {
    let body = read(payload, config).await?;
    Ok(parse(&body)?.value)
}

/// Parses a body that was read.
///
/// # Errors
/// 400 with the path of the member at fault.
pub fn parse<T: DeserializeOwned>(body: &[u8]) -> Result<Parsed<T>, ApiError> {
    // serde takes an array for a struct as well, and its errors about other values name only types
    // of ours.
    if let Some(first) = body.trim_ascii_start().first()
        && *first != b'{'
    {
        let text = "body: expected value of type object, starting with {";
        return Err(ApiError::new(ErrorCode::InvalidRequest, text));
    }
    let mut unknown = Vec::new();
    let mut deserializer = serde_json::Deserializer::from_slice(body);
    let mut track = serde_path_to_error::Track::new();
    let tracked = serde_path_to_error::Deserializer::new(&mut deserializer, &mut track);
    let mut note = |path: serde_ignored::Path<'_>| {
        if unknown.len() < MOST_UNKNOWN {
            unknown.push(path.to_string());
        }
    };
    let value = serde_ignored::deserialize(tracked, &mut note).map_err(|error| {
        let path = track.path().to_string();
        let text = match path.as_str() {
            "." | "?" => format!("body: {error}"),
            path => format!("{path}: {error}"),
        };
        ApiError::new(ErrorCode::InvalidRequest, text)
    })?;
    deserializer
        .end()
        .map_err(|error| ApiError::new(ErrorCode::InvalidRequest, format!("body: {error}")))?;
    Ok(Parsed { value, unknown })
}

/// Reads a whole body.
///
/// # Errors
/// 408 where it is slow, 413 where it is large.
pub async fn read(payload: web::Payload, config: &Config) -> Result<Bytes, ApiError> {
    let (limit, within) = (config.max_body, config.body_timeout);
    match tokio::time::timeout(within, payload.to_bytes_limited(limit)).await {
        Ok(Ok(Ok(body))) => Ok(body),
        Ok(Ok(Err(error))) => Err(ApiError::new(
            ErrorCode::InvalidRequest,
            format!("body: {error}"),
        )),
        Ok(Err(_)) => Err(ApiError::new(
            ErrorCode::PayloadTooLarge,
            format!("body is larger than {limit} bytes"),
        )),
        Err(_) => Err(ApiError::new(
            ErrorCode::RequestTimeout,
            format!("body did not arrive within {} ms", within.as_millis()),
        )),
    }
}
