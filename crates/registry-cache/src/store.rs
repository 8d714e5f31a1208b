//! Cached files on disk. The directory's content is not trusted: a file is served only if it has the expected hash.

use std::fs::{self, DirBuilder, File, TryLockError};
use std::io::{self, Seek as _};
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime};

use sha2::{Digest as _, Sha256};
use tempfile::NamedTempFile;
use url::Url;

use crate::digest::Digest;

/// Directory of files that are still being written.
const PARTIAL_DIRECTORY: &str = "partial";

/// Age from which an unfinished file without a lock counts as abandoned. A younger one may just have been created by
/// another server, which has not locked it yet.
const MIN_ABANDONED_AGE: Duration = Duration::from_secs(60);

/// The store is tidied whenever so much has been added: the maximum size divided by this number.
const TIDY_STEPS: u64 = 16;

/// Minimum size that a file counts with in bytes, for its block on disk and its directory entry.
const MIN_FILE_BYTES: u64 = 4096;

/// The name of a cached file on disk: the SHA-256 of its URL.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct FileKey(String);

impl FileKey {
    pub(crate) fn of(url: &Url) -> Self {
        let hash = Sha256::digest(url.as_str());
        Self(hash.iter().map(|byte| format!("{byte:02x}")).collect())
    }
}

/// A directory of cached files, which several servers may share. All methods block on the disk.
#[derive(Debug)]
pub(crate) struct FileStore {
    directory: PathBuf,
    max_bytes: u64,
    /// Bytes added since the store was last tidied; `u64::MAX` before the first time.
    added: AtomicU64,
}

impl FileStore {
    pub(crate) fn new(directory: PathBuf, max_bytes: u64) -> Self {
        Self {
            directory,
            max_bytes,
            added: AtomicU64::new(u64::MAX),
        }
    }

    /// Returns the maximum size of a cached file in bytes.
    pub(crate) fn largest(&self) -> u64 {
        self.max_bytes / 4
    }

    /// Opens a file at its start, and returns its size. A file with another hash is removed.
    pub(crate) fn open(&self, key: &FileKey, digest: &Digest) -> io::Result<Option<(File, u64)>> {
        let path = self.directory.join(&key.0);
        let mut file = match File::open(&path) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(error),
        };
        let is_right = file.metadata()?.is_file() && digest.is_of(&file)?;
        if !is_right {
            log::warn!(file:% = path.display(); "cached package is damaged, fetching it again");
            fs::remove_file(&path)?;
            return Ok(None);
        }
        file.rewind()?;
        // The modification time is the time of last use, by which files are removed. In a read-only directory only that
        // order is lost.
        let _ = file.set_modified(SystemTime::now());
        let size = file.metadata()?.len();
        Ok(Some((file, size)))
    }

    /// Creates an unfinished file.
    pub(crate) fn create(&self) -> io::Result<NamedTempFile> {
        let partial = self.directory.join(PARTIAL_DIRECTORY);
        DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(&partial)?;
        if self.added.load(Ordering::Relaxed) == u64::MAX {
            self.tidy()?;
        }
        let file = NamedTempFile::new_in(partial)?;
        // Locked until the file is closed, so that a server that starts can tell it from a file that a dead server
        // left.
        file.as_file().lock()?;
        Ok(file)
    }

    /// Moves a finished file into the store, atomically.
    pub(crate) fn keep(&self, file: NamedTempFile, key: &FileKey) -> io::Result<()> {
        let size = file.as_file().metadata()?.len().max(MIN_FILE_BYTES);
        file.persist(self.directory.join(&key.0))
            .map_err(|error| error.error)?;
        let added = self
            .added
            .fetch_add(size, Ordering::Relaxed)
            .saturating_add(size);
        if added > self.max_bytes / TIDY_STEPS {
            self.tidy()?;
        }
        Ok(())
    }

    /// Removes files that dead servers left unfinished, and the files that were not used for longest if there are too
    /// many.
    fn tidy(&self) -> io::Result<()> {
        self.added.store(0, Ordering::Relaxed);
        remove_abandoned(&self.directory.join(PARTIAL_DIRECTORY))?;
        let mut files = Vec::new();
        for entry in fs::read_dir(&self.directory)? {
            let entry = entry?;
            // Another server may have removed the file.
            let Ok(metadata) = entry.metadata() else {
                continue;
            };
            if metadata.is_file() {
                let used = (metadata.mtime(), metadata.mtime_nsec());
                files.push((used, metadata.len().max(MIN_FILE_BYTES), entry.path()));
            }
        }
        let mut total: u64 = files.iter().map(|(_, size, _)| size).sum();
        // Leaves room for the files that this server and another one add before either tidies again.
        let aim = self.max_bytes - self.max_bytes / TIDY_STEPS * 2;
        if total <= aim {
            return Ok(());
        }
        files.sort();
        for (_, size, path) in files {
            if total <= aim {
                break;
            }
            // A client that is reading the file keeps its open descriptor.
            match fs::remove_file(&path) {
                Ok(()) => log::debug!(file:% = path.display(); "cached package removed"),
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) => return Err(error),
            }
            total -= size;
        }
        Ok(())
    }
}

/// Removes unfinished files that no living server writes.
fn remove_abandoned(partial: &Path) -> io::Result<()> {
    for entry in fs::read_dir(partial)? {
        let path = entry?.path();
        let Ok(file) = File::open(&path) else {
            continue;
        };
        let age = file.metadata()?.modified()?.elapsed().unwrap_or_default();
        match file.try_lock() {
            Ok(()) if age > MIN_ABANDONED_AGE => fs::remove_file(&path)?,
            Ok(()) | Err(TryLockError::WouldBlock) => {}
            Err(TryLockError::Error(error)) => return Err(error),
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{Read as _, Write as _};

    fn key(name: &str) -> FileKey {
        FileKey::of(&format!("https://registry.example/{name}").parse().unwrap())
    }

    fn digest(content: &[u8]) -> Digest {
        Digest::Sha256(Sha256::digest(content).to_vec())
    }

    fn put(store: &FileStore, name: &str, content: &[u8]) {
        let mut file = store.create().unwrap();
        file.write_all(content).unwrap();
        store.keep(file, &key(name)).unwrap();
    }

    fn has(store: &FileStore, name: &str, content: &[u8]) -> bool {
        let Some((mut file, size)) = store.open(&key(name), &digest(content)).unwrap() else {
            return false;
        };
        let mut found = Vec::new();
        file.read_to_end(&mut found).unwrap();
        assert_eq!((found.as_slice(), size), (content, content.len() as u64));
        true
    }

    #[test]
    fn a_file_stays_for_the_next_server_until_it_is_another() {
        let directory = tempfile::tempdir().unwrap();
        let store = || FileStore::new(directory.path().join("a/b"), 1 << 20);
        assert!(!has(&store(), "x", b"one"));
        put(&store(), "x", b"one");
        assert!(has(&store(), "x", b"one"));
        assert!(!has(&store(), "y", b"one"));
        let path = directory.path().join("a/b").join(key("x").0);
        fs::write(&path, b"two").unwrap();
        assert!(!has(&store(), "x", b"one"));
        assert!(!path.exists());
    }

    #[test]
    fn what_was_not_used_for_longest_goes() {
        let directory = tempfile::tempdir().unwrap();
        let store = FileStore::new(directory.path().to_owned(), 16 * MIN_FILE_BYTES);
        let content = |n: u8| vec![n; usize::try_from(MIN_FILE_BYTES).unwrap()];
        for n in 0..14 {
            put(&store, &n.to_string(), &content(n));
        }
        assert!(has(&store, "0", &content(0)));
        for n in 14..18 {
            put(&store, &n.to_string(), &content(n));
        }
        let there: Vec<u8> = (0..18)
            .filter(|n| has(&store, &n.to_string(), &content(*n)))
            .collect();
        assert_eq!(there, [0, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17]);
    }

    #[test]
    fn what_a_dead_server_left_goes_and_what_is_being_written_stays() {
        let directory = tempfile::tempdir().unwrap();
        let store = || FileStore::new(directory.path().to_owned(), 1 << 20);
        let mut living = store().create().unwrap();
        living.write_all(b"half").unwrap();
        let old = SystemTime::now() - 2 * MIN_ABANDONED_AGE;
        living.as_file().set_modified(old).unwrap();
        let partial = directory.path().join(PARTIAL_DIRECTORY);
        for (name, is_old) in [("dead", true), ("fresh", false)] {
            let file = File::create(partial.join(name)).unwrap();
            if is_old {
                file.set_modified(old).unwrap();
            }
        }
        drop(store().create().unwrap());
        assert!(living.path().exists() && partial.join("fresh").exists());
        assert!(!partial.join("dead").exists());
        let path = living.path().to_owned();
        drop(living);
        assert!(!path.exists());
    }
}
