//! `POST /execute`.

use actix_web::{HttpRequest, Resource, web};
use isol8_api::{ExecuteBody, ExecutionResult};

use crate::jobs;
use crate::server::auth::Caller;
use crate::server::connection::while_connected;
use crate::server::error::{ApiError, no_such_method};
use crate::server::{State, body};

/// The resource.
#[must_use]
pub fn execute() -> Resource {
    web::resource("/execute")
        .route(web::post().to(post))
        .default_service(web::to(no_such_method))
}

async fn post(
    caller: Caller,
    state: web::Data<State>,
    request: HttpRequest,
    payload: web::Payload,
) -> Result<web::Json<ExecutionResult>, ApiError> {
    let config = state.config();
    let body: ExecuteBody = body::json(payload, config.max_body).await?;
    let options = body.options.unwrap_or_default();
    let job = jobs::job(body.request, options, &config)?;
    let execution = state.service.execute(caller.tenant, body.session_id, job);
    let result = while_connected(&request, execution).await?;
    Ok(web::Json(result))
}
