//! A run that is followed, whatever carries its events.

use std::fmt;
use std::pin::{Pin, pin};
use std::task::{Context, Poll};

use futures::{Stream, StreamExt};
use isol8_api::{ClientMessage, Encoding, EventKind, SignalName, StreamEvent};
use tokio::sync::mpsc;
use tokio_util::task::AbortOnDropHandle;

use crate::ClientError;
use crate::retry::Deadline;

/// Characters of one `stdin` message: escaped, still less than the mebibyte that a server takes.
const STDIN_PIECE: usize = 64 << 10;

/// The events of a run: a [`Stream`] whose last item is an [`EventKind::Exit`] or an error.
///
/// Dropping it ends the run. Events that are not taken slow the program down; a run whose events are not taken for most
/// of a minute is ended.
pub struct RunStream {
    events: mpsc::Receiver<Result<StreamEvent, ClientError>>,
    input: Option<RunInput>,
    _carrier: AbortOnDropHandle<()>,
}

impl fmt::Debug for RunStream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RunStream")
            .field("input", &self.input)
            .finish_non_exhaustive()
    }
}

impl RunStream {
    /// A run that cannot be spoken to.
    pub(crate) fn heard(
        events: impl Stream<Item = Result<StreamEvent, ClientError>> + Send + 'static,
        deadline: Deadline,
    ) -> Self {
        Self::carried(events, std::future::pending(), None, deadline)
    }

    /// A run whose events come from a stream, and whose input goes where `speaking` brings it.
    pub(crate) fn carried(
        events: impl Stream<Item = Result<StreamEvent, ClientError>> + Send + 'static,
        speaking: impl Future<Output = ()> + Send + 'static,
        input: Option<RunInput>,
        deadline: Deadline,
    ) -> Self {
        // Events are passed one at a time: the rest waits in the run, which slows down.
        let (sender, receiver) = mpsc::channel(1);
        let carrier = async move {
            let listening = async {
                let passed = async {
                    pass_on(events, &sender).await;
                    Ok::<_, ClientError>(())
                };
                if let Err(over) = deadline.bound(passed).await {
                    let _ = sender.send(Err(over)).await;
                }
            };
            let speaking = async {
                speaking.await;
                // Nothing more to say; the events decide when it is over.
                std::future::pending::<()>().await;
            };
            tokio::select! {
                () = listening => {}
                () = speaking => {}
            }
        };
        Self {
            events: receiver,
            input,
            _carrier: AbortOnDropHandle::new(tokio::spawn(carrier)),
        }
    }

    /// Returns the handle that speaks to the program. `None` if it was taken, or if the run is followed over
    /// server-sent events, or if it was not asked for before the first event was taken: a program whose standard input
    /// was not taken reads its end, and `request.stdin` before that.
    pub fn take_input(&mut self) -> Option<RunInput> {
        self.input.take()
    }

    /// The next event; `None` after the last.
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

/// Speaks to the program of a [`RunStream`]. Messages wait, in order, if the program is slow. Clones speak to the same
/// program; once the last is dropped, its standard input ends.
#[derive(Clone, Debug)]
pub struct RunInput(pub(crate) mpsc::Sender<ClientMessage>);

impl RunInput {
    /// Writes to standard input, or types at the terminal. Only for requests without `stdin`.
    ///
    /// # Errors
    /// [`ClientError::RunEnded`].
    pub async fn stdin(&self, text: &str) -> Result<(), ClientError> {
        let mut rest = text;
        while !rest.is_empty() {
            let (piece, after) = rest.split_at(rest.floor_char_boundary(STDIN_PIECE));
            let data = piece.to_owned();
            let encoding = Encoding::Utf8;
            self.send(ClientMessage::Stdin { data, encoding }).await?;
            rest = after;
        }
        Ok(())
    }

    /// Writes bytes to standard input: as text where they are UTF-8, and in base64 otherwise. Only for requests
    /// without `stdin`.
    ///
    /// # Errors
    /// [`ClientError::RunEnded`].
    pub async fn stdin_bytes(&self, bytes: &[u8]) -> Result<(), ClientError> {
        for piece in bytes.chunks(STDIN_PIECE) {
            let (data, encoding) = Encoding::encode(piece.to_vec());
            self.send(ClientMessage::Stdin { data, encoding }).await?;
        }
        Ok(())
    }

    /// Ends standard input. If it has ended, this does nothing.
    ///
    /// # Errors
    /// [`ClientError::RunEnded`].
    pub async fn end_stdin(&self) -> Result<(), ClientError> {
        self.send(ClientMessage::StdinEnd).await
    }

    /// Signals the program.
    ///
    /// # Errors
    /// [`ClientError::RunEnded`].
    pub async fn signal(&self, signal: SignalName) -> Result<(), ClientError> {
        self.send(ClientMessage::Signal { signal }).await
    }

    /// Changes the size of the program's terminal, in characters; 1 to 1000 each.
    ///
    /// # Errors
    /// [`ClientError::RunEnded`].
    pub async fn resize(&self, cols: u32, rows: u32) -> Result<(), ClientError> {
        self.send(ClientMessage::Resize { cols, rows }).await
    }

    async fn send(&self, message: ClientMessage) -> Result<(), ClientError> {
        let sent = self.0.send(message).await;
        sent.map_err(|_| ClientError::RunEnded)
    }
}

/// Passes events on until the last one.
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

/// An event from its JSON.
pub(crate) fn event(text: &str) -> Result<StreamEvent, ClientError> {
    serde_json::from_str(text).map_err(|error| ClientError::Unexpected(error.to_string()))
}
