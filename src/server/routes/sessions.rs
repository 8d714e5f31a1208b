//! `GET` and `POST /sessions`, and `DELETE /session/{id}`.

use actix_web::http::{Method, StatusCode};
use actix_web::{HttpRequest, HttpResponse, web};
use isol8_actors::pruner::PrunerConfig;
use isol8_api::{
    CreateSession, Deleted, ErrorCode, InvalidValue, SessionId, SessionInfo, SessionList,
};
use isol8_config::Config;
use isol8_engine::jobs;
use serde_json::json;
use utoipa::openapi::Required;

use crate::server::accept::{AcceptedRequest, ReceivedRequest};
use crate::server::auth::Caller;
use crate::server::connection::while_connected;
use crate::server::endpoint::Endpoint;
use crate::server::error::ApiError;
use crate::server::openapi::{Description, Tag};
use crate::server::{ServerState, unknown};

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

/// Returns the endpoint that lists sessions and creates them.
#[must_use]
pub fn all() -> Endpoint {
    let list = Description::keyed(Tag::Sessions, "sessions", "Lists the sessions")
        .answers::<SessionList>(StatusCode::OK, "All sessions that the key may see")
        .refuses(&[ErrorCode::Unavailable]);
    let create = Description::keyed(Tag::Sessions, "createSession", "Creates a session")
        .details(
            "A session is also created by the first request that names it. A session that is created here has \
             files and a sandbox before its first run, and settings for all of its requests.",
        )
        .strict()
        .takes::<CreateSession>(
            Required::True,
            json!({"runtime": "python", "env": {"LANG": "C.UTF-8"}}),
        )
        .answers::<SessionInfo>(StatusCode::CREATED, "The session, whose sandbox is ready")
        .refuses(REFUSALS);
    Endpoint::at("/sessions")
        .on(Method::GET, get, list)
        .on(Method::POST, post, create)
}

/// Returns the endpoint that deletes a session.
#[must_use]
pub fn delete() -> Endpoint {
    let summary = "Deletes a session, and ends the runs in it";
    let description = Description::keyed(Tag::Sessions, "deleteSession", summary)
        .session("The session; deleting one that does not exist succeeds")
        .answers::<Deleted>(StatusCode::OK, "The session is deleted")
        .refuses(&[ErrorCode::BackendUnavailable, ErrorCode::Unavailable]);
    Endpoint::at("/session/{id}").on(Method::DELETE, delete_one, description)
}

async fn get(
    _caller: Caller,
    state: web::Data<ServerState>,
) -> Result<web::Json<SessionList>, ApiError> {
    // The master key is the only key, and may see the sessions of all tenants.
    let mut sessions = state.service().sessions(None).await?;
    let config = state.config();
    for session in &mut sessions {
        session.expires_at = expiry(session, &config);
    }
    Ok(web::Json(SessionList { sessions }))
}

async fn post(
    caller: Caller,
    state: web::Data<ServerState>,
    request: HttpRequest,
    payload: web::Payload,
) -> Result<HttpResponse, ApiError> {
    let received = ReceivedRequest::read(&request, payload, &state).await?;
    let AcceptedRequest {
        value,
        warnings,
        config,
        share: _share,
    } = received.session(&state).await?;
    let (id, job) = jobs::create_session(value, &caller.tenant, &config)?;
    let creating = state.service().create_session(caller.tenant, id, job);
    let creating = async { Ok::<_, ApiError>(creating.await?) };
    let mut session = while_connected(&request, creating).await?;
    session.expires_at = expiry(&session, &config);
    let mut response = HttpResponse::Created();
    unknown::warn(&mut response, &warnings);
    Ok(response.json(session))
}

/// Returns the time in milliseconds at which a session ends if it stays idle; `None` if idle sessions do not end.
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
    state: web::Data<ServerState>,
    id: web::Path<String>,
) -> Result<web::Json<Deleted>, ApiError> {
    let id: SessionId = id.parse().map_err(|error: InvalidValue| {
        ApiError::new(ErrorCode::InvalidRequest, format!("id: {error}"))
    })?;
    state.service().delete_session(caller.tenant, id).await?;
    Ok(web::Json(Deleted { ok: true }))
}
