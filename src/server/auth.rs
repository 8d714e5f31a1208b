//! Authentication of callers.

use std::future::{Ready, ready};

use actix_web::dev::Payload;
use actix_web::http::header::AUTHORIZATION;
use actix_web::{FromRequest, HttpRequest, web};
use isol8_api::{ErrorCode, TenantId};

use super::error::ApiError;
use super::state::ServerState;

/// A caller with a valid key. A handler that takes a `Caller` as argument runs for no other caller.
#[derive(Clone, Debug)]
pub struct Caller {
    /// The tenant whose sessions and sandboxes the request may touch.
    pub tenant: TenantId,
}

impl FromRequest for Caller {
    type Error = ApiError;
    type Future = Ready<Result<Self, ApiError>>;

    fn from_request(request: &HttpRequest, _payload: &mut Payload) -> Self::Future {
        ready(authenticate(request))
    }
}

fn authenticate(request: &HttpRequest) -> Result<Caller, ApiError> {
    let state = request
        .app_data::<web::Data<ServerState>>()
        .ok_or_else(|| ApiError::new(ErrorCode::Internal, "server has no state"))?;
    let header = request.headers().get(AUTHORIZATION).ok_or_else(|| {
        ApiError::new(
            ErrorCode::Unauthorized,
            "API key required, send it as the header Authorization: Bearer KEY",
        )
    })?;
    let key = header
        .to_str()
        .ok()
        .and_then(|text| text.split_once(' '))
        .filter(|(scheme, _)| scheme.eq_ignore_ascii_case("bearer"))
        .map(|(_, key)| key.trim());
    match key {
        Some(key) if state.key.matches(key) => Ok(Caller {
            tenant: TenantId::master(),
        }),
        Some(_) => Err(ApiError::new(
            ErrorCode::Forbidden,
            "Invalid API key, send the key that the server was started with",
        )),
        None => Err(ApiError::new(
            ErrorCode::Unauthorized,
            "header Authorization is not of the form Bearer KEY",
        )),
    }
}
