//! `GET /health`.

use actix_web::http::{Method, StatusCode};
use actix_web::web;
use isol8_api::Health;

use crate::server::State;
use crate::server::endpoint::Endpoint;
use crate::server::openapi::{Description, Tag};

/// The endpoint.
#[must_use]
pub fn health() -> Endpoint {
    let summary = "Whether the server is there";
    let body = Description::public(Tag::Service, "health", summary)
        .answers::<Health>(StatusCode::OK, "It is");
    let head = Description::public(Tag::Service, "healthHead", summary)
        .answers_nothing(StatusCode::OK, "It is");
    Endpoint::at("/health")
        .on(Method::GET, get, body)
        .on(Method::HEAD, get, head)
}

/// The reason without its details, which tell of this host: they are in the log, and this route is public.
fn without_details(reason: &str) -> String {
    let short = reason.split(": ").next();
    short.unwrap_or_default().to_owned()
}

async fn get(state: web::Data<State>) -> web::Json<Health> {
    web::Json(Health {
        status: "ok".to_owned(),
        version: env!("CARGO_PKG_VERSION").to_owned(),
        backend: state.backend.to_owned(),
        backend_reason: Some(without_details(&state.backend_reason)),
    })
}
