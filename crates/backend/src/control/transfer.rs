//! Whole files in and out, resets, and interpreters to be kept.

use std::sync::Arc;

use isol8_protocol::{GuestFrame, HostFrame, KernelKind, KernelSettings, Signal, StreamId};

use super::ControlError;
use super::connection::{Connection, Stream};

/// A stream that ends when its user goes away.
#[derive(Debug)]
pub(super) struct Transfer {
    connection: Arc<Connection>,
    stream: Stream,
    ended: bool,
}

impl Transfer {
    pub(super) fn open(
        connection: &Arc<Connection>,
        request: impl FnOnce(StreamId) -> HostFrame,
    ) -> Result<Self, ControlError> {
        let stream = connection.stream()?;
        let transfer = Self {
            connection: Arc::clone(connection),
            stream,
            ended: false,
        };
        connection.send(&request(transfer.stream.id))?;
        Ok(transfer)
    }

    /// The next piece of content, or `None` at the end.
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

    /// Sends content, each piece as soon as there is credit for it.
    pub(super) async fn send(&self, bytes: &[u8]) -> Result<(), ControlError> {
        let Stream { id, credit, .. } = &self.stream;
        self.connection.send_data(*id, credit, bytes).await
    }

    /// Ends the content.
    pub(super) fn end(&self) -> Result<(), ControlError> {
        let id = self.stream.id;
        self.connection.send(&HostFrame::End { id })
    }

    /// Waits for the answer, where that is all there is.
    pub(super) async fn finish(mut self) -> Result<(), ControlError> {
        while self.next().await?.is_some() {}
        Ok(())
    }
}

impl Drop for Transfer {
    fn drop(&mut self) {
        if !self.ended {
            let id = self.stream.id;
            let signal = Signal::Kill;
            // If the connection is gone, so is the transfer.
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
    let transfer = Transfer::open(connection, |id| HostFrame::WriteFile {
        id,
        path: path.to_owned(),
        mode,
    })?;
    // A guest that refuses answers before it has taken everything, and takes nothing more: its
    // answer closes the credit, and is what counts.
    if transfer.send(content).await.is_ok() {
        transfer.end()?;
    }
    transfer.finish().await
}

pub(super) async fn read_file(
    connection: &Arc<Connection>,
    path: &str,
    limit: usize,
) -> Result<Vec<u8>, ControlError> {
    let mut transfer = Transfer::open(connection, |id| HostFrame::ReadFile {
        id,
        path: path.to_owned(),
    })?;
    let mut content = Vec::new();
    while let Some(piece) = transfer.next().await? {
        if content.len() + piece.len() > limit {
            let text = format!("{path} is larger than {limit} bytes");
            return Err(ControlError::TooLarge(text));
        }
        content.extend_from_slice(&piece);
    }
    Ok(content)
}

pub(super) async fn reset(connection: &Arc<Connection>) -> Result<(), ControlError> {
    let transfer = Transfer::open(connection, |id| HostFrame::Reset { id })?;
    transfer.finish().await
}

pub(super) async fn prepare(
    connection: &Arc<Connection>,
    kernel: KernelKind,
    settings: KernelSettings,
) -> Result<(), ControlError> {
    let transfer = Transfer::open(connection, |id| HostFrame::Prepare {
        id,
        kernel,
        settings,
    })?;
    transfer.finish().await
}
