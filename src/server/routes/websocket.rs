//! `GET /execute/ws`: a run that its client can write and signal to.

mod conversation;
mod input;
mod message;

use actix_web::{HttpRequest, HttpResponse, Resource, rt, web};
use isol8_api::ErrorCode;

use crate::server::State;
use crate::server::auth::Caller;
use crate::server::error::{ApiError, no_such_method};
use conversation::Conversation;

/// The resource.
#[must_use]
pub fn websocket() -> Resource {
    web::resource("/execute/ws")
        .route(web::get().to(get))
        .default_service(web::to(no_such_method))
}

async fn get(
    caller: Caller,
    state: web::Data<State>,
    request: HttpRequest,
    payload: web::Payload,
) -> Result<HttpResponse, ApiError> {
    let (response, session, messages) = actix_ws::handle(&request, payload).map_err(|error| {
        let text = format!("not the upgrade to a WebSocket: {error}");
        ApiError::new(ErrorCode::InvalidRequest, text)
    })?;
    let config = state.config();
    let conversation = Conversation::new(caller, state, config, session, messages);
    rt::spawn(conversation.hold(request));
    Ok(response)
}
