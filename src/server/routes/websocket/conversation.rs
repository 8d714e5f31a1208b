//! The messages over one WebSocket, from its start to its end.

use std::cell::Cell;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use actix_web::{HttpRequest, web};
use actix_ws::{
    AggregatedMessage, AggregatedMessageStream, CloseCode, CloseReason, Closed, MessageStream,
    ProtocolError, Session,
};
use isol8_actors::{Job, JobStream};
use isol8_api::{ClientMessage, ErrorCode, EventKind, Phase, SessionId, StreamEvent};
use tokio::time::{Instant, sleep, timeout};

use super::frames::{FrameLimit, Refusal};
use super::input::Hand;
use super::message::{MessageError, parse};
use crate::config::Config;
use crate::jobs::{self, ParsedRequest};
use crate::server::State;
use crate::server::accept::{self, Sent};
use crate::server::auth::Caller;
use crate::server::bodies::Share;
use crate::server::connection::closed;
use crate::server::error::ApiError;
use crate::server::json::Parsed;

/// How many times in a row a client may answer no ping.
const UNANSWERED: u32 = 3;

/// How long a client may take to see that it is over.
const FAREWELL: Duration = Duration::from_secs(2);

/// A WebSocket's two directions.
pub(super) struct Conversation {
    caller: Caller,
    /// Members that are not known are refused.
    is_strict: bool,
    state: web::Data<State>,
    config: Arc<Config>,
    voice: Voice,
    messages: AggregatedMessageStream,
    frames: Rc<FrameLimit>,
    /// When the client was heard last; `None` while its messages are not read, because the program does not read its
    /// input.
    heard: Rc<Cell<Option<Instant>>>,
}

/// A message that was understood.
struct Received {
    message: ClientMessage,
    /// Paths of members that are not known, in a message of the type `execute`.
    unknown: Vec<String>,
    /// Bytes of its text.
    bytes: usize,
    /// Its share of the memory for bodies.
    share: Share,
}

/// Why a conversation ends.
#[derive(Debug)]
enum End {
    /// The client is gone.
    Gone,
    /// The server closes, and says why.
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
        state: web::Data<State>,
        config: Arc<Config>,
        session: Session,
        messages: MessageStream,
        frames: Rc<FrameLimit>,
    ) -> Self {
        let messages = messages
            .max_frame_size(config.max_body)
            .aggregate_continuations()
            .max_continuation_size(config.max_body);
        let voice = Voice {
            session,
            stall: config.stall_timeout,
        };
        Self {
            caller,
            is_strict,
            state,
            config,
            voice,
            messages,
            frames,
            heard: Rc::new(Cell::new(Some(Instant::now()))),
        }
    }

    /// Holds the conversation. Whatever ends it ends the run.
    pub(super) async fn hold(self, request: HttpRequest) {
        let voice = self.voice.clone();
        let end = tokio::select! {
            end = self.converse() => end,
            () = closed(&request) => End::Gone,
        };
        if let End::Close(code, description) = end {
            let reason = CloseReason::from((code, description));
            // The socket stays open until the client has closed its half: a socket that is closed with
            // something unread takes back what was written.
            let farewell = async {
                let _ = voice.session.close(Some(reason)).await;
                closed(&request).await;
            };
            let _ = timeout(FAREWELL, farewell).await;
        }
    }

    async fn converse(mut self) -> End {
        let idle = self.config.message_within;
        loop {
            let (order, share) = match timeout(idle, self.listen_for_order()).await {
                Ok(Ok(ordered)) => ordered,
                Ok(Err(end)) => return end,
                Err(_) => {
                    let problem = format!("no execute message within {} ms", idle.as_millis());
                    let _ = self.voice.error(problem).await;
                    return End::Close(CloseCode::Policy, "No execute message");
                }
            };
            let problem = match self.state.remote_code.complete(order, &self.config).await {
                Ok(complete) => {
                    let end = self.run(complete).await;
                    // The content of the message was in memory until now.
                    drop(share);
                    return end;
                }
                Err(problem) => problem,
            };
            let refused = self.voice.refuse(problem.code, problem.to_string());
            if refused.await.is_err() {
                return End::Gone;
            }
        }
    }

    /// Waits for a good `execute` message.
    async fn listen_for_order(&mut self) -> Result<(ParsedRequest, Share), End> {
        loop {
            let message = self.message(self.config.max_body).await?;
            let ordered = match message {
                Ok(message) => self.order(message).await,
                Err(problem) => Err(problem),
            };
            match ordered {
                Ok(ordered) => return Ok(ordered),
                Err(problem) => {
                    let refusal = self.voice.refuse(problem.code(), problem.to_string());
                    refusal.await?;
                }
            }
        }
    }

    async fn order(&self, received: Received) -> Result<(ParsedRequest, Share), ApiError> {
        let Received {
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
        let sent = Sent {
            body: *body,
            unknown,
            bytes,
        };
        let order = accept::order(sent, self.is_strict, tenant, &self.state, &self.config).await?;
        Ok((order, share))
    }

    async fn run(mut self, (job, session): (Job, Option<SessionId>)) -> End {
        self.frames.set(self.config.max_message);
        let (hand, input) = Hand::new(&job);
        let tenant = self.caller.tenant.clone();
        let service = &self.state.service;
        let events = service.execute_stream(tenant, session, job, Some(input));
        let (speaker, pinger) = (self.voice.clone(), self.voice.clone());
        let (heard, ping_every) = (Rc::clone(&self.heard), self.config.ping_every);
        tokio::select! {
            end = speak(events, speaker) => end,
            end = self.listen(hand) => end,
            end = ping(pinger, ping_every, heard) => end,
        }
    }

    /// Carries out what the client sends while its run goes on.
    async fn listen(&mut self, mut hand: Hand) -> End {
        loop {
            let carried_out = match self.message(self.config.max_message).await {
                Ok(Ok(received)) => self.carry_out(received.message, &mut hand).await,
                Ok(Err(problem)) => Err(problem.to_string()),
                Err(end) => return end,
            };
            if let Err(problem) = carried_out
                && self.voice.error(problem).await.is_err()
            {
                return End::Gone;
            }
        }
    }

    async fn carry_out(&self, message: ClientMessage, hand: &mut Hand) -> Result<(), String> {
        match message {
            ClientMessage::Execute(_) => {
                Err("a run is under way, open another WebSocket for the next".to_owned())
            }
            ClientMessage::Signal { signal } => hand.signal(signal),
            ClientMessage::Resize { cols, rows } => hand.resize(cols, rows),
            ClientMessage::Stdin { data, encoding } => {
                let open = hand.stdin()?;
                let bytes = jobs::bytes("stdin.data", data, encoding);
                let bytes = bytes.map_err(|error| error.to_string())?;
                self.heard.set(None);
                // If the run has ended, its exit is on the way.
                let _ = open.send(bytes).await;
                self.heard.set(Some(Instant::now()));
                Ok(())
            }
            ClientMessage::StdinEnd => hand.end_stdin(),
        }
    }

    async fn parse(
        &self,
        text: impl AsRef<str> + Send + 'static,
    ) -> Result<Result<Received, MessageError>, ApiError> {
        let (bytes, bodies) = (text.as_ref().len(), &self.state.bodies);
        // The message is in memory already, so it is refused rather than kept waiting for a share.
        let share = bodies.try_share(bytes).ok_or_else(ApiError::no_memory)?;
        let bounds = accept::bounds(&self.config);
        let parsing = bodies.work(bytes, move || parse(text.as_ref(), &bounds));
        let parsed = parsing.await?;
        Ok(parsed.map(|Parsed { value, unknown }| Received {
            message: value,
            unknown,
            bytes,
            share,
        }))
    }

    /// Tells the client why nothing more is read from it.
    async fn refuse_frame(&mut self, refusal: Refusal, limit: usize) -> End {
        if refusal == Refusal::LongControl {
            return End::Close(CloseCode::Protocol, "Protocol error");
        }
        let problem = format!("message is larger than {limit} bytes");
        match self.voice.error(problem).await {
            Ok(()) => End::Close(CloseCode::Size, "Message too large"),
            Err(Closed) => End::Gone,
        }
    }

    /// The next message, or what is wrong with it.
    async fn message(&mut self, limit: usize) -> Result<Result<Received, ApiError>, End> {
        loop {
            let received = self.messages.recv().await;
            self.heard.set(Some(Instant::now()));
            if let Some(refusal) = self.frames.refused() {
                return Err(self.refuse_frame(refusal, limit).await);
            }
            match received {
                Some(Ok(AggregatedMessage::Text(text))) if text.len() <= limit => {
                    match self.parse(text).await {
                        Ok(Err(MessageError::NotJson(problem))) => {
                            self.voice.error(problem).await?;
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
                    self.voice.error(problem).await?;
                    return Err(End::Close(CloseCode::Unsupported, "Binary message"));
                }
                Some(Ok(AggregatedMessage::Ping(bytes))) => self.voice.session.pong(&bytes).await?,
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

/// Tells the client what happens in its run.
async fn speak(mut events: JobStream, mut voice: Voice) -> End {
    while let Some(event) = events.next().await {
        let failed = event.is_err();
        let event = event.unwrap_or_else(|error| error.last_event());
        if voice.say(&event).await.is_err() {
            return End::Gone;
        }
        if failed {
            return End::Close(CloseCode::Error, "Execution failed");
        }
    }
    End::Close(CloseCode::Normal, "Execution complete")
}

/// Asks the client whether it is there, until it is not.
async fn ping(mut voice: Voice, every: Duration, heard: Rc<Cell<Option<Instant>>>) -> End {
    let patience = every.saturating_mul(UNANSWERED);
    loop {
        sleep(every).await;
        let silent = heard.get().map(|heard| heard.elapsed());
        if silent.is_some_and(|silent| silent > patience) {
            return End::Gone;
        }
        // A client that takes nothing answers nothing.
        if let Ok(Err(Closed)) = timeout(every, voice.session.ping(b"")).await {
            return End::Gone;
        }
    }
}

/// The sender of messages to the client.
#[derive(Clone)]
struct Voice {
    session: Session,
    /// How long the client may take nothing.
    stall: Duration,
}

impl Voice {
    async fn error(&mut self, data: String) -> Result<(), Closed> {
        let event = StreamEvent::new(EventKind::Error, data, Phase::Code);
        self.say(&event).await
    }

    /// Says that what was asked for is not done, as an answer over HTTP would.
    async fn refuse(&mut self, code: ErrorCode, data: String) -> Result<(), Closed> {
        let mut event = StreamEvent::new(EventKind::Error, data, Phase::Code);
        event.ending.code = Some(code);
        self.say(&event).await
    }

    async fn say(&mut self, event: &StreamEvent) -> Result<(), Closed> {
        // Strings and fixed names: nothing that JSON does not know.
        let text = serde_json::to_string(event).map_err(|_| Closed)?;
        let saying = self.session.text(text);
        timeout(self.stall, saying).await.unwrap_or(Err(Closed))
    }
}
