//! One WebSocket from its first message to its close: waits for an `execute` message, runs the job, and passes
//! events to the client and input to the run.

use std::cell::Cell;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use actix_web::{HttpRequest, web};
use actix_ws::{
    AggregatedMessage, AggregatedMessageStream, CloseCode, CloseReason, Closed, MessageStream,
    ProtocolError, Session,
};
use isol8_actors::JobStream;
use isol8_api::{ClientMessage, ErrorCode, EventKind, Phase, StreamEvent};
use isol8_engine::active::ActiveConfig;
use isol8_engine::jobs::{self, ParsedRequest};
use tokio::time::{Instant, sleep, timeout};

use super::frames::{FrameLimit, Refusal};
use super::input::RunInput;
use super::message::{MessageError, parse};
use crate::server::ServerState;
use crate::server::accept::{self, ParsedBody};
use crate::server::auth::Caller;
use crate::server::bodies::MemoryShare;
use crate::server::connection::closed;
use crate::server::error::ApiError;
use crate::server::json::Parsed;

/// Pings in a row that a client may leave unanswered.
const MAX_UNANSWERED_PINGS: u32 = 3;

/// Time for a client to close its half of the connection after the server's close message.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(2);

/// An open WebSocket: both directions, and the caller that opened it.
pub(super) struct Conversation {
    caller: Caller,
    /// Whether unknown members are refused.
    is_strict: bool,
    state: web::Data<ServerState>,
    config: Arc<ActiveConfig>,
    sender: EventSender,
    messages: AggregatedMessageStream,
    frames: Rc<FrameLimit>,
    /// When the last message of the client arrived; `None` while the server reads none, because the program does not
    /// read its input.
    last_heard: Rc<Cell<Option<Instant>>>,
}

/// A message that was parsed.
struct ReceivedMessage {
    message: ClientMessage,
    /// Paths of the unknown members of an `execute` message.
    unknown: Vec<String>,
    /// Length of the message's text in bytes.
    bytes: usize,
    /// The message's share of the memory for request bodies.
    share: MemoryShare,
}

/// Reason why a WebSocket ends.
#[derive(Debug)]
enum End {
    /// The client has gone.
    Gone,
    /// The server closes the WebSocket with this code and reason.
    Close(CloseCode, &'static str),
}

impl From<Closed> for End {
    fn from(_: Closed) -> Self {
        Self::Gone
    }
}

impl Conversation {
    pub(super) fn new(
        caller: Caller,
        is_strict: bool,
        state: web::Data<ServerState>,
        config: Arc<ActiveConfig>,
        session: Session,
        messages: MessageStream,
        frames: Rc<FrameLimit>,
    ) -> Self {
        let messages = messages
            .max_frame_size(config.http.max_body)
            .aggregate_continuations()
            .max_continuation_size(config.http.max_body);
        let sender = EventSender {
            session,
            stall: config.startup.listen.stall_timeout,
        };
        Self {
            caller,
            is_strict,
            state,
            config,
            sender,
            messages,
            frames,
            last_heard: Rc::new(Cell::new(Some(Instant::now()))),
        }
    }

    /// Serves the WebSocket until its end. The run ends with the WebSocket, for whatever reason.
    pub(super) async fn serve(self, request: HttpRequest) {
        let sender = self.sender.clone();
        let end = tokio::select! {
            end = self.serve_messages() => end,
            () = closed(&request) => End::Gone,
        };
        if let End::Close(code, description) = end {
            let reason = CloseReason::from((code, description));
            // The socket stays open until the client has closed its half: if a socket is closed with unread input,
            // the kernel resets the connection, and output that the client has not read may be lost.
            let closing = async {
                let _ = sender.session.close(Some(reason)).await;
                closed(&request).await;
            };
            let _ = timeout(CLOSE_TIMEOUT, closing).await;
        }
    }

    async fn serve_messages(mut self) -> End {
        let idle = self.config.http.message_within;
        loop {
            let (request, share) = match timeout(idle, self.wait_for_request()).await {
                Ok(Ok(received)) => received,
                Ok(Err(end)) => return end,
                Err(_) => {
                    let problem = format!("no execute message within {} ms", idle.as_millis());
                    let _ = self.sender.send_error(problem).await;
                    return End::Close(CloseCode::Policy, "No execute message");
                }
            };
            let (run_input, input) = RunInput::new(&request.job);
            let (engine, tenant) = (&self.state.engine, self.caller.tenant.clone());
            let submitted = engine.submit(request, tenant, Some(input), &self.config);
            let problem = match submitted.await {
                Ok(events) => {
                    let end = self.follow(events, run_input).await;
                    // The job holds the message's content until its end.
                    drop(share);
                    return end;
                }
                Err(problem) => problem,
            };
            let refused = self.sender.send_refusal(problem.code, problem.to_string());
            if refused.await.is_err() {
                return End::Gone;
            }
        }
    }

    /// Waits for a valid `execute` message, and refuses all others.
    async fn wait_for_request(&mut self) -> Result<(ParsedRequest, MemoryShare), End> {
        loop {
            let message = self.next_message(self.config.http.max_body).await?;
            let checked = match message {
                Ok(message) => self.check_request(message).await,
                Err(problem) => Err(problem),
            };
            match checked {
                Ok(request) => return Ok(request),
                Err(problem) => {
                    let refusal = self
                        .sender
                        .send_refusal(problem.code(), problem.to_string());
                    refusal.await?;
                }
            }
        }
    }

    async fn check_request(
        &self,
        received: ReceivedMessage,
    ) -> Result<(ParsedRequest, MemoryShare), ApiError> {
        let ReceivedMessage {
            message,
            unknown,
            bytes,
            share,
        } = received;
        let ClientMessage::Execute(body) = message else {
            let problem = "nothing runs yet, send an execute message first";
            return Err(ApiError::new(ErrorCode::InvalidRequest, problem));
        };
        let tenant = &self.caller.tenant;
        let parsed = ParsedBody {
            body: *body,
            unknown,
            bytes,
        };
        let checked = accept::check(parsed, self.is_strict, tenant, &self.state, &self.config);
        Ok((checked.await?, share))
    }

    /// Follows a run until its end, or the end of the WebSocket.
    async fn follow(mut self, events: JobStream, run_input: RunInput) -> End {
        self.frames.set(self.config.http.max_message);
        let (sender, pinger) = (self.sender.clone(), self.sender.clone());
        let (last_heard, ping_every) = (Rc::clone(&self.last_heard), self.config.http.ping_every);
        tokio::select! {
            end = send_events(events, sender) => end,
            end = self.read_input(run_input) => end,
            end = ping(pinger, ping_every, last_heard) => end,
        }
    }

    /// Passes the client's input to its run, until the client closes the WebSocket.
    async fn read_input(&mut self, mut run_input: RunInput) -> End {
        loop {
            let applied = match self.next_message(self.config.http.max_message).await {
                Ok(Ok(received)) => self.apply(received.message, &mut run_input).await,
                Ok(Err(problem)) => Err(problem.to_string()),
                Err(end) => return end,
            };
            if let Err(problem) = applied
                && self.sender.send_error(problem).await.is_err()
            {
                return End::Gone;
            }
        }
    }

    async fn apply(&self, message: ClientMessage, run_input: &mut RunInput) -> Result<(), String> {
        match message {
            ClientMessage::Execute(_) => {
                Err("a run is under way, open another WebSocket for the next".to_owned())
            }
            ClientMessage::Signal { signal } => run_input.signal(signal),
            ClientMessage::Resize { cols, rows } => run_input.resize(cols, rows),
            ClientMessage::Stdin { data, encoding } => {
                let stdin = run_input.stdin()?;
                let bytes = jobs::bytes("stdin.data", data, encoding);
                let bytes = bytes.map_err(|error| error.to_string())?;
                self.last_heard.set(None);
                // If the run has ended, its `exit` event is on the way to the client.
                let _ = stdin.send(bytes).await;
                self.last_heard.set(Some(Instant::now()));
                Ok(())
            }
            ClientMessage::StdinEnd => run_input.end_stdin(),
        }
    }

    async fn parse(
        &self,
        text: impl AsRef<str> + Send + 'static,
    ) -> Result<Result<ReceivedMessage, MessageError>, ApiError> {
        let (bytes, bodies) = (text.as_ref().len(), &self.state.bodies);
        // The message is in memory already: waiting for a share would not save any, so it is refused instead.
        let share = bodies.try_share(bytes).ok_or_else(ApiError::no_memory)?;
        let bounds = accept::bounds(&self.config);
        let parsing = bodies.work(bytes, move || parse(text.as_ref(), &bounds));
        let parsed = parsing.await?;
        Ok(parsed.map(|Parsed { value, unknown }| ReceivedMessage {
            message: value,
            unknown,
            bytes,
            share,
        }))
    }

    /// Sends the client the reason why the server reads no more of its frames.
    async fn refuse_frame(&mut self, refusal: Refusal, limit: usize) -> End {
        if refusal == Refusal::LongControl {
            return End::Close(CloseCode::Protocol, "Protocol error");
        }
        let problem = format!("message is larger than {limit} bytes");
        match self.sender.send_error(problem).await {
            Ok(()) => End::Close(CloseCode::Size, "Message too large"),
            Err(Closed) => End::Gone,
        }
    }

    /// Waits for the next message. The inner error is about this message, the outer one ends the WebSocket.
    async fn next_message(
        &mut self,
        limit: usize,
    ) -> Result<Result<ReceivedMessage, ApiError>, End> {
        loop {
            let received = self.messages.recv().await;
            self.last_heard.set(Some(Instant::now()));
            if let Some(refusal) = self.frames.refused() {
                return Err(self.refuse_frame(refusal, limit).await);
            }
            match received {
                Some(Ok(AggregatedMessage::Text(text))) if text.len() <= limit => {
                    match self.parse(text).await {
                        Ok(Err(MessageError::NotJson(problem))) => {
                            self.sender.send_error(problem).await?;
                            return Err(End::Close(CloseCode::Unsupported, "Invalid JSON"));
                        }
                        Ok(Err(MessageError::Invalid(problem))) => {
                            return Ok(Err(ApiError::new(ErrorCode::InvalidRequest, problem)));
                        }
                        Ok(Ok(received)) => return Ok(Ok(received)),
                        Err(problem) => return Ok(Err(problem)),
                    }
                }
                Some(Ok(AggregatedMessage::Text(_)) | Err(ProtocolError::Overflow)) => {
                    return Err(self.refuse_frame(Refusal::TooLarge, limit).await);
                }
                Some(Ok(AggregatedMessage::Binary(_))) => {
                    let problem = "message is binary, expected text".to_owned();
                    self.sender.send_error(problem).await?;
                    return Err(End::Close(CloseCode::Unsupported, "Binary message"));
                }
                Some(Ok(AggregatedMessage::Ping(bytes))) => {
                    self.sender.session.pong(&bytes).await?
                }
                Some(Ok(AggregatedMessage::Pong(_))) => {}
                Some(Ok(AggregatedMessage::Close(_))) => {
                    return Err(End::Close(CloseCode::Normal, ""));
                }
                Some(Err(_)) => return Err(End::Close(CloseCode::Protocol, "Protocol error")),
                None => return Err(End::Gone),
            }
        }
    }
}

/// Sends the events of the run to the client, until the last one.
async fn send_events(mut events: JobStream, mut sender: EventSender) -> End {
    while let Some(event) = events.next().await {
        let failed = event.is_err();
        let event = event.unwrap_or_else(|error| error.last_event());
        if sender.send(&event).await.is_err() {
            return End::Gone;
        }
        if failed {
            return End::Close(CloseCode::Error, "Execution failed");
        }
    }
    End::Close(CloseCode::Normal, "Execution complete")
}

/// Pings the client at this interval, and returns when it has left [`MAX_UNANSWERED_PINGS`] unanswered.
async fn ping(
    mut sender: EventSender,
    every: Duration,
    last_heard: Rc<Cell<Option<Instant>>>,
) -> End {
    let timeout_after = every.saturating_mul(MAX_UNANSWERED_PINGS);
    loop {
        sleep(every).await;
        let silent = last_heard.get().map(|heard| heard.elapsed());
        if silent.is_some_and(|silent| silent > timeout_after) {
            return End::Gone;
        }
        // A ping that cannot be sent in time counts as unanswered: a client that reads no data sends no answers.
        if let Ok(Err(Closed)) = timeout(every, sender.session.ping(b"")).await {
            return End::Gone;
        }
    }
}

/// Sends events to the client. Clones share the connection.
#[derive(Clone)]
struct EventSender {
    session: Session,
    /// Time in which the client has to accept an event.
    stall: Duration,
}

impl EventSender {
    async fn send_error(&mut self, data: String) -> Result<(), Closed> {
        let event = StreamEvent::new(EventKind::Error, data, Phase::Code);
        self.send(&event).await
    }

    /// Sends the refusal of a request, with the code that the response over HTTP would have.
    async fn send_refusal(&mut self, code: ErrorCode, data: String) -> Result<(), Closed> {
        let mut event = StreamEvent::new(EventKind::Error, data, Phase::Code);
        event.ending.code = Some(code);
        self.send(&event).await
    }

    async fn send(&mut self, event: &StreamEvent) -> Result<(), Closed> {
        // An event consists of strings and fixed names, which JSON can always express.
        let text = serde_json::to_string(event).map_err(|_| Closed)?;
        let sending = self.session.text(text);
        timeout(self.stall, sending).await.unwrap_or(Err(Closed))
    }
}
