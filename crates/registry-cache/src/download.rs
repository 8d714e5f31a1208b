//! Downloads: a single one for all clients that wait for the same file. The clients read it from disk while it comes
//! in; its last byte waits until the hash of the whole is known to be right, so that no client gets a wrong file whole.

use std::collections::HashMap;
use std::fs::File;
use std::io::{self, Write as _};
use std::os::unix::fs::FileExt as _;
use std::pin::pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use futures::stream::{self, Stream};
use isol8_egress::{Egress, Opened, Policy};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, watch};

use crate::digest::Digest;
use crate::page::Listed;
use crate::share::Share;
use crate::store::{Key, Store};
use crate::upstream::{self, Failure};

/// Downloads at once, of all installations; others wait. Each writes to disk on a thread of its own, of which the
/// runtime has 512.
const AT_ONCE: usize = 128;

/// Bytes that are read from disk at once.
const PIECE: usize = 256 << 10;

/// Pieces of a download that may wait for the disk.
const WAITING: usize = 16;

/// How far a download is.
#[derive(Clone, Debug)]
enum Progress {
    Asked,
    Running(Content),
    Whole(Content),
    Failed(Failure),
}

/// A file, or what there is of it.
#[derive(Clone, Debug)]
pub(crate) struct Content {
    file: Arc<File>,
    /// Bytes that are there.
    there: u64,
    /// Length of the whole, if it is known.
    pub(crate) length: Option<u64>,
}

/// The downloads that go on.
#[derive(Clone, Debug)]
pub(crate) struct Flights {
    store: Arc<Store>,
    running: Arc<Mutex<HashMap<Key, watch::Sender<Progress>>>>,
    places: Arc<Semaphore>,
}

/// A file with the hash that it must have, for one who waits for it.
#[derive(Debug)]
pub(crate) enum Found {
    /// From disk, or on its way there.
    File(Reader),
    /// Too large to be kept, or there is no disk: as it comes.
    Stream(Opened),
}

impl Flights {
    pub(crate) fn new(store: Arc<Store>) -> Self {
        Self {
            store,
            running: Arc::default(),
            places: Arc::new(Semaphore::new(AT_ONCE)),
        }
    }

    /// The file, from disk or from the registry.
    pub(crate) async fn get(
        &self,
        listed: &Listed,
        digest: &Digest,
        egress: &Egress,
        policy: &Policy,
        share: &Share,
    ) -> Result<Found, Failure> {
        let key = Key::of(&listed.url);
        if let Some(reader) = self.stored(&key, digest).await {
            return Ok(Found::File(reader));
        }
        // Before others can join: no request joins a download that waits for other downloads of its installation.
        let place = share.download().await?;
        let mut progress = self.join(&key, listed, digest, egress, policy, place);
        let begun = progress
            .wait_for(|progress| !matches!(progress, Progress::Asked))
            .await;
        let begun = begun.map_err(|_| Failure::Disk)?.clone();
        match begun {
            Progress::Running(content) | Progress::Whole(content) => Ok(Found::File(Reader {
                content,
                progress: Some(progress),
                position: 0,
            })),
            Progress::Failed(Failure::TooLarge | Failure::Disk) => {
                let answer = upstream::get(&listed.url, &[], egress, policy).await?;
                Ok(Found::Stream(answer))
            }
            Progress::Failed(failure) => Err(failure),
            Progress::Asked => Err(Failure::Disk), // The wait was for any other state.
        }
    }

    async fn stored(&self, key: &Key, digest: &Digest) -> Option<Reader> {
        let (store, wanted, must) = (Arc::clone(&self.store), key.clone(), digest.clone());
        let opened = tokio::task::spawn_blocking(move || store.open(&wanted, &must)).await;
        let opened = opened.unwrap_or_else(|panic| Err(io::Error::other(panic)));
        let (file, size) = opened.unwrap_or_else(|error| {
            log::warn!(error:%; "cached package cannot be read");
            None
        })?;
        let content = Content {
            file: Arc::new(file),
            there: size,
            length: Some(size),
        };
        Some(Reader {
            content,
            progress: None,
            position: 0,
        })
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<Key, watch::Sender<Progress>>> {
        // No panic leaves an entry half written.
        self.running.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes part in a download, or begins it.
    fn join(
        &self,
        key: &Key,
        listed: &Listed,
        digest: &Digest,
        egress: &Egress,
        policy: &Policy,
        place: OwnedSemaphorePermit,
    ) -> watch::Receiver<Progress> {
        let mut running = self.lock();
        if let Some(sender) = running.get(key) {
            return sender.subscribe();
        }
        let (sender, receiver) = watch::channel(Progress::Asked);
        running.insert(key.clone(), sender.clone());
        let download = Download {
            flights: self.clone(),
            key: key.clone(),
            listed: listed.clone(),
            digest: digest.clone(),
            egress: egress.clone(),
            policy: policy.clone(),
            progress: sender,
            _place: place,
        };
        tokio::spawn(download.run());
        receiver
    }
}

/// A download. It ends when no client waits for it any more.
struct Download {
    flights: Flights,
    key: Key,
    listed: Listed,
    digest: Digest,
    egress: Egress,
    policy: Policy,
    progress: watch::Sender<Progress>,
    /// A place of the installation that began the download.
    _place: OwnedSemaphorePermit,
}

impl Download {
    async fn run(self) {
        let mut fetching = pin!(self.fetch());
        loop {
            tokio::select! {
                fetched = &mut fetching => {
                    self.flights.lock().remove(&self.key);
                    if let Err(failure) = fetched {
                        log::debug!(url:% = self.listed.url, error:% = failure; "package not fetched");
                        self.progress.send_replace(Progress::Failed(failure));
                    }
                    return;
                }
                () = self.progress.closed() => {
                    let mut running = self.flights.lock();
                    // Others join while it is locked only.
                    if self.progress.receiver_count() == 0 {
                        running.remove(&self.key);
                        return;
                    }
                }
            }
        }
    }

    async fn fetch(&self) -> Result<(), Failure> {
        let places = Arc::clone(&self.flights.places);
        let _place = places.acquire_owned().await.map_err(|_| Failure::Busy)?;
        let mut answer = upstream::get(&self.listed.url, &[], &self.egress, &self.policy).await?;
        if answer
            .length()
            .is_some_and(|length| length > self.flights.store.largest())
        {
            return Err(Failure::TooLarge);
        }
        let (pieces, taken) = mpsc::channel(WAITING);
        let writer = Writer {
            store: Arc::clone(&self.flights.store),
            key: self.key.clone(),
            digest: self.digest.clone(),
            length: answer.length(),
            progress: self.progress.clone(),
        };
        let writing = tokio::task::spawn_blocking(move || writer.write(taken));
        while let Some(piece) = answer.chunk().await? {
            // If the writer has ended, it reports why.
            if pieces.send(Some(piece)).await.is_err() {
                break;
            }
        }
        // The end is said, so that it is not taken for the end of a download that was given up.
        let _ = pieces.send(None).await;
        writing.await.unwrap_or(Err(Failure::Disk))
    }
}

/// Puts a download on disk. The writer waits for the disk, on a thread of its own.
struct Writer {
    store: Arc<Store>,
    key: Key,
    digest: Digest,
    length: Option<u64>,
    progress: watch::Sender<Progress>,
}

impl Writer {
    fn write(self, pieces: mpsc::Receiver<Option<Bytes>>) -> Result<(), Failure> {
        let written = self.write_all(pieces);
        written.map_err(|error| match error {
            WriteError::Failure(failure) => failure,
            WriteError::Disk(error) => {
                log::warn!(error:%; "packages cannot be cached");
                Failure::Disk
            }
        })
    }

    fn write_all(&self, mut pieces: mpsc::Receiver<Option<Bytes>>) -> Result<(), WriteError> {
        let mut partial = self.store.create()?;
        let mut content = Content {
            file: Arc::new(partial.reopen()?),
            there: 0,
            length: self.length,
        };
        let mut hasher = self.digest.hasher();
        loop {
            match pieces.blocking_recv() {
                Some(Some(piece)) => {
                    hasher.update(&piece);
                    partial.write_all(&piece)?;
                    content.there += piece.len() as u64;
                    if content.there > self.store.largest() {
                        return Err(Failure::TooLarge.into());
                    }
                    self.progress
                        .send_replace(Progress::Running(content.clone()));
                }
                Some(None) => break,
                None => return Err(Failure::Altered.into()), // The download was given up.
            }
        }
        if hasher.finish() != self.digest {
            log::warn!(url_key:? = self.key; "registry sent a package that is not the one it lists");
            return Err(Failure::Altered.into());
        }
        // Requests from here on find the file in the store.
        self.store.keep(partial, &self.key)?;
        self.progress.send_replace(Progress::Whole(content));
        Ok(())
    }
}

enum WriteError {
    Failure(Failure),
    Disk(io::Error),
}

impl From<Failure> for WriteError {
    fn from(failure: Failure) -> Self {
        Self::Failure(failure)
    }
}

impl From<io::Error> for WriteError {
    fn from(error: io::Error) -> Self {
        Self::Disk(error)
    }
}

/// Reads a file that may still come in.
#[derive(Debug)]
pub(crate) struct Reader {
    pub(crate) content: Content,
    /// `None` if the file is whole.
    progress: Option<watch::Receiver<Progress>>,
    position: u64,
}

impl Reader {
    /// The file in pieces. An error comes in place of the rest if the download fails.
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
        let size = usize::try_from(left).unwrap_or(PIECE).min(PIECE);
        let (file, position) = (Arc::clone(&self.content.file), self.position);
        let reading = tokio::task::spawn_blocking(move || {
            let mut piece = vec![0; size];
            file.read_exact_at(&mut piece, position).map(|()| piece)
        });
        let piece = reading.await.map_err(io::Error::other)??;
        self.position += size as u64;
        Ok(Some(piece.into()))
    }

    /// Returns the position up to which it can be read: beyond the current one, unless that is the end.
    async fn readable(&mut self) -> io::Result<u64> {
        let Some(progress) = &mut self.progress else {
            return Ok(self.content.there);
        };
        let position = self.position;
        let moved = progress.wait_for(|progress| match progress {
            Progress::Asked => false,
            // The last byte is held back.
            Progress::Running(content) => content.there > position + 1,
            Progress::Whole(_) | Progress::Failed(_) => true,
        });
        let moved = moved.await.map_err(io::Error::other)?.clone();
        match moved {
            Progress::Running(content) => Ok(content.there - 1),
            Progress::Whole(content) => {
                self.content = content;
                self.progress = None;
                Ok(self.content.there)
            }
            Progress::Failed(failure) => Err(io::Error::other(failure)),
            Progress::Asked => Err(io::ErrorKind::UnexpectedEof.into()), // The wait is for any other state.
        }
    }
}
