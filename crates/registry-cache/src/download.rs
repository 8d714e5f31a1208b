//! Downloads of files, one for all clients that wait for the same file. The clients read the file from disk while it
//! comes in. Its last byte is held back until the hash of the whole file is verified, so that no client gets a whole
//! file with a wrong hash.

use std::collections::HashMap;
use std::fs::File;
use std::io::{self, Write as _};
use std::os::unix::fs::FileExt as _;
use std::pin::pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use futures::stream::{self, Stream};
use isol8_egress::{Egress, FetchStream, Policy};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, watch};

use crate::digest::Digest;
use crate::index::ListedFile;
use crate::share::InstallationShare;
use crate::store::{FileKey, FileStore};
use crate::upstream::{self, RegistryError};

/// Maximum number of concurrent downloads of all installations; further downloads wait. Each writes to disk on a
/// blocking thread of its own, of which the runtime has 512.
const MAX_DOWNLOADS: usize = 128;

/// Number of bytes read from disk at once.
const CHUNK_BYTES: usize = 256 << 10;

/// Maximum number of received chunks of a download that wait to be written to disk.
const MAX_QUEUED_CHUNKS: usize = 16;

/// The progress of a download.
#[derive(Clone, Debug)]
enum DownloadProgress {
    Requested,
    Running(PartialFile),
    Whole(PartialFile),
    Failed(RegistryError),
}

/// A file on disk, of which a part may still be missing.
#[derive(Clone, Debug)]
pub(crate) struct PartialFile {
    file: Arc<File>,
    /// Number of bytes that have been written.
    available: u64,
    /// Length of the whole file, if the registry announces it.
    pub(crate) length: Option<u64>,
}

/// The running downloads.
#[derive(Clone, Debug)]
pub(crate) struct Downloads {
    store: Arc<FileStore>,
    running: Arc<Mutex<HashMap<FileKey, watch::Sender<DownloadProgress>>>>,
    slots: Arc<Semaphore>,
}

/// The source from which a client gets a file.
#[derive(Debug)]
pub(crate) enum FileSource {
    /// The file on disk, whole or while it is written. Its hash is verified.
    File(FileReader),
    /// The registry's answer, for a file that is too large to be cached or if the disk cannot be used.
    Stream(FetchStream),
}

impl Downloads {
    pub(crate) fn new(store: Arc<FileStore>) -> Self {
        Self {
            store,
            running: Arc::default(),
            slots: Arc::new(Semaphore::new(MAX_DOWNLOADS)),
        }
    }

    /// Returns a file, from disk or from the registry.
    pub(crate) async fn get(
        &self,
        listed: &ListedFile,
        digest: &Digest,
        egress: &Egress,
        policy: &Policy,
        share: &InstallationShare,
    ) -> Result<FileSource, RegistryError> {
        let key = FileKey::of(&listed.url);
        if let Some(reader) = self.stored(&key, digest).await {
            return Ok(FileSource::File(reader));
        }
        // Taken before other requests can join, so that no request joins a download that still waits for other
        // downloads of the installation that started it.
        let slot = share.download().await?;
        let mut progress = self.join(&key, listed, digest, egress, policy, slot);
        let started = progress
            .wait_for(|progress| !matches!(progress, DownloadProgress::Requested))
            .await;
        let started = started.map_err(|_| RegistryError::Disk)?.clone();
        match started {
            DownloadProgress::Running(content) | DownloadProgress::Whole(content) => {
                Ok(FileSource::File(FileReader {
                    content,
                    progress: Some(progress),
                    position: 0,
                }))
            }
            DownloadProgress::Failed(RegistryError::TooLarge | RegistryError::Disk) => {
                let answer = upstream::get(&listed.url, &[], egress, policy).await?;
                Ok(FileSource::Stream(answer))
            }
            DownloadProgress::Failed(failure) => Err(failure),
            DownloadProgress::Requested => Err(RegistryError::Disk), // The wait was for any other state.
        }
    }

    async fn stored(&self, key: &FileKey, digest: &Digest) -> Option<FileReader> {
        let (store, wanted, must) = (Arc::clone(&self.store), key.clone(), digest.clone());
        let opened = tokio::task::spawn_blocking(move || store.open(&wanted, &must)).await;
        let opened = opened.unwrap_or_else(|panic| Err(io::Error::other(panic)));
        let (file, size) = opened.unwrap_or_else(|error| {
            log::warn!(error:%; "cached package cannot be read");
            None
        })?;
        let content = PartialFile {
            file: Arc::new(file),
            available: size,
            length: Some(size),
        };
        Some(FileReader {
            content,
            progress: None,
            position: 0,
        })
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<FileKey, watch::Sender<DownloadProgress>>> {
        // No panic leaves an entry half written.
        self.running.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Joins the running download of a file, or starts one.
    fn join(
        &self,
        key: &FileKey,
        listed: &ListedFile,
        digest: &Digest,
        egress: &Egress,
        policy: &Policy,
        slot: OwnedSemaphorePermit,
    ) -> watch::Receiver<DownloadProgress> {
        let mut running = self.lock();
        if let Some(sender) = running.get(key) {
            return sender.subscribe();
        }
        let (sender, receiver) = watch::channel(DownloadProgress::Requested);
        running.insert(key.clone(), sender.clone());
        let download = DownloadTask {
            downloads: self.clone(),
            key: key.clone(),
            listed: listed.clone(),
            digest: digest.clone(),
            egress: egress.clone(),
            policy: policy.clone(),
            progress: sender,
            _slot: slot,
        };
        tokio::spawn(download.run());
        receiver
    }
}

/// How long a download goes on without a client. uv reads the beginning of a wheel for its metadata, leaves, and comes
/// back for the whole.
const ABANDON_TIMEOUT: Duration = Duration::from_secs(2);

/// A download, which ends when no client has waited for it for [`ABANDON_TIMEOUT`].
struct DownloadTask {
    downloads: Downloads,
    key: FileKey,
    listed: ListedFile,
    digest: Digest,
    egress: Egress,
    policy: Policy,
    progress: watch::Sender<DownloadProgress>,
    /// The permit of the installation that started the download.
    _slot: OwnedSemaphorePermit,
}

impl DownloadTask {
    async fn run(self) {
        let mut fetching = pin!(self.fetch());
        loop {
            tokio::select! {
                fetched = &mut fetching => {
                    self.downloads.lock().remove(&self.key);
                    if let Err(failure) = fetched {
                        log::debug!(url:% = self.listed.url, error:% = failure; "package not fetched");
                        self.progress.send_replace(DownloadProgress::Failed(failure));
                    }
                    return;
                }
                () = self.abandoned() => {
                    let mut running = self.downloads.lock();
                    // Requests join only while they hold the lock.
                    if self.progress.receiver_count() == 0 {
                        running.remove(&self.key);
                        return;
                    }
                }
            }
        }
    }

    /// Completes [`ABANDON_TIMEOUT`] after the last client has left, also if another one has come since.
    async fn abandoned(&self) {
        self.progress.closed().await;
        tokio::time::sleep(ABANDON_TIMEOUT).await;
    }

    async fn fetch(&self) -> Result<(), RegistryError> {
        let slots = Arc::clone(&self.downloads.slots);
        let _slot = slots
            .acquire_owned()
            .await
            .map_err(|_| RegistryError::Busy)?;
        let mut answer = upstream::get(&self.listed.url, &[], &self.egress, &self.policy).await?;
        if answer
            .length()
            .is_some_and(|length| length > self.downloads.store.largest())
        {
            return Err(RegistryError::TooLarge);
        }
        let (pieces, taken) = mpsc::channel(MAX_QUEUED_CHUNKS);
        let writer = DiskWriter {
            store: Arc::clone(&self.downloads.store),
            key: self.key.clone(),
            digest: self.digest.clone(),
            length: answer.length(),
            progress: self.progress.clone(),
        };
        let writing = tokio::task::spawn_blocking(move || writer.write(taken));
        while let Some(piece) = answer.chunk().await? {
            // A writer that has ended returns its error below.
            if pieces.send(Some(piece)).await.is_err() {
                break;
            }
        }
        // Marks the end of the file; a channel that closes without it means that the download was abandoned.
        let _ = pieces.send(None).await;
        writing.await.unwrap_or(Err(RegistryError::Disk))
    }
}

/// Writes a download to disk, on a blocking thread of its own.
struct DiskWriter {
    store: Arc<FileStore>,
    key: FileKey,
    digest: Digest,
    length: Option<u64>,
    progress: watch::Sender<DownloadProgress>,
}

impl DiskWriter {
    fn write(self, pieces: mpsc::Receiver<Option<Bytes>>) -> Result<(), RegistryError> {
        let written = self.write_all(pieces);
        written.map_err(|error| match error {
            WriteError::Registry(failure) => failure,
            WriteError::Disk(error) => {
                log::warn!(error:%; "packages cannot be cached");
                RegistryError::Disk
            }
        })
    }

    fn write_all(&self, mut pieces: mpsc::Receiver<Option<Bytes>>) -> Result<(), WriteError> {
        let mut partial = self.store.create()?;
        let mut content = PartialFile {
            file: Arc::new(partial.reopen()?),
            available: 0,
            length: self.length,
        };
        let mut hasher = self.digest.hasher();
        loop {
            match pieces.blocking_recv() {
                Some(Some(piece)) => {
                    hasher.update(&piece);
                    partial.write_all(&piece)?;
                    content.available += piece.len() as u64;
                    if content.available > self.store.largest() {
                        return Err(RegistryError::TooLarge.into());
                    }
                    self.progress
                        .send_replace(DownloadProgress::Running(content.clone()));
                }
                Some(None) => break,
                None => return Err(RegistryError::Altered.into()), // The download was abandoned.
            }
        }
        if hasher.finish() != self.digest {
            log::warn!(url_key:? = self.key; "registry sent a package that is not the one it lists");
            return Err(RegistryError::Altered.into());
        }
        // From here on, requests find the file in the store.
        self.store.keep(partial, &self.key)?;
        self.progress.send_replace(DownloadProgress::Whole(content));
        Ok(())
    }
}

enum WriteError {
    Registry(RegistryError),
    Disk(io::Error),
}

impl From<RegistryError> for WriteError {
    fn from(failure: RegistryError) -> Self {
        Self::Registry(failure)
    }
}

impl From<io::Error> for WriteError {
    fn from(error: io::Error) -> Self {
        Self::Disk(error)
    }
}

/// Reads a file that may still be written.
#[derive(Debug)]
pub(crate) struct FileReader {
    pub(crate) content: PartialFile,
    /// `None` if the file is whole.
    progress: Option<watch::Receiver<DownloadProgress>>,
    position: u64,
}

impl FileReader {
    /// Returns the file as a stream of chunks. If the download fails, the stream ends with an error.
    pub(crate) fn into_stream(self) -> impl Stream<Item = io::Result<Bytes>> + Send + 'static {
        stream::try_unfold(self, |mut reader| async move {
            Ok(reader.next().await?.map(|piece| (piece, reader)))
        })
    }

    async fn next(&mut self) -> io::Result<Option<Bytes>> {
        let until = self.readable().await?;
        let left = until - self.position;
        if left == 0 {
            return Ok(None);
        }
        let size = usize::try_from(left)
            .unwrap_or(CHUNK_BYTES)
            .min(CHUNK_BYTES);
        let (file, position) = (Arc::clone(&self.content.file), self.position);
        let reading = tokio::task::spawn_blocking(move || {
            let mut piece = vec![0; size];
            file.read_exact_at(&mut piece, position).map(|()| piece)
        });
        let piece = reading.await.map_err(io::Error::other)??;
        self.position += size as u64;
        Ok(Some(piece.into()))
    }

    /// Waits until more can be read. Returns the position up to which the file can be read, which is beyond the current
    /// position unless that is the end of the file.
    async fn readable(&mut self) -> io::Result<u64> {
        let Some(progress) = &mut self.progress else {
            return Ok(self.content.available);
        };
        let position = self.position;
        let moved = progress.wait_for(|progress| match progress {
            DownloadProgress::Requested => false,
            // The last byte is held back until the hash is verified.
            DownloadProgress::Running(content) => content.available > position + 1,
            DownloadProgress::Whole(_) | DownloadProgress::Failed(_) => true,
        });
        let moved = moved.await.map_err(io::Error::other)?.clone();
        match moved {
            DownloadProgress::Running(content) => Ok(content.available - 1),
            DownloadProgress::Whole(content) => {
                self.content = content;
                self.progress = None;
                Ok(self.content.available)
            }
            DownloadProgress::Failed(failure) => Err(io::Error::other(failure)),
            DownloadProgress::Requested => Err(io::ErrorKind::UnexpectedEof.into()), // The wait is for any other state.
        }
    }
}
