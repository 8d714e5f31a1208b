//! Reading and writing files piece by piece: at most one window of a file is in memory.

use std::sync::Arc;
use std::time::Duration;

use isol8_protocol::{Decoder, HostFrame, MAX_ENTRY, RawDirectoryEntry};

use super::ControlError;
use super::connection::Connection;
use super::exchange::Exchange;

/// Longest time for one step of a transfer. The guest handles each step within milliseconds,
/// unless it is killing processes or a disk of the host does not answer.
const STEP_TIMEOUT: Duration = Duration::from_secs(30);

/// A file that is being written. Dropping this before [`Self::finish`] leaves the existing file at the path, if any.
#[derive(Debug)]
pub struct FileWriter(Exchange);

impl FileWriter {
    pub(super) fn open(
        connection: &Arc<Connection>,
        path: &str,
        mode: u32,
    ) -> Result<Self, ControlError> {
        let exchange = Exchange::open(connection, |id| HostFrame::WriteFile {
            id,
            path: path.to_owned(),
            mode,
        })?;
        Ok(Self(exchange))
    }

    /// Appends content, as fast as the guest accepts it.
    ///
    /// # Errors
    /// Any [`ControlError`]; the write is cancelled.
    pub async fn write(&mut self, bytes: &[u8]) -> Result<(), ControlError> {
        match step(self.0.send(bytes)).await {
            // A guest that refuses the file closes the credit; the reason is in its answer.
            Err(ControlError::Closed(_)) => Err(self.refusal().await),
            sent => sent,
        }
    }

    /// Completes the file at its path, replacing an existing file.
    ///
    /// # Errors
    /// Any [`ControlError`].
    pub async fn finish(self) -> Result<(), ControlError> {
        self.0.end()?;
        step(self.0.finish()).await
    }

    async fn refusal(&mut self) -> ControlError {
        match step(self.0.next()).await {
            Err(error) => error,
            Ok(_) => ControlError::Closed("guest ended a transfer before its content".to_owned()),
        }
    }
}

/// A file that is being read. Dropping this cancels the transfer.
#[derive(Debug)]
pub struct FileReader(Exchange);

impl FileReader {
    pub(super) fn open(connection: &Arc<Connection>, path: &str) -> Result<Self, ControlError> {
        let exchange = Exchange::open(connection, |id| HostFrame::ReadFile {
            id,
            path: path.to_owned(),
        })?;
        Ok(Self(exchange))
    }

    /// Returns the next piece, or `None` at the end, after which this must not be called again. Taking a piece
    /// lets the guest send as many bytes again.
    ///
    /// # Errors
    /// Any [`ControlError`]; the first call reports a file that cannot be read.
    pub async fn next(&mut self) -> Result<Option<Vec<u8>>, ControlError> {
        step(self.0.next()).await
    }
}

/// Lists at most `limit` entries of a directory, in no particular order.
pub(super) async fn list(
    connection: &Arc<Connection>,
    path: &str,
    limit: u32,
) -> Result<Vec<RawDirectoryEntry>, ControlError> {
    let mut exchange = Exchange::open(connection, |id| HostFrame::ListDirectory {
        id,
        path: path.to_owned(),
        limit,
    })?;
    let malformed = |reason: &str| ControlError::Closed(format!("list of {path} {reason}"));
    let mut decoder = Decoder::new(MAX_ENTRY);
    let mut entries = Vec::new();
    while let Some(piece) = step(exchange.next()).await? {
        decoder.feed(&piece);
        while let Some(entry) = decoder.next().map_err(|e| malformed(&e.to_string()))? {
            if entries.len() >= limit as usize {
                return Err(malformed("has more entries than requested"));
            }
            entries.push(entry);
        }
    }
    Ok(entries)
}

async fn step<T>(work: impl Future<Output = Result<T, ControlError>>) -> Result<T, ControlError> {
    tokio::time::timeout(STEP_TIMEOUT, work)
        .await
        .map_err(|_| ControlError::TimedOut(STEP_TIMEOUT))?
}
