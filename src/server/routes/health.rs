//! `GET /health`, the one public route.

use actix_web::{Resource, web};
use isol8_api::Health;

use crate::server::State;
use crate::server::error::no_such_method;

/// The resource.
#[must_use]
pub fn health() -> Resource {
    web::resource("/health")
        .route(web::get().to(get))
        .route(web::head().to(get))
        .default_service(web::to(no_such_method))
}

async fn get(state: web::Data<State>) -> web::Json<Health> {
    web::Json(Health {
        status: "ok".to_owned(),
        version: env!("CARGO_PKG_VERSION").to_owned(),
        backend: state.backend.to_owned(),
    })
}
