//! Requests to the guest with one answer: transfers of whole files, resets, and interpreters to keep booted.

use std::sync::Arc;

use isol8_protocol::{GuestFrame, HostFrame, PrewarmSettings, Runtime, Signal, StreamId};

use super::ControlError;
use super::connection::{Connection, Stream};

/// A request to the guest and its answer, on a stream. Dropping this cancels the request.
#[derive(Debug)]
pub(super) struct Exchange {
    connection: Arc<Connection>,
    stream: Stream,
    ended: bool,
}

impl Exchange {
    pub(super) fn open(
        connection: &Arc<Connection>,
        request: impl FnOnce(StreamId) -> HostFrame,
    ) -> Result<Self, ControlError> {
        let stream = connection.stream()?;
        let exchange = Self {
            connection: Arc::clone(connection),
            stream,
            ended: false,
        };
        connection.send(&request(exchange.stream.id))?;
        Ok(exchange)
    }

    /// Returns the next piece of content, or `None` at the end.
    pub(super) async fn next(&mut self) -> Result<Option<Vec<u8>>, ControlError> {
        loop {
            let last = match self.stream.frames.recv().await {
                Some(GuestFrame::Data { bytes, .. }) => {
                    self.connection.grant(self.stream.id, bytes.len());
                    return Ok(Some(bytes));
                }
                Some(GuestFrame::Done { .. }) => Ok(None),
                Some(GuestFrame::Failed { failure, .. }) => Err(ControlError::Failed(failure)),
                Some(_) => continue,
                None => Err(self.connection.closed_error()),
            };
            self.ended = true;
            return last;
        }
    }

    /// Sends content, each piece as soon as the guest has granted credit for it.
    pub(super) async fn send(&self, bytes: &[u8]) -> Result<(), ControlError> {
        let Stream { id, credit, .. } = &self.stream;
        self.connection.send_data(*id, credit, bytes).await
    }

    /// Marks the end of the content.
    pub(super) fn end(&self) -> Result<(), ControlError> {
        let id = self.stream.id;
        self.connection.send(&HostFrame::End { id })
    }

    /// Waits for the answer, and drops any content that comes before it.
    pub(super) async fn finish(mut self) -> Result<(), ControlError> {
        while self.next().await?.is_some() {}
        Ok(())
    }
}

impl Drop for Exchange {
    fn drop(&mut self) {
        if !self.ended {
            let id = self.stream.id;
            let signal = Signal::Kill;
            // Ignore a closed connection: the exchange has ended with it.
            let _ = self.connection.send(&HostFrame::Signal { id, signal });
        }
        self.connection.forget(self.stream.id);
    }
}

pub(super) async fn write_file(
    connection: &Arc<Connection>,
    path: &str,
    mode: u32,
    content: &[u8],
) -> Result<(), ControlError> {
    let exchange = Exchange::open(connection, |id| HostFrame::WriteFile {
        id,
        path: path.to_owned(),
        mode,
    })?;
    // A guest that refuses the file answers before it has accepted all content. Its answer closes the credit, so
    // that sending fails; the reason is in the answer.
    if exchange.send(content).await.is_ok() {
        exchange.end()?;
    }
    exchange.finish().await
}

pub(super) async fn read_file(
    connection: &Arc<Connection>,
    path: &str,
    limit: usize,
) -> Result<Vec<u8>, ControlError> {
    let mut exchange = Exchange::open(connection, |id| HostFrame::ReadFile {
        id,
        path: path.to_owned(),
    })?;
    let mut content = Vec::new();
    while let Some(piece) = exchange.next().await? {
        if content.len() + piece.len() > limit {
            let text = format!("{path} is larger than {limit} bytes");
            return Err(ControlError::TooLarge(text));
        }
        content.extend_from_slice(&piece);
    }
    Ok(content)
}

pub(super) async fn reset(connection: &Arc<Connection>) -> Result<(), ControlError> {
    let exchange = Exchange::open(connection, |id| HostFrame::Reset { id })?;
    exchange.finish().await
}

pub(super) async fn prepare(
    connection: &Arc<Connection>,
    runtime: Runtime,
    settings: PrewarmSettings,
) -> Result<(), ControlError> {
    let exchange = Exchange::open(connection, |id| HostFrame::Prepare {
        id,
        runtime,
        settings,
    })?;
    exchange.finish().await
}
