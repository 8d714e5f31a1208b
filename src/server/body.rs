//! Reading a request's JSON body, within bounds.

use std::time::Duration;

use actix_web::web::{self, Bytes};
use isol8_api::ErrorCode;
use serde::de::DeserializeOwned;

use super::error::ApiError;

/// How long a body may take to arrive.
const BODY_TIMEOUT: Duration = Duration::from_secs(60);

/// Reads a whole body as JSON. Its content type is not looked at: the TypeScript client's is JSON,
/// and what is not JSON says so by itself.
///
/// # Errors
/// 400 with the path of the member at fault, 408 where the body is slow, 413 where it is large.
pub async fn json<T: DeserializeOwned>(payload: web::Payload, limit: usize) -> Result<T, ApiError> {
    let body = read(payload, limit).await?;
    parse(&body)
}

/// Parses a whole body.
///
/// # Errors
/// 400 with the path of the member at fault.
pub fn parse<T: DeserializeOwned>(body: &[u8]) -> Result<T, ApiError> {
    // serde takes an array for a struct as well, and its errors about other values name only types
    // of ours.
    if let Some(first) = body.trim_ascii_start().first()
        && *first != b'{'
    {
        let text = "body: expected value of type object, starting with {";
        return Err(ApiError::new(ErrorCode::InvalidRequest, text));
    }
    let mut deserializer = serde_json::Deserializer::from_slice(body);
    let parsed = serde_path_to_error::deserialize(&mut deserializer).map_err(|error| {
        let path = error.path().to_string();
        let text = match path.as_str() {
            "." | "?" => format!("body: {}", error.inner()),
            path => format!("{path}: {}", error.inner()),
        };
        ApiError::new(ErrorCode::InvalidRequest, text)
    })?;
    deserializer
        .end()
        .map_err(|error| ApiError::new(ErrorCode::InvalidRequest, format!("body: {error}")))?;
    Ok(parsed)
}

async fn read(payload: web::Payload, limit: usize) -> Result<Bytes, ApiError> {
    match tokio::time::timeout(BODY_TIMEOUT, payload.to_bytes_limited(limit)).await {
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
            format!("body did not arrive within {} s", BODY_TIMEOUT.as_secs()),
        )),
    }
}
