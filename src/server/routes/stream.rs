//! `POST /execute/stream`: the events of a run as server-sent events.

use std::time::Duration;

use actix_web::http::Method;
use actix_web::http::header::{CACHE_CONTROL, CONTENT_TYPE};
use actix_web::web::{self, Bytes};
use actix_web::{HttpRequest, HttpResponse, rt};
use futures::stream::poll_fn;
use isol8_actors::JobStream;
use isol8_api::{ExecuteBody, StreamEvent};
use tokio::sync::mpsc;
use tokio::time::timeout;
use utoipa::openapi::Required;

use super::execute;
use crate::server::accept::accept;
use crate::server::auth::Caller;
use crate::server::body::{self, Body};
use crate::server::connection::{closed, while_connected};
use crate::server::endpoint::Endpoint;
use crate::server::error::ApiError;
use crate::server::openapi::{Description, Tag};
use crate::server::{State, unknown};

/// How long a client hears nothing at most, so that it and what is between know that this is no hang.
const HEARTBEAT: Duration = Duration::from_secs(15);

/// A comment, in the format of server-sent events.
const COMMENT: Bytes = Bytes::from_static(b":\n\n");

/// The endpoint.
#[must_use]
pub fn stream() -> Endpoint {
    Endpoint::at("/execute/stream").on(Method::POST, post, description())
}

fn description() -> Description {
    Description::keyed(Tag::Execution, "stream", "Runs a program and tells what happens")
        .details(
            "Server-sent events: the data of each is a `StreamEvent` in JSON, and the last is of the \
             type `exit` or `error`. A comment line comes where nothing happens for 15 s. A client that \
             goes away ends the run.",
        )
        .strict()
        .takes::<ExecuteBody>(Required::True, execute::example())
        .answers_events::<StreamEvent>("What happens in the run")
        .refuses(execute::REFUSALS)
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
    let order = accept(bytes, is_strict, &caller.tenant, &state, &config).await?;
    let warnings = order.job.warnings.clone();
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
    // Events are passed one at a time: the rest waits in the run, which slows down.
    let (sender, mut receiver) = mpsc::channel(1);
    let stall_timeout = config.stall_timeout;
    rt::spawn(async move {
        // The content of the body is in memory until the run has ended.
        let _share = share;
        pass_on(request, events, sender, stall_timeout).await;
    });
    let mut response = HttpResponse::Ok();
    unknown::warn(&mut response, &warnings);
    Ok(response
        .insert_header((CONTENT_TYPE, "text/event-stream"))
        .insert_header((CACHE_CONTROL, "no-cache"))
        .insert_header(("X-Accel-Buffering", "no"))
        .streaming(poll_fn(move |context| {
            let next = receiver.poll_recv(context);
            next.map(|chunk| chunk.map(Ok::<_, actix_web::Error>))
        })))
}

/// Passes events on for as long as the client takes them. This is a task of its own: the server does not ask for the
/// next piece of an answer while it cannot write, and would not notice that a client has gone.
async fn pass_on(
    request: HttpRequest,
    events: JobStream,
    sender: mpsc::Sender<Bytes>,
    stall: Duration,
) {
    tokio::select! {
        () = send_all(events, &sender, stall) => {}
        () = sender.closed() => {}
        () = closed(&request) => {}
    }
}

async fn send_all(mut events: JobStream, sender: &mpsc::Sender<Bytes>, stall: Duration) {
    loop {
        let chunk = match timeout(HEARTBEAT, events.next()).await {
            Ok(Some(Ok(event))) => encoded(&event),
            Ok(Some(Err(error))) => encoded(&error.last_event()),
            Ok(None) => return,
            Err(_) => COMMENT,
        };
        if !matches!(timeout(stall, sender.send(chunk)).await, Ok(Ok(()))) {
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
    use std::sync::Arc;

    use isol8_actors::pool::SandboxDefaults;
    use isol8_actors::{Job, Program, Service, ServiceConfig};
    use isol8_api::{EventKind, Phase, Runtime, TenantId};
    use isol8_backend::fake::FakeBackend;
    use tokio::time::Instant;

    use super::*;

    #[actix::test]
    async fn a_run_that_says_nothing_is_heard_of_every_fifteen_seconds() {
        tokio::time::pause();
        let backend = Arc::new(FakeBackend::new());
        let service = Service::start(backend, ServiceConfig::default());
        let program = Program::source("sleep 40000\nprint late", Runtime::Python);
        let sandbox = SandboxDefaults::default().spec(Runtime::Python);
        let mut job = Job::new(program, sandbox).unwrap();
        job.timeout = Duration::from_secs(60);
        let events = service.execute_stream(TenantId::master(), None, job, None);

        let begun = Instant::now();
        let (sender, mut receiver) = mpsc::channel(1);
        rt::spawn(async move { send_all(events, &sender, HEARTBEAT).await });
        let mut heard = Vec::new();
        while let Some(chunk) = receiver.recv().await {
            heard.push((begun.elapsed().as_secs(), chunk));
        }
        assert_eq!(heard[0], (15, COMMENT));
        assert_eq!(heard[1], (30, COMMENT));
        assert!(heard[2].1.starts_with(b"data: {\"type\":\"stdout\""));
        assert!((40..45).contains(&heard[2].0), "{heard:?}");
        assert_eq!(heard.len(), 4, "{heard:?}");
        service.shutdown().await.unwrap();
    }

    #[test]
    fn an_event_is_one_line_whatever_was_written() {
        let event = StreamEvent::new(EventKind::Stdout, "a\n\r\nb\u{2028}", Phase::Setup);
        let expected =
            "data: {\"type\":\"stdout\",\"data\":\"a\\n\\r\\nb\u{2028}\",\"phase\":\"setup\"}\n\n";
        assert_eq!(encoded(&event), expected.as_bytes());
    }
}
