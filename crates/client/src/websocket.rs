//! Events over a WebSocket, on which the program can be spoken to.

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

/// The outcome of asking for a WebSocket.
pub(crate) enum Opened {
    Socket(Box<Socket>),
    /// Something on the way, or the server, lets none pass.
    Refused,
}

/// Asks for a WebSocket, by the same HTTP client as everything else: so it trusts the same certificates
/// and takes the same proxies. Nothing runs yet.
pub(crate) async fn open(request: RequestBuilder) -> Result<Opened, ClientError> {
    let key = generate_key();
    let request = request
        .header(CONNECTION, "Upgrade")
        .header(UPGRADE, "websocket")
        .header(SEC_WEBSOCKET_VERSION, "13")
        .header(SEC_WEBSOCKET_KEY, &key);
    let response = match request.send().await {
        Ok(response) => response,
        Err(error) if error.is_connect() => return Err(error.into()),
        // Some proxies hang up instead of answering.
        Err(_) => return Ok(Opened::Refused),
    };
    if response.status() != StatusCode::SWITCHING_PROTOCOLS {
        return refused(refusal(response).await);
    }
    if !accepts(&response, &key) {
        return Ok(Opened::Refused);
    }
    let Ok(upgraded) = response.upgrade().await else {
        return Ok(Opened::Refused);
    };
    // An exit may carry files of any size, as a result may.
    let config = WebSocketConfig::default()
        .max_message_size(None)
        .max_frame_size(None);
    let socket = WebSocketStream::from_raw_socket(upgraded, Role::Client, Some(config)).await;
    Ok(Opened::Socket(Box::new(socket)))
}

/// Tells a refusal of WebSockets from one of the caller. The server itself has nothing against a request
/// for a WebSocket, unless a proxy has made an ordinary one of it, or the server is too old.
fn refused(answer: ClientError) -> Result<Opened, ClientError> {
    match answer.code() {
        None
        | Some(ErrorCode::InvalidRequest | ErrorCode::NotFound | ErrorCode::MethodNotAllowed) => {
            Ok(Opened::Refused)
        }
        Some(_) => Err(answer),
    }
}

fn accepts(response: &Response, key: &str) -> bool {
    let accept = response.headers().get(SEC_WEBSOCKET_ACCEPT);
    accept.is_some_and(|accept| accept.as_bytes() == derive_accept_key(key.as_bytes()).as_bytes())
}

/// Runs over a WebSocket.
pub(crate) fn run(
    socket: Socket,
    body: &ExecuteBody,
    deadline: Deadline,
) -> Result<RunStream, ClientError> {
    let is_open = body.request.stdin.is_none();
    let execute = encoded(&ClientMessage::Execute(Box::new(body.clone())))?;
    let (sink, stream) = socket.split();
    // Messages are passed one at a time: the rest waits at its sender.
    let (sender, messages) = mpsc::channel(1);
    let speaking = async move {
        // If it fails, the events end, and report it.
        let _ = speak(sink, execute, messages, is_open).await;
    };
    let input = Some(RunInput(sender));
    Ok(RunStream::carried(
        events(stream),
        speaking,
        input,
        deadline,
    ))
}

/// Says what there is to say, and then that standard input has ended, if it was open.
async fn speak(
    mut sink: SplitSink<Socket, Message>,
    execute: Message,
    mut messages: mpsc::Receiver<ClientMessage>,
    mut is_open: bool,
) -> Result<(), ClientError> {
    let broken = |_: Error| ClientError::BrokenOff;
    sink.send(execute).await.map_err(broken)?;
    while let Some(message) = messages.recv().await {
        // An input that has ended, or was never open, need not be ended.
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
