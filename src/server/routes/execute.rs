//! `POST /execute`.

use actix_web::{HttpRequest, HttpResponse, Resource, web};
use isol8_api::ExecuteBody;

use crate::jobs;
use crate::server::auth::Caller;
use crate::server::body::{self, Parsed};
use crate::server::connection::while_connected;
use crate::server::error::{ApiError, no_such_method};
use crate::server::idempotency::IdempotencyKey;
use crate::server::{State, misspelling};

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
) -> Result<HttpResponse, ApiError> {
    let config = state.config();
    let body = body::read(payload, config.max_body).await?;
    let key = IdempotencyKey::read(request.headers(), &body)?;
    let Parsed { value, unknown } = body::parse::<ExecuteBody>(&body)?;
    let order = jobs::order(value, &config)?;
    let tenant = caller.tenant;
    let execution = {
        let (state, config, tenant) = (state.clone(), config.clone(), tenant.clone());
        async move {
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
    misspelling::warn(&mut response, &unknown);
    Ok(response.json(result))
}
