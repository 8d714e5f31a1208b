//! A client of `GET /execute/ws`.

use futures::{SinkExt as _, StreamExt as _};
use isol8_api::{EventKind, StreamEvent};
use serde_json::{Value, json};
use tokio::net::TcpStream;
use tokio_tungstenite::tungstenite::client::IntoClientRequest as _;
use tokio_tungstenite::tungstenite::{Error, Message};
use tokio_tungstenite::{MaybeTlsStream, WebSocketStream, connect_async};

use crate::harness::{KEY, PATIENCE, Server};

pub(crate) struct Socket(pub(crate) WebSocketStream<MaybeTlsStream<TcpStream>>);

impl Socket {
    pub(crate) async fn open(server: &Server) -> Self {
        Self::try_open(server, Some(KEY)).await.unwrap()
    }

    pub(crate) async fn try_open(server: &Server, key: Option<&str>) -> Result<Self, Error> {
        let mut request = format!("ws://{}/execute/ws", server.address)
            .into_client_request()
            .unwrap();
        if let Some(key) = key {
            let value = format!("Bearer {key}").parse().unwrap();
            request.headers_mut().insert("authorization", value);
        }
        connect_async(request).await.map(|(socket, _)| Self(socket))
    }

    pub(crate) async fn send(&mut self, message: Value) {
        self.send_text(&message.to_string()).await;
    }

    pub(crate) async fn send_text(&mut self, text: &str) {
        self.0.send(Message::text(text)).await.unwrap();
    }

    pub(crate) async fn execute(&mut self, code: &str) {
        let request = json!({"runtime": "python", "code": code});
        self.send(json!({"type": "execute", "request": request}))
            .await;
    }

    /// The next event, or the code and the reason of the close.
    pub(crate) async fn next(&mut self) -> Result<StreamEvent, (u16, String)> {
        loop {
            let message = tokio::time::timeout(PATIENCE, self.0.next()).await.unwrap();
            match message.expect("ended without a close").unwrap() {
                Message::Text(text) => return Ok(serde_json::from_str(&text).unwrap()),
                Message::Close(Some(frame)) => {
                    return Err((frame.code.into(), frame.reason.to_string()));
                }
                Message::Ping(_) => {}
                other => panic!("{other:?}"),
            }
        }
    }

    /// Everything up to a close after an exit.
    pub(crate) async fn rest(&mut self) -> Vec<StreamEvent> {
        let mut events = Vec::new();
        loop {
            match self.next().await {
                Ok(event) => events.push(event),
                Err(closed) => {
                    assert_eq!(
                        closed,
                        (1000, "Execution complete".to_owned()),
                        "{events:?}"
                    );
                    return events;
                }
            }
        }
    }

    pub(crate) async fn refused(&mut self) -> String {
        let said = self.next().await.unwrap();
        assert_eq!(said.kind, EventKind::Error, "{said:?}");
        said.data
    }
}
