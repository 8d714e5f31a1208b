//! Names in a request's URL. actix-web decodes them too, but puts U+FFFD where something is not
//! UTF-8, which would be another name.

use std::borrow::Cow;

use actix_web::HttpRequest;
use isol8_api::ErrorCode;
use percent_encoding::percent_decode_str;

use super::error::ApiError;

/// A segment of the path, counted from 1; the fourth is all the rest.
///
/// # Errors
/// 400 if the segment is not UTF-8.
pub fn segment(request: &HttpRequest, index: usize) -> Result<String, ApiError> {
    // A slash that was escaped as %2F is no border between segments.
    let given = request.uri().path().splitn(5, '/').nth(index);
    decoded("path", given.unwrap_or_default())
}

/// A parameter of the query, the first of that name.
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
