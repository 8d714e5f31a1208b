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
use crate::server::accept::{AcceptedRequest, ReceivedRequest};
use crate::server::auth::Caller;
use crate::server::connection::{closed, while_connected};
use crate::server::endpoint::Endpoint;
use crate::server::error::ApiError;
use crate::server::openapi::{Description, Tag};
use crate::server::{ServerState, unknown};

/// Longest silence on the connection. The heartbeat keeps clients and proxies from taking a quiet run for a hang.
const HEARTBEAT: Duration = Duration::from_secs(15);

/// A comment in the format of server-sent events, used as heartbeat.
const COMMENT: Bytes = Bytes::from_static(b":\n\n");

/// Returns the endpoint `POST /execute/stream`.
#[must_use]
pub fn stream() -> Endpoint {
    Endpoint::at("/execute/stream").on(Method::POST, post, description())
}

fn description() -> Description {
    Description::keyed(Tag::Execution, "stream", "Runs a program and streams its events")
        .details(
            "Responds with server-sent events. The data of each is a `StreamEvent` in JSON, and the last is of \
             the type `exit` or `error`. After 15 s without an event, a comment line is sent. The run ends \
             when the client disconnects.",
        )
        .strict()
        .takes::<ExecuteBody>(Required::True, execute::example())
        .answers_events::<StreamEvent>("The events of the run")
        .refuses(execute::REFUSALS)
}

async fn post(
    caller: Caller,
    state: web::Data<ServerState>,
    request: HttpRequest,
    payload: web::Payload,
) -> Result<HttpResponse, ApiError> {
    let received = ReceivedRequest::read(&request, payload, &state).await?;
    let AcceptedRequest {
        value,
        warnings,
        config,
        share,
    } = received.execution(&caller.tenant, &state).await?;
    let submitted = state.engine.submit(value, caller.tenant, None, &config);
    let submitted = async { Ok::<_, ApiError>(submitted.await?) };
    let mut events = while_connected(&request, submitted).await?;
    // An error before the start of the run has an HTTP status. A run that still waits in the queue after one heartbeat
    // interval is no error: the response begins, and the client gets heartbeats.
    let started = while_connected(&request, async {
        match timeout(HEARTBEAT, events.begun()).await {
            Ok(started) => started.map_err(ApiError::from),
            Err(_) => Ok(()),
        }
    });
    started.await?;
    // At most one event is queued here. The others wait in the run, which slows down to the client's pace.
    let (sender, mut receiver) = mpsc::channel(1);
    let stall_timeout = config.startup.listen.stall_timeout;
    rt::spawn(async move {
        let _share = share;
        forward_events(request, events, sender, stall_timeout).await;
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

/// Forwards events until the run ends or the client disconnects. This is a task of its own, because actix-web does not
/// poll the response body while it cannot write, and so would not notice a disconnected client.
async fn forward_events(
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
    // An event consists of strings and fixed names, which JSON can always express, and writing to a vector cannot fail.
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
