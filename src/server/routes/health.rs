//! `GET /health`: says that the server runs, and on which backend.

use actix_web::http::{Method, StatusCode};
use actix_web::web;
use isol8_api::Health;

use crate::server::ServerState;
use crate::server::endpoint::Endpoint;
use crate::server::openapi::{Description, Tag};

/// Returns the endpoint `GET /health`.
#[must_use]
pub fn health() -> Endpoint {
    let summary = "Whether the server runs";
    let body = Description::public(Tag::Service, "health", summary)
        .answers::<Health>(StatusCode::OK, "The server runs");
    let head = Description::public(Tag::Service, "healthHead", summary)
        .answers_nothing(StatusCode::OK, "The server runs");
    Endpoint::at("/health")
        .on(Method::GET, get, body)
        .on(Method::HEAD, get, head)
}

/// Returns the reason without its details. The details reveal facts about the host, and this route is public; the log has
/// them.
fn without_details(reason: &str) -> String {
    let short = reason.split(": ").next();
    short.unwrap_or_default().to_owned()
}

async fn get(state: web::Data<ServerState>) -> web::Json<Health> {
    web::Json(Health {
        status: "ok".to_owned(),
        version: env!("CARGO_PKG_VERSION").to_owned(),
        backend: state.backend.to_owned(),
        backend_reason: Some(without_details(&state.backend_reason)),
    })
}
