//! `GET /openapi.json`, and `GET /docs`, a page to read and try it.
//!
//! The page is ours because none of the known ones would do: RapiDoc, Redoc and Scalar load their script
//! from elsewhere; Swagger UI, which a crate carries along, is megabytes, and needs inline styles and
//! `data:` images, which the policy below forbids. It loads nothing but its script, its style and the
//! document, so that it works without a network, and no page of another origin may frame it. The key that
//! is entered there stays in the page's memory.

use std::sync::LazyLock;

use actix_web::HttpResponse;
use actix_web::http::header::{
    CONTENT_SECURITY_POLICY, REFERRER_POLICY, X_CONTENT_TYPE_OPTIONS, X_FRAME_OPTIONS,
};
use actix_web::http::{Method, StatusCode};
use actix_web::web::Bytes;
use isol8_api::ErrorCode;

use crate::server::endpoint::Endpoint;
use crate::server::error::ApiError;
use crate::server::openapi::{self, Description, Tag};

const POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; \
    base-uri 'none'; form-action 'none'; frame-ancestors 'none'";

const HTML: &str = "text/html; charset=utf-8";
const JAVASCRIPT: &str = "text/javascript; charset=utf-8";
const CSS: &str = "text/css; charset=utf-8";

/// The same for the whole life of the server.
static DOCUMENT: LazyLock<Result<Bytes, String>> = LazyLock::new(|| {
    let document = openapi::document(super::endpoints()).to_json();
    document.map(Bytes::from).map_err(|error| error.to_string())
});

/// The document.
#[must_use]
pub fn openapi() -> Endpoint {
    let description = Description::public(Tag::Service, "openapi", "This document")
        .answers_object(StatusCode::OK, "OpenAPI 3.1")
        .refuses(&[ErrorCode::Internal]);
    Endpoint::at("/openapi.json").on(Method::GET, get_document, description)
}

/// The page.
#[must_use]
pub fn page() -> Endpoint {
    asset("/docs", "docs", HTML, include_str!("docs/page.html"))
}

/// Its script.
#[must_use]
pub fn script() -> Endpoint {
    asset(
        "/docs.js",
        "docsScript",
        JAVASCRIPT,
        include_str!("docs/page.js"),
    )
}

/// Its style.
#[must_use]
pub fn style() -> Endpoint {
    asset("/docs.css", "docsStyle", CSS, include_str!("docs/page.css"))
}

fn asset(path: &'static str, id: &str, content_type: &'static str, text: &'static str) -> Endpoint {
    let description = Description::public(
        Tag::Service,
        id,
        "A page to try the server, or a part of it",
    )
    .answers_text(content_type, "The file");
    let get = move || async move {
        HttpResponse::Ok()
            .content_type(content_type)
            .insert_header((CONTENT_SECURITY_POLICY, POLICY))
            .insert_header((X_CONTENT_TYPE_OPTIONS, "nosniff"))
            .insert_header((X_FRAME_OPTIONS, "DENY"))
            .insert_header((REFERRER_POLICY, "no-referrer"))
            .body(text)
    };
    Endpoint::at(path).on(Method::GET, get, description)
}

async fn get_document() -> Result<HttpResponse, ApiError> {
    match &*DOCUMENT {
        Ok(document) => Ok(HttpResponse::Ok()
            .content_type("application/json")
            .body(document.clone())),
        Err(error) => Err(ApiError::new(ErrorCode::Internal, error)),
    }
}
