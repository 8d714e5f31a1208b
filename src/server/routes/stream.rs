//! `POST /execute/stream`: the events of a run as server-sent events.

use std::time::Duration;

use actix_web::http::header::{CACHE_CONTROL, CONTENT_TYPE};
use actix_web::web::{self, Bytes};
use actix_web::{HttpRequest, HttpResponse, Resource, rt};
use futures::stream::poll_fn;
use isol8_actors::JobStream;
use isol8_api::{ExecuteBody, StreamEvent};
use tokio::sync::mpsc;
use tokio::time::timeout;

use crate::jobs;
use crate::server::auth::Caller;
use crate::server::body::{self, Parsed};
use crate::server::connection::{STALLED_AFTER, closed, while_connected};
use crate::server::error::{ApiError, no_such_method};
use crate::server::{State, misspelling};

/// How long a client hears nothing at most, so that it and what is between know that this is no hang.
const HEARTBEAT: Duration = Duration::from_secs(15);

/// A comment, in the format of server-sent events.
const COMMENT: Bytes = Bytes::from_static(b":\n\n");

/// The resource.
#[must_use]
pub fn stream() -> Resource {
    web::resource("/execute/stream")
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
    let Parsed { value, unknown } = body::parse::<ExecuteBody>(&body)?;
    let order = jobs::order(value, &config)?;
    let completed = async { Ok::<_, ApiError>(state.remote_code.complete(order, &config).await?) };
    let (job, session) = while_connected(&request, completed).await?;
    let service = &state.service;
    let mut events = service.execute_stream(caller.tenant, session, job, None);
    // An error before the run is one over HTTP. A run that waits for its turn is not an error: its
    // client hears heartbeats from then on.
    let begun = while_connected(&request, async {
        match timeout(HEARTBEAT, events.begun()).await {
            Ok(begun) => begun.map_err(ApiError::from),
            Err(_) => Ok(()),
        }
    });
    begun.await?;
    // One at a time: what waits, waits where the run is slowed down.
    let (sender, mut receiver) = mpsc::channel(1);
    rt::spawn(pass_on(request, events, sender));
    let mut response = HttpResponse::Ok();
    misspelling::warn(&mut response, &unknown);
    Ok(response
        .insert_header((CONTENT_TYPE, "text/event-stream"))
        .insert_header((CACHE_CONTROL, "no-cache"))
        .insert_header(("X-Accel-Buffering", "no"))
        .streaming(poll_fn(move |context| {
            let next = receiver.poll_recv(context);
            next.map(|chunk| chunk.map(Ok::<_, actix_web::Error>))
        })))
}

/// Passes events on for as long as somebody takes them. A task of its own: the server does not ask for
/// the next piece of an answer while it cannot write, and would not see a client go.
async fn pass_on(request: HttpRequest, events: JobStream, sender: mpsc::Sender<Bytes>) {
    tokio::select! {
        () = send_all(events, &sender) => {}
        () = sender.closed() => {}
        () = closed(&request) => {}
    }
}

async fn send_all(mut events: JobStream, sender: &mpsc::Sender<Bytes>) {
    loop {
        let chunk = match timeout(HEARTBEAT, events.next()).await {
            Ok(Some(Ok(event))) => encoded(&event),
            Ok(Some(Err(error))) => encoded(&error.event()),
            Ok(None) => return,
            Err(_) => COMMENT,
        };
        if !matches!(timeout(STALLED_AFTER, sender.send(chunk)).await, Ok(Ok(()))) {
            return;
        }
    }
}

fn encoded(event: &StreamEvent) -> Bytes {
    let mut text = b"data: ".to_vec();
    // Strings and fixed names: nothing that JSON does not know, and a vector takes everything.
    if let Err(error) = serde_json::to_writer(&mut text, event) {
        log::error!(error:%; "event cannot be written as JSON");
        return COMMENT;
    }
    text.extend_from_slice(b"\n\n");
    text.into()
}

#[cfg(test)]
mod tests {
    use super::*;
    use isol8_api::{EventKind, Phase};

    #[test]
    fn an_event_is_one_line_whatever_was_written() {
        let event = StreamEvent {
            kind: EventKind::Stdout,
            data: "a\n\r\nb\u{2028}".to_owned(),
            phase: Phase::Setup,
        };
        let expected =
            "data: {\"type\":\"stdout\",\"data\":\"a\\n\\r\\nb\u{2028}\",\"phase\":\"setup\"}\n\n";
        assert_eq!(encoded(&event), expected.as_bytes());
    }
}
