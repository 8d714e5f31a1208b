//! `GET /execute/ws`: runs a program over a WebSocket; the client can send input and signals during the run.

mod conversation;
mod frames;
mod input;
mod message;

use std::rc::Rc;

use actix_web::dev::Payload;
use actix_web::http::{Method, StatusCode};
use actix_web::{FromRequest as _, HttpRequest, HttpResponse, rt, web};
use isol8_api::{ClientMessage, ErrorCode, StreamEvent};

use crate::server::auth::Caller;
use crate::server::endpoint::Endpoint;
use crate::server::error::ApiError;
use crate::server::openapi::{Description, Tag};
use crate::server::{ServerState, unknown};
use conversation::Conversation;
use frames::{FrameGuard, FrameLimit};

/// Returns the endpoint `GET /execute/ws`.
#[must_use]
pub fn websocket() -> Endpoint {
    Endpoint::at("/execute/ws").on(Method::GET, get, description())
}

fn description() -> Description {
    Description::keyed(Tag::Execution, "websocket", "Runs a program that takes input and signals while it runs")
        .details(
            "Upgrades the connection to a WebSocket. The client sends `ClientMessage`s in JSON, the first of the type \
             `execute`. The server sends `StreamEvent`s, and closes with 1000 after the `exit` event.",
        )
        .strict()
        .answers_nothing(StatusCode::SWITCHING_PROTOCOLS, "The WebSocket is open")
        .carries::<ClientMessage>("client-message")
        .carries::<StreamEvent>("event")
        .refuses(&[ErrorCode::InvalidRequest])
}

async fn get(
    caller: Caller,
    state: web::Data<ServerState>,
    request: HttpRequest,
    payload: web::Payload,
) -> Result<HttpResponse, ApiError> {
    let refused = |error: actix_web::Error| {
        let text = format!("not the upgrade to a WebSocket: {error}");
        ApiError::new(ErrorCode::InvalidRequest, text)
    };
    let config = state.config();
    let is_strict = unknown::is_strict(&request)?;
    let frames = FrameLimit::new(config.http.max_body);
    let guard = FrameGuard::new(payload.into_inner(), Rc::clone(&frames));
    let mut guarded: Payload = Payload::Stream {
        payload: Box::pin(guard),
    };
    let payload = web::Payload::from_request(&request, &mut guarded).await;
    let payload = payload.map_err(refused)?;
    let (response, session, messages) = actix_ws::handle(&request, payload).map_err(refused)?;
    let conversation =
        Conversation::new(caller, is_strict, state, config, session, messages, frames);
    rt::spawn(conversation.serve(request));
    Ok(response)
}
