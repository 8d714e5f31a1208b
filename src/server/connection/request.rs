//! The requests of a connection, as far as its flow depends on them.

use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, ready};

use actix_web::HttpMessage as _;
use actix_web::body::{BodySize, MessageBody};
use actix_web::dev::{Payload, ServiceRequest};
use actix_web::error::PayloadError;
use actix_web::http::header::CONTENT_LENGTH;
use actix_web::web::Bytes;
use futures::Stream;

use super::Connection;
use super::flow::RequestBody;

/// A request that is being answered, until this value is dropped.
#[derive(Debug)]
pub(in crate::server) struct ActiveRequest {
    connection: Rc<Connection>,
    number: u64,
}

impl Drop for ActiveRequest {
    fn drop(&mut self) {
        self.connection.flow.finish(self.number);
    }
}

/// Tells a request's connection that it begins to be answered. `None` for a test's request, which has none.
pub(in crate::server) fn begin(request: &mut ServiceRequest) -> Option<ActiveRequest> {
    let connection = Rc::clone(request.conn_data::<Rc<Connection>>()?);
    connection.note_request();
    let body = body(request);
    let number = connection.flow.begin(body);
    if body != RequestBody::Empty {
        let payload = RequestPayload {
            payload: request.take_payload(),
            connection: Rc::clone(&connection),
            number,
        };
        request.set_payload(Payload::Stream {
            payload: Box::pin(payload),
        });
    }
    Some(ActiveRequest { connection, number })
}

fn body(request: &ServiceRequest) -> RequestBody {
    if matches!(request.parts().1, Payload::None) {
        return RequestBody::Empty;
    }
    if request.head().upgrade() {
        return RequestBody::Upgraded;
    }
    let length = request.headers().get(CONTENT_LENGTH);
    let length = length.and_then(|length| length.to_str().ok()?.trim().parse().ok());
    length.map_or(RequestBody::Chunked, RequestBody::Sized)
}

/// The body of a request, on its way to what reads it.
struct RequestPayload {
    payload: Payload,
    connection: Rc<Connection>,
    number: u64,
}

impl Stream for RequestPayload {
    type Item = Result<Bytes, PayloadError>;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let piece = ready!(Pin::new(&mut self.payload).poll_next(context));
        match &piece {
            Some(Ok(_)) => self.connection.flow.take_body(self.number),
            Some(Err(_)) | None => self.connection.flow.end_body(self.number),
        }
        Poll::Ready(piece)
    }
}

impl Drop for RequestPayload {
    fn drop(&mut self) {
        self.connection.flow.end_body(self.number);
    }
}

/// The body of an answer, and the request that is answered until it is written.
#[derive(Debug)]
pub(in crate::server) struct ActiveBody<B> {
    body: B,
    _request: Option<ActiveRequest>,
}

impl<B> ActiveBody<B> {
    pub(in crate::server) fn new(body: B, request: Option<ActiveRequest>) -> Self {
        Self {
            body,
            _request: request,
        }
    }
}

impl<B: MessageBody + Unpin> MessageBody for ActiveBody<B> {
    type Error = B::Error;

    fn size(&self) -> BodySize {
        self.body.size()
    }

    fn poll_next(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Bytes, Self::Error>>> {
        Pin::new(&mut self.body).poll_next(context)
    }
}
