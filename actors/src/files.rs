//! Files of a session's sandbox. Transfers use its control connection beside the jobs, and wait for no job.

use std::sync::Arc;

use isol8_api::file::{DirectoryEntry, DirectoryListing, EntryType};
use isol8_api::{Runtime, SandboxPath, SessionId};
use isol8_backend::{
    Control, ControlError, EntryKind, FileReader, FileWriter, RawDirectoryEntry, Sandbox,
};
use isol8_protocol::FailureKind;
use tokio::sync::OwnedSemaphorePermit;
use tokio_util::sync::CancellationToken;
use tokio_util::task::task_tracker::TaskTrackerToken;

use crate::error::ExecuteError;
use crate::session::{Session, Status, Used};
use crate::supervisor::WeakSupervised;

/// Transfers of one session at once, at most. Each has a window of memory on both sides.
pub const MAX_TRANSFERS: usize = 16;

/// Mode of a file that a client writes.
const FILE_MODE: u32 = 0o644;

/// Bytes that may be written to files between two looks at the memory that is left.
const PIECE: u64 = 1 << 20;

/// Memory that files leave to programs, the guest among them: what takes the last of it, the kernel ends.
pub(crate) const MEMORY_BESIDE_FILES: u64 = 4 << 20;

/// Entries to ask for: one more than a list shows, which tells that there are more.
const LIST_LIMIT: u32 = DirectoryListing::MAX_ENTRIES as u32 + 1;

/// Refuses files that the sandbox's memory, where they lie, has no room for: the kernel would end
/// processes in it, the interpreter first.
pub(crate) async fn check_memory(sandbox: &dyn Sandbox, bytes: u64) -> Result<(), ExecuteError> {
    if sandbox.has_memory_for(bytes + MEMORY_BESIDE_FILES).await {
        return Ok(());
    }
    let text = "no memory is left for the file, raise memoryLimit or delete files: they count towards it, and \
                one that is replaced stays until the new one is complete";
    Err(ExecuteError::Invalid(text.to_owned()))
}

/// The right to one transfer. The session is in use as long as there is one.
#[derive(Debug)]
pub(crate) struct TransferPermit {
    pub(crate) id: SessionId,
    pub(crate) sandbox: Arc<dyn Sandbox>,
    pub(crate) status: Arc<Status>,
    pub(crate) session: WeakSupervised<Session>,
    pub(crate) _permit: OwnedSemaphorePermit,
}

impl Drop for TransferPermit {
    fn drop(&mut self) {
        self.status.note_use();
        self.session.do_send(Used);
    }
}

/// A transfer under way.
#[derive(Debug)]
pub(crate) struct Transfer {
    pub(crate) access: TransferPermit,
    pub(crate) stop: CancellationToken,
    /// A shutdown gives it time as it gives jobs.
    pub(crate) _counted: TaskTrackerToken,
}

impl Transfer {
    pub(crate) fn runtime(&self) -> Runtime {
        self.access.status.runtime
    }

    fn control(&self) -> &Control {
        self.access.sandbox.control()
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
                session: self.access.id.clone(),
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

/// A file on its way into a sandbox. Dropping it before [`Self::finish`] leaves what had its name
/// before.
#[derive(Debug)]
pub struct Upload {
    writer: FileWriter,
    /// Bytes that there is surely memory for.
    room: u64,
    visit: Transfer,
}

impl Upload {
    pub(crate) fn open(visit: Transfer, path: &SandboxPath) -> Result<Self, ExecuteError> {
        let opened = visit.control().open_writer(path.as_str(), FILE_MODE);
        let writer = opened.map_err(|error| visit.error(error))?;
        Ok(Self {
            writer,
            room: 0,
            visit,
        })
    }

    /// Adds content, as fast as the sandbox takes it.
    ///
    /// # Errors
    /// Any [`ExecuteError`] of file operations: the file is given up.
    pub async fn write(&mut self, bytes: &[u8]) -> Result<(), ExecuteError> {
        let size = bytes.len() as u64;
        if self.room < size {
            let wanted = size.max(PIECE);
            check_memory(&*self.visit.access.sandbox, wanted).await?;
            self.room = wanted;
        }
        self.room -= size;
        self.visit.step(self.writer.write(bytes)).await
    }

    /// Gives the file its name, in place of what has it.
    ///
    /// # Errors
    /// Any [`ExecuteError`] of file operations.
    pub async fn finish(self) -> Result<(), ExecuteError> {
        self.visit.step(self.writer.finish()).await
    }

    /// Waits until the service ends its transfers.
    pub async fn stopped(&self) {
        self.visit.stop.cancelled().await;
    }
}

/// A file on its way out of a sandbox. Dropping it ends the transfer.
#[derive(Debug)]
pub struct Download {
    reader: FileReader,
    visit: Transfer,
}

impl Download {
    pub(crate) fn open(visit: Transfer, path: &SandboxPath) -> Result<Self, ExecuteError> {
        let opened = visit.control().open_reader(path.as_str());
        let reader = opened.map_err(|error| visit.error(error))?;
        Ok(Self { reader, visit })
    }

    /// The next piece, or `None` at the end, after which this must not be called.
    ///
    /// # Errors
    /// Any [`ExecuteError`] of file operations; the first call reports a file that does not exist.
    pub async fn next(&mut self) -> Result<Option<Vec<u8>>, ExecuteError> {
        self.visit.step(self.reader.next()).await
    }

    /// Waits until the service ends its transfers.
    pub async fn stopped(&self) {
        self.visit.stop.cancelled().await;
    }
}

pub(crate) async fn list(
    visit: Transfer,
    path: &SandboxPath,
) -> Result<DirectoryListing, ExecuteError> {
    let listing = visit.control().list(path.as_str(), LIST_LIMIT);
    let found = visit.step(listing).await?;
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
