//! The control connection: runs, files, resets and the network connections of programs, multiplexed over one
//! byte stream.
//!
//! Two tasks serve a connection: the first writes frames; the second reads frames and passes each to the run or
//! exchange that it belongs to. Credit bounds the bytes in transit on each stream
//! ([`WINDOW`](isol8_protocol::WINDOW)), in both directions. So a slow stream does not delay the others, and memory
//! is bounded although the queues are not. If the guest breaks a rule (a frame that is too long or malformed,
//! more output than its credit, a wrong version), the host closes the connection, which ends the sandbox.

mod connection;
mod exchange;
mod file;
mod receive_window;
mod run;
mod tunnel;
mod tunnels;

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use isol8_protocol::{Failure, FailureKind, PrewarmSettings, RawDirectoryEntry, RunSpec, Runtime};
use tokio::io::{AsyncRead, AsyncWrite};

use connection::Connection;
pub use file::{FileReader, FileWriter};
pub use run::{RunEvent, RunHandle, RunInput};
pub use tunnel::{Tunnel, Tunnels};

/// Longest time for the guest's half of the handshake. The guest does nothing else at that time.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);

/// Longest time for booting an interpreter, including the preloaded modules.
const BOOT_TIMEOUT: Duration = Duration::from_secs(60);

/// Longest time for a reset: killing all processes, and emptying two file systems.
const RESET_TIMEOUT: Duration = Duration::from_secs(30);

/// The reason why a request to the guest failed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ControlError {
    /// The connection is closed, and the sandbox is gone with it.
    #[error("the sandbox is gone: {0}")]
    Closed(String),
    /// The guest did not answer in time.
    #[error("the sandbox did not answer within {} s", .0.as_secs())]
    TimedOut(Duration),
    /// The request exceeds the size of a frame, or the file exceeds the caller's limit.
    #[error("{0}")]
    TooLarge(String),
    /// The guest refused, or could not do it.
    #[error("{}", .0.message)]
    Failed(Failure),
}

impl ControlError {
    /// Returns the kind of failure that the guest reported, if the guest answered.
    #[must_use]
    pub fn failure_kind(&self) -> Option<FailureKind> {
        match self {
            Self::Failed(failure) => Some(failure.kind),
            _ => None,
        }
    }
}

/// A connection to a guest. Clones share the connection, which closes when the last clone is dropped.
#[derive(Clone, Debug)]
pub struct Control {
    connection: Arc<Connection>,
    prewarm: Arc<PrewarmState>,
}

/// State of the interpreter that the guest keeps booted.
#[derive(Debug)]
struct PrewarmState {
    /// The requested interpreter.
    requested: OnceLock<(Runtime, PrewarmSettings)>,
    /// Generation of the sandbox: each reset begins a new one.
    generation: AtomicU64,
    /// The last generation in which the interpreter was ready.
    ready_generation: AtomicU64,
}

impl Control {
    /// Greets the guest at the other end of `stream` and starts to serve the connection.
    ///
    /// # Errors
    /// [`ControlError::TimedOut`] if the guest does not answer, [`ControlError::Closed`] for a wrong answer.
    pub async fn open<S>(stream: S) -> Result<Self, ControlError>
    where
        S: AsyncRead + AsyncWrite + Send + 'static,
    {
        let connection = tokio::time::timeout(HANDSHAKE_TIMEOUT, Connection::open(stream))
            .await
            .map_err(|_| ControlError::TimedOut(HANDSHAKE_TIMEOUT))??;
        Ok(Self {
            connection,
            prewarm: Arc::new(PrewarmState {
                requested: OnceLock::new(),
                generation: AtomicU64::new(1),
                ready_generation: AtomicU64::new(0),
            }),
        })
    }

    /// Asks the guest to keep an interpreter booted for the next run, and waits until the interpreter is ready.
    /// The guest boots it again after every reset, even if the caller drops this future.
    ///
    /// # Errors
    /// [`ControlError::Failed`] if a module of [`PrewarmSettings::preload`] is refused or the
    /// interpreter does not start; each run then starts its own interpreter.
    pub async fn prepare(
        &self,
        runtime: Runtime,
        settings: PrewarmSettings,
    ) -> Result<(), ControlError> {
        tokio::time::timeout(
            BOOT_TIMEOUT,
            exchange::prepare(&self.connection, runtime, settings),
        )
        .await
        .map_err(|_| ControlError::TimedOut(BOOT_TIMEOUT))?
    }

    /// Does the same as [`Self::prepare`] in the background, and again after every reset. A failure is logged, and
    /// makes runs slower.
    pub fn prepare_in_background(&self, runtime: Runtime, settings: PrewarmSettings) {
        let prewarm = &self.prewarm;
        // A guest keeps one kind of interpreter: the first request counts.
        let requested = prewarm.requested.get_or_init(|| (runtime, settings));
        let (runtime, settings) = requested.clone();
        let generation = prewarm.generation.load(Ordering::Relaxed);
        let control = self.clone();
        tokio::spawn(async move {
            let ready = &control.prewarm.ready_generation;
            match control.prepare(runtime, settings).await {
                Ok(()) => ready.store(generation, Ordering::Relaxed),
                Err(ControlError::Closed(_)) => {}
                Err(error) => log::warn!(error:%; "no interpreter is kept booted"),
            }
        });
    }

    /// Returns whether a run would find its interpreter booted, as far as the host knows. Also true if no
    /// interpreter was requested.
    #[must_use]
    pub fn is_prepared(&self) -> bool {
        let PrewarmState {
            requested,
            generation,
            ready_generation,
        } = &*self.prewarm;
        requested.get().is_none()
            || ready_generation.load(Ordering::Relaxed) == generation.load(Ordering::Relaxed)
    }

    /// Checks that the guest answers, by requesting again the interpreter that it keeps. May take as long as
    /// booting an interpreter. A guest that keeps no interpreter is not asked, and counts as healthy.
    ///
    /// # Errors
    /// [`ControlError::TimedOut`] and [`ControlError::Closed`].
    pub async fn check(&self) -> Result<(), ControlError> {
        let Some((runtime, settings)) = self.prewarm.requested.get() else {
            return Ok(());
        };
        match self.prepare(*runtime, settings.clone()).await {
            // A refusal is an answer too.
            Err(ControlError::Failed(_)) => Ok(()),
            checked => checked,
        }
    }

    /// Starts a run. The returned [`RunHandle`] yields its events; dropping the handle ends the run.
    ///
    /// # Errors
    /// [`ControlError::Closed`]; [`ControlError::TooLarge`] for a spec that exceeds one frame. A
    /// program that cannot be started is reported as an event.
    pub fn run(&self, spec: RunSpec) -> Result<RunHandle, ControlError> {
        RunHandle::start(&self.connection, spec)
    }

    /// Writes a file as the sandbox user.
    ///
    /// # Errors
    /// [`ControlError::Failed`] if the path is refused or the sandbox is full.
    pub async fn write_file(
        &self,
        path: &str,
        mode: u32,
        content: &[u8],
    ) -> Result<(), ControlError> {
        exchange::write_file(&self.connection, path, mode, content).await
    }

    /// Reads a file as the sandbox user, up to `limit` bytes.
    ///
    /// # Errors
    /// [`ControlError::Failed`] if the file does not exist or the path is refused; [`ControlError::TooLarge`]
    /// if the file is larger than `limit`.
    pub async fn read_file(&self, path: &str, limit: usize) -> Result<Vec<u8>, ControlError> {
        exchange::read_file(&self.connection, path, limit).await
    }

    /// Begins to write a file as the sandbox user. A refusal is reported when content is written.
    ///
    /// # Errors
    /// [`ControlError::Closed`].
    pub fn open_writer(&self, path: &str, mode: u32) -> Result<FileWriter, ControlError> {
        FileWriter::open(&self.connection, path, mode)
    }

    /// Begins to read a file as the sandbox user. A missing file is reported when the first piece is read.
    ///
    /// # Errors
    /// [`ControlError::Closed`].
    pub fn open_reader(&self, path: &str) -> Result<FileReader, ControlError> {
        FileReader::open(&self.connection, path)
    }

    /// Lists at most `limit` entries of a directory, as the sandbox user sees it, in no particular order.
    ///
    /// # Errors
    /// [`ControlError::Failed`] if the directory does not exist or the path is refused.
    pub async fn list(
        &self,
        path: &str,
        limit: u32,
    ) -> Result<Vec<RawDirectoryEntry>, ControlError> {
        file::list(&self.connection, path, limit).await
    }

    /// Restores the initial state of the sandbox: ends every process but the guest, and empties every writable
    /// directory.
    ///
    /// # Errors
    /// Any [`ControlError`]; the sandbox must not be used again.
    pub async fn reset(&self) -> Result<(), ControlError> {
        self.prewarm.generation.fetch_add(1, Ordering::Relaxed);
        tokio::time::timeout(RESET_TIMEOUT, exchange::reset(&self.connection))
            .await
            .map_err(|_| ControlError::TimedOut(RESET_TIMEOUT))??;
        if let Some((runtime, settings)) = self.prewarm.requested.get() {
            self.prepare_in_background(*runtime, settings.clone());
        }
        Ok(())
    }

    /// Returns whether an earlier connection to this guest was lost during a run, which left the sandbox in an
    /// unknown state.
    #[must_use]
    pub fn was_interrupted(&self) -> bool {
        self.connection.was_interrupted
    }

    /// Returns whether the connection is closed.
    #[must_use]
    pub fn is_closed(&self) -> bool {
        self.connection.closed().is_some()
    }

    /// Waits until the connection is closed, and returns the reason.
    pub async fn closed(&self) -> String {
        self.connection.wait_closed().await
    }
}

#[cfg(test)]
mod tests;
