//! `/file` and `/session/{id}/files`: what is in a session's sandbox.

use std::fmt::Display;

use actix_web::http::header;
use actix_web::{HttpRequest, HttpResponse, Resource, web};
use isol8_api::file::{DirectoryListing, WriteFile, Written};
use isol8_api::{ErrorCode, SandboxPath, SessionId};

use crate::server::auth::Caller;
use crate::server::error::{ApiError, no_such_method};
use crate::server::{State, body, transfer, url};

const NO_SESSION: &str = "File operations require a sessionId";

/// A whole file as base64 in JSON.
#[must_use]
pub fn file() -> Resource {
    web::resource("/file")
        .route(web::post().to(post_json))
        .route(web::get().to(get_json))
        .default_service(web::to(no_such_method))
}

/// A file's bytes.
#[must_use]
pub fn raw() -> Resource {
    web::resource("/session/{id}/files/{path:.*}")
        .route(web::put().to(put))
        .route(web::get().to(get))
        .default_service(web::to(no_such_method))
}

/// A directory.
#[must_use]
pub fn list() -> Resource {
    web::resource("/session/{id}/files")
        .route(web::get().to(get_list))
        .default_service(web::to(no_such_method))
}

async fn post_json(
    caller: Caller,
    state: web::Data<State>,
    payload: web::Payload,
) -> Result<web::Json<Written>, ApiError> {
    let body: WriteFile = body::json(payload, state.config().max_body).await?;
    let session = body.session_id.ok_or_else(|| refused(NO_SESSION))?;
    let path = body.path.ok_or_else(|| missing("path"))?;
    let content = body.content.ok_or_else(|| missing("content"))?;
    let tenant = caller.tenant;
    let mut upload = state.service.upload(tenant, session, &path).await?;
    upload.write(&content.0).await?;
    upload.finish().await?;
    Ok(web::Json(Written { ok: true }))
}

async fn get_json(
    caller: Caller,
    state: web::Data<State>,
    request: HttpRequest,
) -> Result<HttpResponse, ApiError> {
    let session = url::parameter(&request, "sessionId")?.ok_or_else(|| refused(NO_SESSION))?;
    let session: SessionId = session.parse().map_err(|error| at("sessionId", error))?;
    let path = url::parameter(&request, "path")?.ok_or_else(|| missing("path"))?;
    let path: SandboxPath = path.parse().map_err(|error| at("path", error))?;
    let tenant = caller.tenant;
    let download = state.service.download(tenant, session, &path).await?;
    let body = transfer::send(download, transfer::Form::Json).await?;
    Ok(HttpResponse::Ok()
        .content_type("application/json")
        .streaming(body))
}

async fn put(
    caller: Caller,
    state: web::Data<State>,
    request: HttpRequest,
    payload: web::Payload,
) -> Result<web::Json<Written>, ApiError> {
    let (session, path) = address(&request)?;
    let tenant = caller.tenant;
    let upload = state.service.upload(tenant, session, &path).await?;
    transfer::receive(payload, upload).await?;
    Ok(web::Json(Written { ok: true }))
}

async fn get(
    caller: Caller,
    state: web::Data<State>,
    request: HttpRequest,
) -> Result<HttpResponse, ApiError> {
    let (session, path) = address(&request)?;
    let tenant = caller.tenant;
    let download = state.service.download(tenant, session, &path).await?;
    let body = transfer::send(download, transfer::Form::Raw).await?;
    // Whatever user code wrote, no browser shall take it for a page of ours.
    Ok(HttpResponse::Ok()
        .content_type("application/octet-stream")
        .insert_header((header::X_CONTENT_TYPE_OPTIONS, "nosniff"))
        .streaming(body))
}

async fn get_list(
    caller: Caller,
    state: web::Data<State>,
    request: HttpRequest,
) -> Result<web::Json<DirectoryListing>, ApiError> {
    let session = url::segment(&request, 2)?;
    let session: SessionId = session.parse().map_err(|error| at("id", error))?;
    let path = url::parameter(&request, "path")?.ok_or_else(|| missing("path"))?;
    let path = SandboxPath::directory(&path).map_err(|error| at("path", error))?;
    let tenant = caller.tenant;
    let listing = state.service.list_files(tenant, session, &path).await?;
    Ok(web::Json(listing))
}

/// The session and the path of `/session/{id}/files/{path}`.
fn address(request: &HttpRequest) -> Result<(SessionId, SandboxPath), ApiError> {
    let session = url::segment(request, 2)?;
    let session = session.parse().map_err(|error| at("id", error))?;
    let path = format!("/{}", url::segment(request, 4)?);
    let path = path.parse().map_err(|error| at("path", error))?;
    Ok((session, path))
}

fn refused(text: impl Into<String>) -> ApiError {
    ApiError::new(ErrorCode::InvalidRequest, text)
}

fn missing(name: &str) -> ApiError {
    refused(format!("{name}: missing"))
}

fn at(name: &str, error: impl Display) -> ApiError {
    refused(format!("{name}: {error}"))
}
