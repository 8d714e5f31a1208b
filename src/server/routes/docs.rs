//! `GET /openapi.json`; `GET /docs`, a page to read the document and try its operations; `GET /` redirects to the page.
//!
//! The page is the project's own: Swagger UI, Redoc and Scalar are one to four megabytes each, and need inline styles,
//! `data:` images or fonts, which the policy below forbids. The page is 30 KB. It loads only its scripts, its style and
//! the document, so it works without a network. No page of another origin may frame it. A key that is entered there
//! stays in the page's memory. `docs/internals/openapi.md` has the sizes.

use std::sync::LazyLock;

use actix_web::HttpResponse;
use actix_web::http::header::{
    CONTENT_SECURITY_POLICY, LOCATION, REFERRER_POLICY, X_CONTENT_TYPE_OPTIONS, X_FRAME_OPTIONS,
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

/// The document, generated once: it does not change while the server runs.
static DOCUMENT: LazyLock<Result<Bytes, String>> = LazyLock::new(|| {
    let document = openapi::document(super::endpoints()).to_json();
    document.map(Bytes::from).map_err(|error| error.to_string())
});

/// Returns the endpoint of the OpenAPI document.
#[must_use]
pub fn openapi() -> Endpoint {
    let description = Description::public(Tag::Service, "openapi", "This document")
        .answers_object(StatusCode::OK, "OpenAPI 3.1")
        .refuses(&[ErrorCode::Internal]);
    Endpoint::at("/openapi.json").on(Method::GET, get_document, description)
}

/// Returns the endpoint of the page.
#[must_use]
pub fn page() -> Endpoint {
    asset("/docs", HTML, include_str!("docs/page.html"))
}

/// Returns the endpoint of the page's script.
#[must_use]
pub fn script() -> Endpoint {
    asset("/docs.js", JAVASCRIPT, include_str!("docs/page.js"))
}

/// Returns the endpoint of the page's script for samples.
#[must_use]
pub fn samples() -> Endpoint {
    asset(
        "/docs-samples.js",
        JAVASCRIPT,
        include_str!("docs/samples.js"),
    )
}

/// Returns the endpoint of the page's style.
#[must_use]
pub fn style() -> Endpoint {
    asset("/docs.css", CSS, include_str!("docs/page.css"))
}

/// Returns the endpoint that redirects from `/` to the page.
#[must_use]
pub fn root() -> Endpoint {
    // The address is relative, so that a proxy may serve everything under another path.
    let get = || async {
        HttpResponse::Found()
            .insert_header((LOCATION, "docs"))
            .finish()
    };
    Endpoint::at("/").for_browsers(Method::GET, get)
}

fn asset(path: &'static str, content_type: &'static str, text: &'static str) -> Endpoint {
    let get = move || async move {
        HttpResponse::Ok()
            .content_type(content_type)
            .insert_header((CONTENT_SECURITY_POLICY, POLICY))
            .insert_header((X_CONTENT_TYPE_OPTIONS, "nosniff"))
            .insert_header((X_FRAME_OPTIONS, "DENY"))
            .insert_header((REFERRER_POLICY, "no-referrer"))
            .body(text)
    };
    Endpoint::at(path).for_browsers(Method::GET, get)
}

async fn get_document() -> Result<HttpResponse, ApiError> {
    match &*DOCUMENT {
        Ok(document) => Ok(HttpResponse::Ok()
            .content_type("application/json")
            .body(document.clone())),
        Err(error) => Err(ApiError::new(ErrorCode::Internal, error)),
    }
}

#[cfg(test)]
mod tests {
    const STYLE: &str = include_str!("docs/page.css");

    /// Returns the colours of a CSS variable: for light mode, and for dark mode.
    fn colours(name: &str) -> [[f64; 3]; 2] {
        let (_, rest) = STYLE
            .split_once(&format!("--{name}: light-dark("))
            .unwrap_or_else(|| panic!("no --{name}"));
        let (both, _) = rest.split_once(')').unwrap();
        let both: Vec<_> = both.split(", ").map(channels).collect();
        both.try_into().unwrap()
    }

    fn channels(colour: &str) -> [f64; 3] {
        [1, 3, 5].map(|at| {
            let value = u8::from_str_radix(&colour[at..at + 2], 16).unwrap();
            let value = f64::from(value) / 255.0;
            // <https://www.w3.org/TR/WCAG22/#dfn-relative-luminance>
            if value <= 0.04045 {
                value / 12.92
            } else {
                ((value + 0.055) / 1.055).powf(2.4)
            }
        })
    }

    fn luminance([red, green, blue]: [f64; 3]) -> f64 {
        0.2126 * red + 0.7152 * green + 0.0722 * blue
    }

    #[test]
    fn every_colour_can_be_read_on_every_background_in_light_and_in_dark_mode() {
        let texts = [
            "ink", "quiet", "link", "get", "head", "post", "put", "delete", "problem",
        ];
        for text in texts {
            for background in ["paper", "shade"] {
                for mode in [0, 1] {
                    let one = luminance(colours(text)[mode]) + 0.05;
                    let other = luminance(colours(background)[mode]) + 0.05;
                    let contrast = one.max(other) / one.min(other);
                    // The contrast that WCAG 2.2, level AA, asks of text.
                    assert!(contrast >= 4.5, "{text} on {background}: {contrast:.1}");
                }
            }
        }
    }
}
