//! `GET /ready` and `POST /cleanup`: the state of the service, and the removal of unneeded resources.

use actix_web::http::{Method, StatusCode};
use actix_web::{HttpRequest, HttpResponse, web};
use isol8_api::ErrorCode;
use isol8_api::service::{CleanedUp, Cleanup, Ready, Removed};
use serde_json::json;
use utoipa::openapi::Required;

use crate::server::ServerState;
use crate::server::auth::Caller;
use crate::server::body::{self, Body};
use crate::server::endpoint::Endpoint;
use crate::server::error::ApiError;
use crate::server::openapi::{Description, Tag};

/// Returns the endpoint `GET /ready`, which is public, for load balancers.
#[must_use]
pub fn ready() -> Endpoint {
    let summary = "Whether the server is ready for requests";
    let description = Description::public(Tag::Service, "ready", summary)
        .answers::<Ready>(StatusCode::OK, "The server is ready")
        .answers::<Ready>(
            StatusCode::SERVICE_UNAVAILABLE,
            "The server is not ready: sandboxes are being created, or the server is shutting down",
        );
    Endpoint::at("/ready").on(Method::GET, get_ready, description)
}

/// Returns the endpoint `POST /cleanup`.
#[must_use]
pub fn cleanup() -> Endpoint {
    let summary = "Ends all sessions, and removes containers and images that are not needed";
    let description = Description::keyed(Tag::Service, "cleanup", summary)
        .takes::<Cleanup>(Required::False, json!({"images": false}))
        .answers::<CleanedUp>(
            StatusCode::OK,
            "Numbers of removed sessions, containers and images",
        )
        .refuses(&[ErrorCode::BackendUnavailable, ErrorCode::Unavailable]);
    Endpoint::at("/cleanup").on(Method::POST, post_cleanup, description)
}

async fn get_ready(state: web::Data<ServerState>) -> HttpResponse {
    let reason = state.service().readiness().await.err();
    let status = match reason {
        None => StatusCode::OK,
        Some(_) => StatusCode::SERVICE_UNAVAILABLE,
    };
    HttpResponse::build(status).json(Ready {
        ready: reason.is_none(),
        reason: reason.map(|reason| reason.to_string()),
    })
}

async fn post_cleanup(
    _caller: Caller,
    state: web::Data<ServerState>,
    request: HttpRequest,
    payload: web::Payload,
) -> Result<web::Json<CleanedUp>, ApiError> {
    let Body { bytes, .. } = body::read(&request, payload, &state).await?;
    let asked = if bytes.is_empty() {
        Cleanup::default()
    } else {
        let size = bytes.len();
        let parsing = move || body::parse::<Cleanup>(&bytes, &[]);
        state.bodies.work(size, parsing).await??.value
    };
    let (sessions, containers) = state.service().clean_up().await?;
    let images = if asked.images {
        Some(state.service().backend().remove_outdated_images().await)
    } else {
        None
    };
    let (containers, images) = (
        Removed::from_result(containers),
        images.map(Removed::from_result),
    );
    let failed = containers.failed + images.as_ref().map_or(0, |images| images.failed);
    Ok(web::Json(CleanedUp {
        ok: failed == 0,
        sessions: Removed {
            removed: sessions,
            ..Removed::default()
        },
        containers,
        images,
    }))
}
