//! Decodes the path segments and query parameters of a request's URL. actix-web's own decoding replaces invalid UTF-8 by
//! U+FFFD, which would turn a name into another one.

use std::borrow::Cow;

use actix_web::HttpRequest;
use isol8_api::ErrorCode;
use percent_encoding::percent_decode_str;

use super::error::ApiError;

/// Returns a segment of the path, counted from 1. The fourth segment is the whole rest of the path.
///
/// # Errors
/// 400 if the segment is not UTF-8.
pub fn segment(request: &HttpRequest, index: usize) -> Result<String, ApiError> {
    // The path is split before decoding, so that a slash that was escaped as %2F separates no segments.
    let given = request.uri().path().splitn(5, '/').nth(index);
    decoded("path", given.unwrap_or_default())
}

/// Returns the first query parameter of this name.
///
/// # Errors
/// 400 if the parameter is not UTF-8.
pub fn parameter(request: &HttpRequest, name: &str) -> Result<Option<String>, ApiError> {
    let parameters = request.query_string().split('&');
    let mut parameters = parameters.filter_map(|pair| pair.split_once('='));
    parameters
        .find(|(key, _)| *key == name)
        .map(|(_, value)| decoded(name, &value.replace('+', " ")))
        .transpose()
}

fn decoded(name: &str, given: &str) -> Result<String, ApiError> {
    let decoded = percent_decode_str(given).decode_utf8();
    decoded.map(Cow::into_owned).map_err(|_| {
        let text = format!("{name}: {given:.80} is not UTF-8 in percent-encoding");
        ApiError::new(ErrorCode::InvalidRequest, text)
    })
}
