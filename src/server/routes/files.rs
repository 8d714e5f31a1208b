//! `/file` and `/session/{id}/files`: reads, writes and lists the files in a session's sandbox.

use std::fmt::Display;

use actix_web::http::{Method, StatusCode, header};
use actix_web::{HttpRequest, HttpResponse, web};
use isol8_actors::ExecuteError;
use isol8_actors::files::Upload;
use isol8_api::file::{DirectoryListing, FileBody, WriteFile, Written};
use isol8_api::{ErrorCode, Runtime, SandboxPath, SessionId};
use isol8_config::Config;
use isol8_engine::jobs;
use serde_json::json;
use utoipa::openapi::Required;
use utoipa::openapi::schema::{ObjectBuilder, Type};

use crate::server::auth::Caller;
use crate::server::endpoint::Endpoint;
use crate::server::error::ApiError;
use crate::server::openapi::{Description, Tag};
use crate::server::{ServerState, body, transfer, url};

/// The query parameter with the runtime of a session that is to be created.
const RUNTIME: &str = "runtime";

const NO_SESSION: &str = "File operations require a sessionId";

/// The errors of writing and reading files. Writing fails with `FileNotFound` if a part of the path is a file.
const REFUSALS: &[ErrorCode] = &[
    ErrorCode::SessionNotFound,
    ErrorCode::FileNotFound,
    ErrorCode::SessionLost,
    ErrorCode::TooManyRequests,
    ErrorCode::BackendUnavailable,
    ErrorCode::Unavailable,
];

/// Returns the endpoint for whole files as base64 in JSON.
#[must_use]
pub fn file() -> Endpoint {
    let write = writes("writeFile", "Writes a file, given as base64")
        .takes::<WriteFile>(
            Required::True,
            json!({"sessionId": "demo", "path": "/sandbox/hello.txt", "content": "aGVsbG8="}),
        )
        .answers::<Written>(StatusCode::OK, "The file is written");
    let read = described("readFile", "Reads a file, as base64")
        .query::<SessionId>("sessionId", "The session")
        .query::<SandboxPath>("path", "The file")
        .answers::<FileBody>(StatusCode::OK, "The whole file");
    Endpoint::at("/file")
        .on(Method::POST, post_json, write)
        .on(Method::GET, get_json, read)
}

/// Returns the endpoint for the bytes of files.
#[must_use]
pub fn raw() -> Endpoint {
    const PATH: &str = "The path of the file without its first slash: `sandbox/data.csv`. Slashes in it may be \
        sent as they are, or as `%2F`.";
    let write = writes("putFile", "Writes a file")
        .session("The session")
        .path("path", path(), PATH)
        .takes_bytes()
        .answers::<Written>(StatusCode::OK, "The file is written");
    let read = described("getFile", "Reads a file")
        .session("The session")
        .path("path", path(), PATH)
        .answers_bytes("The whole file");
    Endpoint::at("/session/{id}/files/{path:.*}")
        .on(Method::PUT, put, write)
        .on(Method::GET, get, read)
}

/// Returns the endpoint that lists a directory.
#[must_use]
pub fn list() -> Endpoint {
    let description = described("listFiles", "Lists a directory")
        .session("The session")
        .query::<SandboxPath>("path", "The directory: `/sandbox`, `/tmp`, or one in them")
        .answers::<DirectoryListing>(StatusCode::OK, "The entries of the directory");
    Endpoint::at("/session/{id}/files").on(Method::GET, get_list, description)
}

/// Returns the schema of a file's path within a URL's path.
fn path() -> ObjectBuilder {
    ObjectBuilder::new()
        .schema_type(Type::String)
        .pattern(Some("^(sandbox|tmp)/"))
        .max_length(Some(SandboxPath::MAX_LENGTH - 1))
        .examples(["sandbox/data.csv"])
}

/// Describes a route that writes a file, and creates the session if a runtime is named.
fn writes(id: &str, summary: &str) -> Description {
    let runtime = ObjectBuilder::new()
        .schema_type(Type::String)
        .enum_values(Some(Runtime::ALL.map(Runtime::name)));
    described(id, summary)
        .optional_query(
            RUNTIME,
            runtime,
            "Creates the session with this runtime, if it does not exist.",
        )
        .refuses(&[
            ErrorCode::Unsupported,
            ErrorCode::RuntimeUnavailable,
            ErrorCode::RuntimeMismatch,
        ])
}

fn described(id: &str, summary: &str) -> Description {
    Description::keyed(Tag::Files, id, summary).refuses(REFUSALS)
}

async fn post_json(
    caller: Caller,
    state: web::Data<ServerState>,
    request: HttpRequest,
    payload: web::Payload,
) -> Result<web::Json<Written>, ApiError> {
    let config = state.config();
    let (body, _share) = body::json::<WriteFile>(&request, payload, &state).await?;
    let session = body.session_id.ok_or_else(|| refused(NO_SESSION))?;
    let path = body.path.ok_or_else(|| missing("path"))?;
    jobs::check_path(&config.limits, "path", path.as_str())?;
    let content = body.content.ok_or_else(|| missing("content"))?;
    let runtime = runtime(&request)?;
    let mut upload = open(caller, &state, session, &path, runtime).await?;
    upload.write(&content.0).await?;
    upload.finish().await?;
    Ok(web::Json(Written { ok: true }))
}

async fn get_json(
    caller: Caller,
    state: web::Data<ServerState>,
    request: HttpRequest,
) -> Result<HttpResponse, ApiError> {
    let session = url::parameter(&request, "sessionId")?.ok_or_else(|| refused(NO_SESSION))?;
    let session: SessionId = session.parse().map_err(|error| at("sessionId", error))?;
    let path = url::parameter(&request, "path")?.ok_or_else(|| missing("path"))?;
    jobs::check_path(&state.config().limits, "path", &path)?;
    let path: SandboxPath = path.parse().map_err(|error| at("path", error))?;
    let tenant = caller.tenant;
    let download = state.service().download(tenant, session, &path).await?;
    let stall = state.config().startup.listen.stall_timeout;
    let body = transfer::send(download, transfer::FileEncoding::Json, stall).await?;
    Ok(HttpResponse::Ok()
        .content_type("application/json")
        .streaming(body))
}

async fn put(
    caller: Caller,
    state: web::Data<ServerState>,
    request: HttpRequest,
    payload: web::Payload,
) -> Result<web::Json<Written>, ApiError> {
    let (session, path) = address(&request, &state.config())?;
    let runtime = runtime(&request)?;
    let upload = open(caller, &state, session, &path, runtime).await?;
    transfer::receive(payload, upload, state.config().startup.listen.stall_timeout).await?;
    Ok(web::Json(Written { ok: true }))
}

async fn get(
    caller: Caller,
    state: web::Data<ServerState>,
    request: HttpRequest,
) -> Result<HttpResponse, ApiError> {
    let (session, path) = address(&request, &state.config())?;
    let tenant = caller.tenant;
    let download = state.service().download(tenant, session, &path).await?;
    let stall = state.config().startup.listen.stall_timeout;
    let body = transfer::send(download, transfer::FileEncoding::Raw, stall).await?;
    // The file's content is untrusted: a browser must not show it as a page of this server.
    Ok(HttpResponse::Ok()
        .content_type("application/octet-stream")
        .insert_header((header::X_CONTENT_TYPE_OPTIONS, "nosniff"))
        .streaming(body))
}

async fn get_list(
    caller: Caller,
    state: web::Data<ServerState>,
    request: HttpRequest,
) -> Result<web::Json<DirectoryListing>, ApiError> {
    let session = url::segment(&request, 2)?;
    let session: SessionId = session.parse().map_err(|error| at("id", error))?;
    let path = url::parameter(&request, "path")?.ok_or_else(|| missing("path"))?;
    jobs::check_path(&state.config().limits, "path", &path)?;
    let path = SandboxPath::directory(&path).map_err(|error| at("path", error))?;
    let tenant = caller.tenant;
    let listing = state.service().list_files(tenant, session, &path).await?;
    Ok(web::Json(listing))
}

/// Starts to write a file. The session is created if it does not exist and a runtime is named.
async fn open(
    caller: Caller,
    state: &ServerState,
    session: SessionId,
    path: &SandboxPath,
    runtime: Option<Runtime>,
) -> Result<Upload, ApiError> {
    let (service, tenant) = (state.service(), caller.tenant);
    let Some(runtime) = runtime else {
        let opened = service.upload(tenant, session, path).await;
        return opened.map_err(|error| match error {
            ExecuteError::SessionNotFound => ApiError::new(
                ErrorCode::SessionNotFound,
                format!("{error}: make it with POST /sessions, or name its runtime here, such as ?runtime=python"),
            ),
            error => error.into(),
        });
    };
    let job = jobs::empty_session(runtime, &state.config())?;
    let opening = service.upload_or_create(tenant, session, path, job);
    Ok(opening.await?)
}

/// Returns the runtime that the query names, if any.
fn runtime(request: &HttpRequest) -> Result<Option<Runtime>, ApiError> {
    let named = url::parameter(request, RUNTIME)?;
    let parsed = named.map(|name| name.parse().map_err(|error| at(RUNTIME, error)));
    parsed.transpose()
}

/// Returns the session and the path of `/session/{id}/files/{path}`.
fn address(request: &HttpRequest, config: &Config) -> Result<(SessionId, SandboxPath), ApiError> {
    let session = url::segment(request, 2)?;
    let session = session.parse().map_err(|error| at("id", error))?;
    let path = format!("/{}", url::segment(request, 4)?);
    jobs::check_path(&config.limits, "path", &path)?;
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
