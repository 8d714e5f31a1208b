//! Authentication of callers.

use std::fmt;
use std::future::{Ready, ready};

use actix_web::dev::Payload;
use actix_web::http::header::AUTHORIZATION;
use actix_web::{FromRequest, HttpRequest, web};
use isol8_api::{ErrorCode, TenantId};
use subtle::ConstantTimeEq as _;

use super::State;
use super::error::ApiError;

/// The key of the whole installation. Never shown, and compared in constant time.
pub struct MasterKey(String);

impl MasterKey {
    /// Makes a key; returns `None` if the text is empty, because an empty key would admit every caller.
    #[must_use]
    pub fn new(key: String) -> Option<Self> {
        (!key.is_empty()).then_some(Self(key))
    }

    fn matches(&self, given: &str) -> bool {
        self.0.as_bytes().ct_eq(given.as_bytes()).into()
    }
}

impl fmt::Debug for MasterKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("MasterKey(…)")
    }
}

/// A caller with a valid key. A handler that takes one runs for no other caller.
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
        .app_data::<web::Data<State>>()
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
