//! A name for every request, and a line in the log about it.

use std::time::Instant;

use actix_web::Error;
use actix_web::body::MessageBody;
use actix_web::dev::{ServiceRequest, ServiceResponse};
use actix_web::http::header::{HeaderName, HeaderValue};
use actix_web::middleware::Next;

use super::connection::{self, ActiveBody};

/// The header that names a request, in both directions.
pub const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");

/// Longest name that a client may give.
const LONGEST_ID: usize = 128;

/// Gives the answer the request's name, a new one where the client gave none, and logs both.
///
/// # Errors
/// The error of the inner service.
pub async fn trace(
    mut request: ServiceRequest,
    next: Next<impl MessageBody + Unpin>,
) -> Result<ServiceResponse<impl MessageBody>, Error> {
    let begun = Instant::now();
    let active = connection::begin(&mut request);
    let id = request_id(&request);
    let method = request.method().clone();
    let path = request.path().to_owned();
    let mut response = next.call(request).await?;
    response.headers_mut().insert(REQUEST_ID, id.clone());
    let id = id.to_str().unwrap_or_default();
    let status = response.status().as_u16();
    let ms = (begun.elapsed().as_secs_f64() * 1e6).round() / 1000.0;
    if let Some(error) = response.response().error()
        && response.status().is_server_error()
    {
        log::warn!(request = id, status, error:%; "request failed");
    }
    log::info!(target: "isol8::access", request = id, method:%, path, status, ms; "answered");
    Ok(response.map_body(|_, body| ActiveBody::new(body, active)))
}

fn request_id(request: &ServiceRequest) -> HeaderValue {
    let given = request.headers().get(REQUEST_ID);
    let is_sound = |given: &&HeaderValue| {
        let bytes = given.as_bytes();
        (1..=LONGEST_ID).contains(&bytes.len()) && bytes.iter().all(u8::is_ascii_graphic)
    };
    match given.filter(is_sound) {
        Some(given) => given.clone(),
        None => {
            let id = uuid::Uuid::new_v4().to_string();
            HeaderValue::try_from(id).unwrap_or(HeaderValue::from_static("none"))
        }
    }
}
