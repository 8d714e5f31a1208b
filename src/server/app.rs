//! The application: every route, and the middleware around them.

use actix_cors::Cors;
use actix_web::middleware::Condition;
use actix_web::web;

use super::{error, routes, trace, unknown};

/// Adds every route to an application.
pub fn configure(app: &mut web::ServiceConfig) {
    for endpoint in routes::endpoints() {
        app.service(endpoint.resource());
    }
    app.service(routes::auth::without_database());
    app.default_service(web::to(error::no_such_route));
}

/// Returns the CORS middleware, which lets pages of these origins call the server from a browser. Without origins, the
/// middleware is off, and no page may.
pub(super) fn cors(origins: &[String]) -> Condition<Cors> {
    let mut cors = Cors::default()
        .allow_any_method()
        .allow_any_header()
        .expose_headers([trace::REQUEST_ID, unknown::WARNING]);
    for origin in origins {
        cors = cors.allowed_origin(origin);
    }
    Condition::new(!origins.is_empty(), cors)
}
