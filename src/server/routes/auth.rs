//! `/auth/*`: refused, because this server has no database of keys.

use actix_web::HttpResponse;
use actix_web::Scope;
use actix_web::web;
use isol8_api::ErrorCode;

use crate::server::auth::Caller;
use crate::server::error::ApiError;

/// Returns the scope of all paths under `/auth`. `/openapi.json` has none of them, because they cannot be used.
#[must_use]
pub fn without_database() -> Scope {
    web::scope("/auth").default_service(web::to(refuse))
}

async fn refuse(_caller: Caller) -> Result<HttpResponse, ApiError> {
    Err(ApiError::new(
        ErrorCode::Unsupported,
        "DB-backed auth is not enabled: the only key of this server is the one that it was started with",
    ))
}
