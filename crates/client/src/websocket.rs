//! Runs over a WebSocket, which carries their events and their input.

use futures::stream::{SplitSink, SplitStream};
use futures::{SinkExt as _, Stream, StreamExt as _};
use isol8_api::{ClientMessage, ErrorCode, ExecuteBody, StreamEvent};
use reqwest::header::{
    CONNECTION, SEC_WEBSOCKET_ACCEPT, SEC_WEBSOCKET_KEY, SEC_WEBSOCKET_VERSION, UPGRADE,
};
use reqwest::{RequestBuilder, Response, StatusCode, Upgraded};
use tokio::sync::mpsc;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::handshake::client::generate_key;
use tokio_tungstenite::tungstenite::handshake::derive_accept_key;
use tokio_tungstenite::tungstenite::protocol::{Role, WebSocketConfig};
use tokio_tungstenite::tungstenite::{Error, Message};

use crate::ClientError;
use crate::error::refusal;
use crate::retry::Deadline;
use crate::run::{RunInput, RunStream, event};

type Socket = WebSocketStream<Upgraded>;

/// The outcome of a request for a WebSocket.
pub(crate) enum Upgrade {
    Socket(Box<Socket>),
    /// The server or a proxy does not support WebSockets.
    Refused,
}

/// Requests a WebSocket, by the same HTTP client as all requests, so that the same certificates are trusted and the
/// same proxies are used. No run is started yet.
pub(crate) async fn upgrade(request: RequestBuilder) -> Result<Upgrade, ClientError> {
    let key = generate_key();
    let request = request
        .header(CONNECTION, "Upgrade")
        .header(UPGRADE, "websocket")
        .header(SEC_WEBSOCKET_VERSION, "13")
        .header(SEC_WEBSOCKET_KEY, &key);
    let response = match request.send().await {
        Ok(response) => response,
        Err(error) if error.is_connect() => return Err(error.into()),
        // Some proxies close the connection instead of answering.
        Err(_) => return Ok(Upgrade::Refused),
    };
    if response.status() != StatusCode::SWITCHING_PROTOCOLS {
        return refused(refusal(response).await);
    }
    if !accepts(&response, &key) {
        return Ok(Upgrade::Refused);
    }
    let Ok(upgraded) = response.upgrade().await else {
        return Ok(Upgrade::Refused);
    };
    // The exit event may contain files of any size, like a result.
    let config = WebSocketConfig::default()
        .max_message_size(None)
        .max_frame_size(None);
    let socket = WebSocketStream::from_raw_socket(upgraded, Role::Client, Some(config)).await;
    Ok(Upgrade::Socket(Box::new(socket)))
}

/// Distinguishes a refusal of WebSockets from a refusal of the caller. The server answers with one of these codes only
/// if a proxy has turned the request into an ordinary one, or if the server is too old for WebSockets.
fn refused(answer: ClientError) -> Result<Upgrade, ClientError> {
    match answer.code() {
        None
        | Some(ErrorCode::InvalidRequest | ErrorCode::NotFound | ErrorCode::MethodNotAllowed) => {
            Ok(Upgrade::Refused)
        }
        Some(_) => Err(answer),
    }
}

fn accepts(response: &Response, key: &str) -> bool {
    let accept = response.headers().get(SEC_WEBSOCKET_ACCEPT);
    accept.is_some_and(|accept| accept.as_bytes() == derive_accept_key(key.as_bytes()).as_bytes())
}

/// Starts a run over a WebSocket.
pub(crate) fn run(
    socket: Socket,
    body: &ExecuteBody,
    deadline: Deadline,
) -> Result<RunStream, ClientError> {
    let is_open = body.request.stdin.is_none();
    let execute = encoded(&ClientMessage::Execute(Box::new(body.clone())))?;
    let (sink, stream) = socket.split();
    // A channel of one message, so that further messages wait at their sender.
    let (sender, messages) = mpsc::channel(1);
    let sending = async move {
        // If sending fails, the events end with an error too.
        let _ = send_messages(sink, execute, messages, is_open).await;
    };
    let input = Some(RunInput(sender));
    Ok(RunStream::with_input(
        events(stream),
        sending,
        input,
        deadline,
    ))
}

/// Sends the request and the messages, and at their end `stdinEnd` if standard input is still open.
async fn send_messages(
    mut sink: SplitSink<Socket, Message>,
    execute: Message,
    mut messages: mpsc::Receiver<ClientMessage>,
    mut is_open: bool,
) -> Result<(), ClientError> {
    let broken = |_: Error| ClientError::BrokenOff;
    sink.send(execute).await.map_err(broken)?;
    while let Some(message) = messages.recv().await {
        // Standard input that has ended, or was never open, is not ended again.
        if matches!(message, ClientMessage::StdinEnd) && !std::mem::take(&mut is_open) {
            continue;
        }
        sink.send(encoded(&message)?).await.map_err(broken)?;
    }
    if is_open {
        let end = encoded(&ClientMessage::StdinEnd)?;
        sink.send(end).await.map_err(broken)?;
    }
    Ok(())
}

fn encoded(message: &ClientMessage) -> Result<Message, ClientError> {
    let text = serde_json::to_string(message);
    let text = text.map_err(|error| ClientError::Unexpected(error.to_string()))?;
    Ok(Message::text(text))
}

fn events(
    stream: SplitStream<Socket>,
) -> impl Stream<Item = Result<StreamEvent, ClientError>> + Send {
    stream.filter_map(async |message| match message {
        Ok(Message::Text(text)) => Some(event(&text)),
        // Pings are answered below; after a close, the stream ends.
        Ok(_) => None,
        Err(_) => Some(Err(ClientError::BrokenOff)),
    })
}
