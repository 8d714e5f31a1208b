//! Files in and out, a piece at a time: no more than a window of one is in memory.

use std::sync::Arc;
use std::time::Duration;

use isol8_protocol::{Decoder, Entry, HostFrame, MAX_ENTRY};

use super::ControlError;
use super::connection::Connection;
use super::transfer::Transfer;

/// How long a guest may take for one step of a transfer. It attends to each within milliseconds, unless it is ending
/// processes or a disk of the machine does not answer.
const STEP_TIMEOUT: Duration = Duration::from_secs(30);

/// A file that is being written. Dropping it before [`Self::finish`] leaves what had its name before.
#[derive(Debug)]
pub struct FileWriter(Transfer);

impl FileWriter {
    pub(super) fn open(
        connection: &Arc<Connection>,
        path: &str,
        mode: u32,
    ) -> Result<Self, ControlError> {
        let transfer = Transfer::open(connection, |id| HostFrame::WriteFile {
            id,
            path: path.to_owned(),
            mode,
        })?;
        Ok(Self(transfer))
    }

    /// Adds content, as fast as the guest takes it.
    ///
    /// # Errors
    /// Any [`ControlError`]: the file is given up.
    pub async fn write(&mut self, bytes: &[u8]) -> Result<(), ControlError> {
        match step(self.0.send(bytes)).await {
            // A guest that refuses takes nothing more: its answer is what counts.
            Err(ControlError::Closed(_)) => Err(self.refusal().await),
            sent => sent,
        }
    }

    /// Gives the file its name, in place of what has it.
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

/// A file that is being read. Dropping it ends the transfer.
#[derive(Debug)]
pub struct FileReader(Transfer);

impl FileReader {
    pub(super) fn open(connection: &Arc<Connection>, path: &str) -> Result<Self, ControlError> {
        let transfer = Transfer::open(connection, |id| HostFrame::ReadFile {
            id,
            path: path.to_owned(),
        })?;
        Ok(Self(transfer))
    }

    /// The next piece, or `None` at the end, after which this must not be called. Taking one lets the
    /// guest send as much again.
    ///
    /// # Errors
    /// Any [`ControlError`]; the first call says where the file cannot be read.
    pub async fn next(&mut self) -> Result<Option<Vec<u8>>, ControlError> {
        step(self.0.next()).await
    }
}

/// At most `limit` entries of a directory, in no particular order.
pub(super) async fn list(
    connection: &Arc<Connection>,
    path: &str,
    limit: u32,
) -> Result<Vec<Entry>, ControlError> {
    let mut transfer = Transfer::open(connection, |id| HostFrame::ListDirectory {
        id,
        path: path.to_owned(),
        limit,
    })?;
    let malformed = |reason: &str| ControlError::Closed(format!("list of {path} {reason}"));
    let mut decoder = Decoder::new(MAX_ENTRY);
    let mut entries = Vec::new();
    while let Some(piece) = step(transfer.next()).await? {
        decoder.feed(&piece);
        while let Some(entry) = decoder.next().map_err(|e| malformed(&e.to_string()))? {
            if entries.len() >= limit as usize {
                return Err(malformed("is longer than was asked for"));
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
