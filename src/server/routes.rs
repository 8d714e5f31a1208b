//! The routes, one file per resource.

pub mod auth;
pub mod docs;
pub mod execute;
pub mod files;
pub mod health;
pub mod service;
pub mod sessions;
pub mod stream;
pub mod websocket;

use super::endpoint::Endpoint;

/// Everything that the server serves.
#[must_use]
pub fn endpoints() -> Vec<Endpoint> {
    vec![
        health::health(),
        service::ready(),
        docs::openapi(),
        docs::root(),
        docs::page(),
        docs::script(),
        docs::samples(),
        docs::style(),
        execute::execute(),
        stream::stream(),
        websocket::websocket(),
        files::file(),
        files::list(),
        files::raw(),
        sessions::all(),
        sessions::delete(),
        service::cleanup(),
    ]
}
