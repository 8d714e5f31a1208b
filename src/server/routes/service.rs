//! `GET /ready` and `POST /cleanup`.

use actix_web::http::StatusCode;
use actix_web::{HttpResponse, Resource, web};
use isol8_api::service::{CleanedUp, Cleanup, Ready, Removed};
use isol8_backend::BackendError;

use crate::server::auth::Caller;
use crate::server::error::{ApiError, no_such_method};
use crate::server::{State, body};

/// Whether requests are best sent here. Public, for a load balancer.
#[must_use]
pub fn ready() -> Resource {
    web::resource("/ready")
        .route(web::get().to(get_ready))
        .default_service(web::to(no_such_method))
}

/// Removes what is not needed.
#[must_use]
pub fn cleanup() -> Resource {
    web::resource("/cleanup")
        .route(web::post().to(post_cleanup))
        .default_service(web::to(no_such_method))
}

async fn get_ready(state: web::Data<State>) -> HttpResponse {
    let reason = state.service.readiness().await.err();
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
    state: web::Data<State>,
    payload: web::Payload,
) -> Result<web::Json<CleanedUp>, ApiError> {
    let body = body::read(payload, state.config().max_body).await?;
    let asked = if body.is_empty() {
        Cleanup::default()
    } else {
        body::parse(&body)?.value
    };
    let (sessions, containers) = state.service.clean_up().await?;
    let images = if asked.images {
        Some(state.service.backend().remove_outdated_images().await)
    } else {
        None
    };
    let (containers, images) = (removed(containers), images.map(removed));
    let failed = containers.failed + images.as_ref().map_or(0, |images| images.failed);
    Ok(web::Json(CleanedUp {
        ok: failed == 0,
        sessions: removed(Ok(sessions)),
        containers,
        images,
    }))
}

fn removed(result: Result<usize, BackendError>) -> Removed {
    match result {
        Ok(removed) => Removed {
            removed,
            ..Removed::default()
        },
        // The backend tells the first failure and goes on.
        Err(error) => Removed {
            failed: 1,
            errors: vec![error.to_string()],
            ..Removed::default()
        },
    }
}
