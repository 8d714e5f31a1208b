//! A run whose events are followed, over any transport.

use std::fmt;
use std::pin::{Pin, pin};
use std::task::{Context, Poll};

use futures::{Stream, StreamExt};
use isol8_api::{ClientMessage, Encoding, EventKind, SignalName, StreamEvent};
use tokio::sync::mpsc;
use tokio_util::task::AbortOnDropHandle;

use crate::ClientError;
use crate::retry::Deadline;

/// Maximum size of the text of one `stdin` message in bytes. Even escaped, it is smaller than the mebibyte that a
/// server accepts.
const MAX_STDIN_BYTES: usize = 64 << 10;

/// The events of a run: a [`Stream`] whose last item is an [`EventKind::Exit`] or an error.
///
/// Dropping the stream ends the run. A slow reader of the events slows the program down; a run whose events are not
/// read for most of a minute is ended.
pub struct RunStream {
    events: mpsc::Receiver<Result<StreamEvent, ClientError>>,
    input: Option<RunInput>,
    _task: AbortOnDropHandle<()>,
}

impl fmt::Debug for RunStream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RunStream")
            .field("input", &self.input)
            .finish_non_exhaustive()
    }
}

impl RunStream {
    /// Creates the stream of a run without an input channel.
    pub(crate) fn without_input(
        events: impl Stream<Item = Result<StreamEvent, ClientError>> + Send + 'static,
        deadline: Deadline,
    ) -> Self {
        Self::with_input(events, std::future::pending(), None, deadline)
    }

    /// Creates the stream of a run from its events. The future `sending` sends the messages of `input` to the server.
    pub(crate) fn with_input(
        events: impl Stream<Item = Result<StreamEvent, ClientError>> + Send + 'static,
        sending: impl Future<Output = ()> + Send + 'static,
        input: Option<RunInput>,
        deadline: Deadline,
    ) -> Self {
        // A channel of one event, so that a slow reader slows the run down.
        let (sender, receiver) = mpsc::channel(1);
        let task = async move {
            let receiving = async {
                let passed = async {
                    pass_on(events, &sender).await;
                    Ok::<_, ClientError>(())
                };
                if let Err(over) = deadline.bound(passed).await {
                    let _ = sender.send(Err(over)).await;
                }
            };
            let sending = async {
                sending.await;
                // All input is sent; the run is over when its events end.
                std::future::pending::<()>().await;
            };
            tokio::select! {
                () = receiving => {}
                () = sending => {}
            }
        };
        Self {
            events: receiver,
            input,
            _task: AbortOnDropHandle::new(tokio::spawn(task)),
        }
    }

    /// Returns the handle for input to the program. Returns `None` if the handle was taken before, if the run is
    /// followed over server-sent events, or after the first event was read: a program whose handle was not taken by
    /// then reads the end of its standard input, after `request.stdin`.
    pub fn take_input(&mut self) -> Option<RunInput> {
        self.input.take()
    }

    /// Returns the next event; `None` after the last.
    pub async fn next(&mut self) -> Option<Result<StreamEvent, ClientError>> {
        StreamExt::next(self).await
    }
}

impl Stream for RunStream {
    type Item = Result<StreamEvent, ClientError>;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        self.input = None;
        self.events.poll_recv(context)
    }
}

/// The input of the program of a [`RunStream`]. If the program is slow, messages wait in order. Clones send to the same
/// program; when the last clone is dropped, its standard input ends.
#[derive(Clone, Debug)]
pub struct RunInput(pub(crate) mpsc::Sender<ClientMessage>);

impl RunInput {
    /// Writes to standard input, or types at the terminal. Only for requests without `stdin`.
    ///
    /// # Errors
    /// Returns [`ClientError::RunEnded`] if the run has ended.
    pub async fn stdin(&self, text: &str) -> Result<(), ClientError> {
        let mut rest = text;
        while !rest.is_empty() {
            let (piece, after) = rest.split_at(rest.floor_char_boundary(MAX_STDIN_BYTES));
            let data = piece.to_owned();
            let encoding = Encoding::Utf8;
            self.send(ClientMessage::Stdin { data, encoding }).await?;
            rest = after;
        }
        Ok(())
    }

    /// Writes bytes to standard input, sent as text if they are UTF-8 and in base64 otherwise. Only for requests
    /// without `stdin`.
    ///
    /// # Errors
    /// Returns [`ClientError::RunEnded`] if the run has ended.
    pub async fn stdin_bytes(&self, bytes: &[u8]) -> Result<(), ClientError> {
        for piece in bytes.chunks(MAX_STDIN_BYTES) {
            let (data, encoding) = Encoding::encode(piece.to_vec());
            self.send(ClientMessage::Stdin { data, encoding }).await?;
        }
        Ok(())
    }

    /// Ends standard input. Does nothing if standard input has already ended.
    ///
    /// # Errors
    /// Returns [`ClientError::RunEnded`] if the run has ended.
    pub async fn end_stdin(&self) -> Result<(), ClientError> {
        self.send(ClientMessage::StdinEnd).await
    }

    /// Sends a signal to the program.
    ///
    /// # Errors
    /// Returns [`ClientError::RunEnded`] if the run has ended.
    pub async fn signal(&self, signal: SignalName) -> Result<(), ClientError> {
        self.send(ClientMessage::Signal { signal }).await
    }

    /// Changes the size of the program's terminal, in characters, 1 to 1000 for each side.
    ///
    /// # Errors
    /// Returns [`ClientError::RunEnded`] if the run has ended.
    pub async fn resize(&self, cols: u32, rows: u32) -> Result<(), ClientError> {
        self.send(ClientMessage::Resize { cols, rows }).await
    }

    async fn send(&self, message: ClientMessage) -> Result<(), ClientError> {
        let sent = self.0.send(message).await;
        sent.map_err(|_| ClientError::RunEnded)
    }
}

/// Forwards events up to the last one.
async fn pass_on(
    events: impl Stream<Item = Result<StreamEvent, ClientError>>,
    sender: &mpsc::Sender<Result<StreamEvent, ClientError>>,
) {
    let mut events = pin!(events);
    // For a server that does not mark the last event.
    let mut complaint = None;
    loop {
        let (event, is_last) = match events.next().await {
            Some(Ok(event)) => match (event.kind, event.ending.code) {
                (EventKind::Exit, _) => (Ok(event), true),
                (EventKind::Error, code @ Some(_)) => {
                    let message = event.data;
                    (Err(ClientError::Failed { code, message }), true)
                }
                (EventKind::Error, None) => {
                    complaint = Some(event.data.clone());
                    (Ok(event), false)
                }
                (EventKind::Stdout | EventKind::Stderr, _) => (Ok(event), false),
            },
            Some(Err(error)) => (Err(error), true),
            None => (Err(ended_without_exit(complaint.take())), true),
        };
        if sender.send(event).await.is_err() || is_last {
            return;
        }
    }
}

fn ended_without_exit(complaint: Option<String>) -> ClientError {
    match complaint {
        Some(message) => ClientError::Failed {
            code: None,
            message,
        },
        None => ClientError::BrokenOff,
    }
}

/// Parses an event from its JSON.
pub(crate) fn event(text: &str) -> Result<StreamEvent, ClientError> {
    serde_json::from_str(text).map_err(|error| ClientError::Unexpected(error.to_string()))
}
