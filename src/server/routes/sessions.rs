//! `GET /sessions` and `DELETE /session/{id}`.

use actix_web::http::{Method, StatusCode};
use actix_web::web;
use isol8_actors::pruner::PrunerConfig;
use isol8_api::{Deleted, ErrorCode, InvalidValue, SessionId, SessionList};

use crate::server::State;
use crate::server::auth::Caller;
use crate::server::endpoint::Endpoint;
use crate::server::error::ApiError;
use crate::server::openapi::{Description, Tag};

/// The list.
#[must_use]
pub fn list() -> Endpoint {
    let description = Description::keyed(Tag::Sessions, "sessions", "Lists the sessions")
        .answers::<SessionList>(StatusCode::OK, "Every session that the key may see")
        .refuses(&[ErrorCode::Unavailable]);
    Endpoint::at("/sessions").on(Method::GET, get, description)
}

/// One session.
#[must_use]
pub fn delete() -> Endpoint {
    let summary = "Ends a session, and what runs in it";
    let description = Description::keyed(Tag::Sessions, "deleteSession", summary)
        .session("The session; one that is not there is as good as deleted")
        .answers::<Deleted>(StatusCode::OK, "It is gone")
        .refuses(&[ErrorCode::BackendUnavailable, ErrorCode::Unavailable]);
    Endpoint::at("/session/{id}").on(Method::DELETE, delete_one, description)
}

async fn get(_caller: Caller, state: web::Data<State>) -> Result<web::Json<SessionList>, ApiError> {
    // The only key there is sees every tenant.
    let mut sessions = state.service.sessions(None).await?;
    let PrunerConfig {
        auto_prune,
        max_age,
        ..
    } = state.config().cleanup;
    if auto_prune {
        let max_age = u64::try_from(max_age.as_millis()).unwrap_or(u64::MAX);
        for session in &mut sessions {
            session.expires_at = Some(session.last_accessed_at.saturating_add(max_age));
        }
    }
    Ok(web::Json(SessionList { sessions }))
}

async fn delete_one(
    caller: Caller,
    state: web::Data<State>,
    id: web::Path<String>,
) -> Result<web::Json<Deleted>, ApiError> {
    let id: SessionId = id.parse().map_err(|error: InvalidValue| {
        ApiError::new(ErrorCode::InvalidRequest, format!("id: {error}"))
    })?;
    state.service.delete_session(caller.tenant, id).await?;
    Ok(web::Json(Deleted { ok: true }))
}
