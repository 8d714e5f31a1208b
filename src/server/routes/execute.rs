//! `POST /execute`.

use actix_web::http::{Method, StatusCode};
use actix_web::{HttpRequest, HttpResponse, web};
use isol8_api::{ErrorCode, ExecuteBody, ExecutionResult};
use serde_json::{Value, json};
use utoipa::openapi::Required;
use utoipa::openapi::schema::{ObjectBuilder, Type};

use crate::server::accept::accept;
use crate::server::auth::Caller;
use crate::server::body::{self, Body};
use crate::server::connection::while_connected;
use crate::server::endpoint::Endpoint;
use crate::server::error::ApiError;
use crate::server::idempotency::{IDEMPOTENCY_KEY, IdempotencyKey, LONGEST_KEY};
use crate::server::openapi::{Description, Tag};
use crate::server::{State, unknown};

/// The errors that keep a run from having a result, in every way of asking for it.
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

/// The endpoint.
#[must_use]
pub fn execute() -> Endpoint {
    Endpoint::at("/execute").on(Method::POST, post, description())
}

fn description() -> Description {
    let key = ObjectBuilder::new()
        .schema_type(Type::String)
        .pattern(Some("^[!-~]+$"))
        .min_length(Some(1))
        .max_length(Some(LONGEST_KEY));
    Description::keyed(Tag::Execution, "execute", "Runs a program and answers its result")
        .details(
            "A program that fails, or whose time is over, is a result too: 137 is the exit code of one \
             that had to be ended. Members that are not known are ignored; the result's `warnings` and the \
             header `X-Isol8-Warning` name them, and a whitelist's pattern that is not anchored.",
        )
        .header(
            IDEMPOTENCY_KEY.as_str(),
            key,
            "A request that is sent again with the same key and body gets the first one's result.",
        )
        .strict()
        .takes::<ExecuteBody>(Required::True, example())
        .answers::<ExecutionResult>(StatusCode::OK, "How the run went")
        .refuses(REFUSALS)
}

pub(super) fn example() -> Value {
    json!({"request": {"runtime": "python", "code": "print(6 * 7)"}})
}

async fn post(
    caller: Caller,
    state: web::Data<State>,
    request: HttpRequest,
    payload: web::Payload,
) -> Result<HttpResponse, ApiError> {
    let config = state.config();
    let is_strict = unknown::is_strict(&request)?;
    let Body { bytes, share } = body::read(&request, payload, &state).await?;
    let key = match IdempotencyKey::given(request.headers())? {
        None => None,
        Some(text) => {
            let (size, body) = (bytes.len(), bytes.clone());
            let key = move || IdempotencyKey::new(text, &body);
            Some(state.bodies.work(size, key).await?)
        }
    };
    let order = accept(bytes, is_strict, &caller.tenant, &state, &config).await?;
    let warnings = order.job.warnings.clone();
    let tenant = caller.tenant;
    let execution = {
        let (state, config, tenant) = (state.clone(), config.clone(), tenant.clone());
        async move {
            // The content of the body is in memory until the run has ended.
            let _share = share;
            let (job, session) = state.remote_code.complete(order, &config).await?;
            Ok(state.service.execute(tenant, session, job).await?)
        }
    };
    let result = match key {
        None => while_connected(&request, execution).await?,
        Some(key) => {
            let once = state
                .results
                .once(tenant, key, config.idempotency, execution);
            while_connected(&request, once).await?
        }
    };
    let mut response = HttpResponse::Ok();
    unknown::warn(&mut response, &warnings);
    Ok(response.json(result))
}
