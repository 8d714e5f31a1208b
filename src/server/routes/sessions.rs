//! `GET` and `POST /sessions`, and `DELETE /session/{id}`.

use actix_web::http::{Method, StatusCode};
use actix_web::{HttpRequest, HttpResponse, web};
use isol8_actors::pruner::PrunerConfig;
use isol8_api::{
    CreateSession, Deleted, ErrorCode, InvalidValue, SessionId, SessionInfo, SessionList,
};
use serde_json::json;
use utoipa::openapi::Required;

use crate::config::Config;
use crate::jobs;
use crate::server::accept;
use crate::server::auth::Caller;
use crate::server::body::{self, Body};
use crate::server::connection::while_connected;
use crate::server::endpoint::Endpoint;
use crate::server::error::ApiError;
use crate::server::json::Parsed;
use crate::server::openapi::{Description, Tag};
use crate::server::{State, unknown};

/// The errors of creating a session.
const REFUSALS: &[ErrorCode] = &[
    ErrorCode::Unsupported,
    ErrorCode::RuntimeUnavailable,
    ErrorCode::PolicyDenied,
    ErrorCode::SessionExists,
    ErrorCode::SessionNotFound,
    ErrorCode::SessionLost,
    ErrorCode::TooManyRequests,
    ErrorCode::BackendUnavailable,
    ErrorCode::Unavailable,
];

/// The list, and new ones.
#[must_use]
pub fn all() -> Endpoint {
    let list = Description::keyed(Tag::Sessions, "sessions", "Lists the sessions")
        .answers::<SessionList>(StatusCode::OK, "Every session that the key may see")
        .refuses(&[ErrorCode::Unavailable]);
    let create = Description::keyed(Tag::Sessions, "createSession", "Makes a session")
        .details(
            "A session is also made by the first request that names it. Made here, it has files and a sandbox \
             before anything runs, and settings for all of its requests.",
        )
        .strict()
        .takes::<CreateSession>(
            Required::True,
            json!({"runtime": "python", "env": {"LANG": "C.UTF-8"}}),
        )
        .answers::<SessionInfo>(StatusCode::CREATED, "The session, which has its sandbox")
        .refuses(REFUSALS);
    Endpoint::at("/sessions")
        .on(Method::GET, get, list)
        .on(Method::POST, post, create)
}

/// The route of one session.
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
    let config = state.config();
    for session in &mut sessions {
        session.expires_at = expiry(session, &config);
    }
    Ok(web::Json(SessionList { sessions }))
}

async fn post(
    caller: Caller,
    state: web::Data<State>,
    request: HttpRequest,
    payload: web::Payload,
) -> Result<HttpResponse, ApiError> {
    let config = state.config();
    let is_strict = unknown::is_strict(&request)?;
    // The content of the body is in memory until the session has its files.
    let Body {
        bytes,
        share: _share,
    } = body::read(&request, payload, &state).await?;
    let limits = config.clone();
    let parsing = state.bodies.work(bytes.len(), move || {
        body::parse::<CreateSession>(&bytes, &accept::session_bounds(&limits))
    });
    let Parsed { value, unknown } = parsing.await??;
    let warnings = unknown::told(&unknown, is_strict)?;
    let (id, job) = jobs::create_session(value, &caller.tenant, &config)?;
    let making = state.service.create_session(caller.tenant, id, job);
    let making = async { Ok::<_, ApiError>(making.await?) };
    let mut session = while_connected(&request, making).await?;
    session.expires_at = expiry(&session, &config);
    let mut response = HttpResponse::Created();
    unknown::warn(&mut response, &warnings);
    Ok(response.json(session))
}

/// Returns when a session ends if it stays idle.
fn expiry(session: &SessionInfo, config: &Config) -> Option<u64> {
    let PrunerConfig {
        auto_prune,
        max_age,
        ..
    } = config.cleanup;
    let max_age = u64::try_from(max_age.as_millis()).unwrap_or(u64::MAX);
    auto_prune.then(|| session.last_accessed_at.saturating_add(max_age))
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
