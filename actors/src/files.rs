//! Transfers of files to and from a session's sandbox. A transfer uses the sandbox's control connection beside the jobs,
//! and waits for no job.

use isol8_api::file::{DirectoryEntry, DirectoryListing, EntryType};
use isol8_api::{Runtime, SandboxPath};
use isol8_backend::{Control, ControlError, EntryKind, FileReader, FileWriter, RawDirectoryEntry};
use isol8_protocol::FailureKind;
use tokio_util::sync::CancellationToken;
use tokio_util::task::task_tracker::TaskTrackerToken;

use crate::error::ExecuteError;
use crate::memory;
use crate::session::TransferPermit;

/// Mode of a file that a client writes.
const FILE_MODE: u32 = 0o644;

/// Bytes that may be written to files between two checks of the memory that is left.
const PIECE: u64 = 1 << 20;

/// Highest number of entries that the guest is asked for: one more than a listing shows, to detect a longer directory.
const LIST_LIMIT: u32 = DirectoryListing::MAX_ENTRIES as u32 + 1;

/// A file transfer under way.
#[derive(Debug)]
pub(crate) struct Transfer {
    pub(crate) permit: TransferPermit,
    pub(crate) stop: CancellationToken,
    /// Makes a shutdown wait for the transfer as it waits for jobs.
    pub(crate) _counted: TaskTrackerToken,
}

impl Transfer {
    pub(crate) fn runtime(&self) -> Runtime {
        self.permit.status.runtime
    }

    fn control(&self) -> &Control {
        self.permit.sandbox.control()
    }

    async fn step<T>(
        &self,
        work: impl Future<Output = Result<T, ControlError>>,
    ) -> Result<T, ExecuteError> {
        let done = self.stop.run_until_cancelled(work).await;
        done.ok_or(ExecuteError::ShuttingDown)?
            .map_err(|error| self.error(error))
    }

    fn error(&self, error: ControlError) -> ExecuteError {
        match error {
            ControlError::Closed(reason) => ExecuteError::SessionLost {
                session: self.permit.id.clone(),
                reason,
            },
            ControlError::TimedOut(_) => ExecuteError::BackendUnavailable(error.to_string()),
            ControlError::TooLarge(text) => ExecuteError::Invalid(text),
            ControlError::Failed(failure) => match failure.kind {
                FailureKind::NotFound => ExecuteError::FileNotFound(failure.message),
                FailureKind::NoSpace => ExecuteError::NoSpace(failure.message),
                FailureKind::Refused | FailureKind::Exhausted => {
                    ExecuteError::Invalid(failure.message)
                }
                FailureKind::Internal => ExecuteError::BackendUnavailable(failure.message),
            },
        }
    }
}

/// A transfer of a file into a sandbox. If it is dropped before [`Self::finish`], an earlier file of the same name
/// remains.
#[derive(Debug)]
pub struct Upload {
    writer: FileWriter,
    /// Bytes that the sandbox is known to have memory for.
    room: u64,
    transfer: Transfer,
}

impl Upload {
    pub(crate) fn open(transfer: Transfer, path: &SandboxPath) -> Result<Self, ExecuteError> {
        let opened = transfer.control().open_writer(path.as_str(), FILE_MODE);
        let writer = opened.map_err(|error| transfer.error(error))?;
        Ok(Self {
            writer,
            room: 0,
            transfer,
        })
    }

    /// Appends content, as fast as the sandbox accepts it.
    ///
    /// # Errors
    /// Any [`ExecuteError`] of file operations; the transfer has failed then.
    pub async fn write(&mut self, bytes: &[u8]) -> Result<(), ExecuteError> {
        let size = bytes.len() as u64;
        if self.room < size {
            let wanted = size.max(PIECE);
            memory::check_room(&*self.transfer.permit.sandbox, wanted).await?;
            self.room = wanted;
        }
        self.room -= size;
        self.transfer.step(self.writer.write(bytes)).await
    }

    /// Gives the file its name, and replaces an earlier file of that name.
    ///
    /// # Errors
    /// Any [`ExecuteError`] of file operations.
    pub async fn finish(self) -> Result<(), ExecuteError> {
        self.transfer.step(self.writer.finish()).await
    }

    /// Waits until the service ends its transfers.
    pub async fn stopped(&self) {
        self.transfer.stop.cancelled().await;
    }
}

/// A transfer of a file out of a sandbox. Dropping it ends the transfer.
#[derive(Debug)]
pub struct Download {
    reader: FileReader,
    transfer: Transfer,
}

impl Download {
    pub(crate) fn open(transfer: Transfer, path: &SandboxPath) -> Result<Self, ExecuteError> {
        let opened = transfer.control().open_reader(path.as_str());
        let reader = opened.map_err(|error| transfer.error(error))?;
        Ok(Self { reader, transfer })
    }

    /// Returns the next piece, or `None` at the end. Must not be called after the end.
    ///
    /// # Errors
    /// Any [`ExecuteError`] of file operations; the first call reports a file that does not exist.
    pub async fn next(&mut self) -> Result<Option<Vec<u8>>, ExecuteError> {
        self.transfer.step(self.reader.next()).await
    }

    /// Waits until the service ends its transfers.
    pub async fn stopped(&self) {
        self.transfer.stop.cancelled().await;
    }
}

pub(crate) async fn list(
    transfer: Transfer,
    path: &SandboxPath,
) -> Result<DirectoryListing, ExecuteError> {
    let listing = transfer.control().list(path.as_str(), LIST_LIMIT);
    let found = transfer.step(listing).await?;
    let truncated = found.len() > DirectoryListing::MAX_ENTRIES;
    let mut entries: Vec<DirectoryEntry> = found.into_iter().map(entry).collect();
    entries.truncate(DirectoryListing::MAX_ENTRIES);
    entries.sort_unstable_by(|a, b| a.name.cmp(&b.name));
    Ok(DirectoryListing { entries, truncated })
}

fn entry(found: RawDirectoryEntry) -> DirectoryEntry {
    DirectoryEntry {
        name: String::from_utf8_lossy(&found.name).into_owned(),
        kind: match found.kind {
            EntryKind::File => EntryType::File,
            EntryKind::Directory => EntryType::Directory,
            EntryKind::Link => EntryType::Symlink,
            EntryKind::Other => EntryType::Other,
        },
        size: found.size,
        mode: format!("{:04o}", found.mode),
        mtime: found.modified_ms,
    }
}
