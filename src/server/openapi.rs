//! The server's OpenAPI 3.1 document.
//!
//! The document is generated from the registered routes (`routes::endpoints`), the types of `isol8-api`, and the table of
//! error codes, so that none of them is written down twice.

mod description;
mod schemas;

use actix_web::http::Method;
use isol8_api::ErrorBody;
use utoipa::openapi::path::{HttpMethod, Paths};
use utoipa::openapi::security::{HttpAuthScheme, HttpBuilder, SecurityScheme};
use utoipa::openapi::{ComponentsBuilder, InfoBuilder, LicenseBuilder, OpenApi, OpenApiBuilder};

use super::endpoint::Endpoint;
pub use description::{Description, Tag};
use schemas::{KEY, Schemas, collect};

const ABOUT: &str = "Runs untrusted code in isolated containers. Without a `sessionId` a run has a \
    sandbox of its own, and leaves nothing behind. In a session, files and the interpreter's variables live on \
    until the session is deleted. Every response has an `X-Request-Id`: the client's own, if it sent one.";

/// Returns the document of these endpoints.
#[must_use]
pub fn document(endpoints: Vec<Endpoint>) -> OpenApi {
    let mut paths = Paths::new();
    let mut schemas = Schemas::new();
    collect::<ErrorBody>(&mut schemas);
    for endpoint in endpoints {
        let path = endpoint.path();
        for (method, description) in endpoint.descriptions() {
            let operation = description.operation(&mut schemas);
            paths.add_path_operation(&path, documented(&method).into_iter().collect(), operation);
        }
    }
    let key = HttpBuilder::new()
        .scheme(HttpAuthScheme::Bearer)
        .description(Some("The server's API key: `Authorization: Bearer KEY`."));
    let license = LicenseBuilder::new()
        .name("Apache-2.0")
        .identifier(Some("Apache-2.0"));
    OpenApiBuilder::new()
        .info(
            InfoBuilder::new()
                .title("isol8")
                .version(env!("CARGO_PKG_VERSION"))
                .description(Some(ABOUT))
                .license(Some(license.build())),
        )
        .tags(Some(Tag::ALL.map(Tag::documented)))
        .paths(paths)
        .components(Some(
            ComponentsBuilder::new()
                .schemas_from_iter(schemas)
                .security_scheme(KEY, SecurityScheme::Http(key.build()))
                .build(),
        ))
        .build()
}

/// Returns OpenAPI's name of a method; `None` if it has none.
fn documented(method: &Method) -> Option<HttpMethod> {
    match method.as_str() {
        "GET" => Some(HttpMethod::Get),
        "HEAD" => Some(HttpMethod::Head),
        "PUT" => Some(HttpMethod::Put),
        "POST" => Some(HttpMethod::Post),
        "DELETE" => Some(HttpMethod::Delete),
        "PATCH" => Some(HttpMethod::Patch),
        "OPTIONS" => Some(HttpMethod::Options),
        _ => None,
    }
}
