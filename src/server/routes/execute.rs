//! `POST /execute`: runs a program, and responds with its result.

use actix_web::http::{Method, StatusCode};
use actix_web::web::{self, Bytes};
use actix_web::{HttpRequest, HttpResponse};
use isol8_api::{ErrorCode, ExecuteBody, ExecutionResult};
use serde_json::{Value, json};
use utoipa::openapi::Required;
use utoipa::openapi::schema::{ObjectBuilder, Type};

use crate::server::accept::{AcceptedRequest, ReceivedRequest};
use crate::server::auth::Caller;
use crate::server::connection::while_connected;
use crate::server::endpoint::Endpoint;
use crate::server::error::ApiError;
use crate::server::idempotency::{IDEMPOTENCY_KEY, IdempotencyKey, MAX_KEY_LENGTH};
use crate::server::openapi::{Description, Tag};
use crate::server::{ServerState, unknown};

/// Errors because of which a run has no result, on every route that runs programs.
pub(super) const REFUSALS: &[ErrorCode] = &[
    ErrorCode::Unsupported,
    ErrorCode::RuntimeUnavailable,
    ErrorCode::SetupFailed,
    ErrorCode::PolicyDenied,
    ErrorCode::RuntimeMismatch,
    ErrorCode::SessionLost,
    ErrorCode::TooManyRequests,
    ErrorCode::BackendUnavailable,
    ErrorCode::Unavailable,
];

/// Returns the endpoint `POST /execute`.
#[must_use]
pub fn execute() -> Endpoint {
    Endpoint::at("/execute").on(Method::POST, post, description())
}

fn description() -> Description {
    let key = ObjectBuilder::new()
        .schema_type(Type::String)
        .pattern(Some("^[!-~]+$"))
        .min_length(Some(1))
        .max_length(Some(MAX_KEY_LENGTH));
    Description::keyed(Tag::Execution, "execute", "Runs a program and returns its result")
        .details(
            "A program that fails or times out has a result too; if it had to be killed, its exit code is 137. \
             Unknown members are ignored. The result's `warnings` and the header `X-Isol8-Warning` name them, \
             and the first pattern of a whitelist that is not anchored.",
        )
        .header(
            IDEMPOTENCY_KEY.as_str(),
            key,
            "If a request is sent again with the same key and body, it gets the result of the first one.",
        )
        .strict()
        .takes::<ExecuteBody>(Required::True, example())
        .answers::<ExecutionResult>(StatusCode::OK, "The result of the run")
        .refuses(REFUSALS)
}

pub(super) fn example() -> Value {
    json!({"request": {"runtime": "python", "code": "print(6 * 7)"}})
}

async fn post(
    caller: Caller,
    state: web::Data<ServerState>,
    request: HttpRequest,
    payload: web::Payload,
) -> Result<HttpResponse, ApiError> {
    let received = ReceivedRequest::read(&request, payload, &state).await?;
    let key = idempotency_key(&request, &received.body, &state).await?;
    let AcceptedRequest {
        value,
        warnings,
        config,
        share,
    } = received.execution(&caller.tenant, &state).await?;
    let tenant = caller.tenant;
    let execution = {
        let (state, config, tenant) = (state.clone(), config.clone(), tenant.clone());
        async move {
            let _share = share;
            Ok(state.engine.execute(value, tenant, &config).await?)
        }
    };
    let result = match key {
        None => while_connected(&request, execution).await?,
        Some(key) => {
            let once = state
                .results
                .run_once(tenant, key, config.http.idempotency, execution);
            while_connected(&request, once).await?
        }
    };
    let mut response = HttpResponse::Ok();
    unknown::warn(&mut response, &warnings);
    Ok(response.json(result))
}

/// Returns the idempotency key that a request was sent with, if any. The body is part of the key.
async fn idempotency_key(
    request: &HttpRequest,
    body: &Bytes,
    state: &ServerState,
) -> Result<Option<IdempotencyKey>, ApiError> {
    let Some(text) = IdempotencyKey::given(request.headers())? else {
        return Ok(None);
    };
    let (size, body) = (body.len(), body.clone());
    let key = state
        .bodies
        .work(size, move || IdempotencyKey::new(text, &body));
    Ok(Some(key.await?))
}
