//! The control connection: runs, files, resets and the connections of programs, multiplexed over one
//! stream of bytes.
//!
//! Two tasks serve a connection: one writes frames, the other reads and hands each frame to the run or transfer that it
//! belongs to. Bytes under way on one stream are bounded by credit ([`WINDOW`](isol8_protocol::WINDOW)), in both
//! directions; so a slow stream slows no other, and memory is bounded although the queues are not. A guest that breaks
//! a rule (a frame that is too long or malformed, more output than its credit, a wrong version) loses its connection,
//! which ends the sandbox.

mod allowance;
mod connection;
mod file;
mod run;
mod transfer;
mod tunnel;
mod tunnels;

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use isol8_protocol::{Entry, Failure, FailureKind, KernelKind, KernelSettings, RunSpec};
use tokio::io::{AsyncRead, AsyncWrite};

use connection::Connection;
pub use file::{FileReader, FileWriter};
pub use run::{Run, RunEvent, RunInput};
pub use tunnel::{Tunnel, Tunnels};

/// How long a guest may take for its half of the handshake. The guest has no other work at that time.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);

/// How long booting an interpreter may take, the modules that it imports ahead included.
const BOOT_TIMEOUT: Duration = Duration::from_secs(60);

/// How long a reset may take: killing, and emptying two file systems.
const RESET_TIMEOUT: Duration = Duration::from_secs(30);

/// Why the guest did not do what it was asked.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ControlError {
    /// The connection is gone, and the sandbox with it.
    #[error("the sandbox is gone: {0}")]
    Closed(String),
    /// The guest did not answer in time.
    #[error("the sandbox did not answer within {} s", .0.as_secs())]
    TimedOut(Duration),
    /// The request is larger than a frame may be.
    #[error("{0}")]
    TooLarge(String),
    /// The guest says why not.
    #[error("{}", .0.message)]
    Failed(Failure),
}

impl ControlError {
    /// The guest's own kind of failure, if it answered.
    #[must_use]
    pub fn failure_kind(&self) -> Option<FailureKind> {
        match self {
            Self::Failed(failure) => Some(failure.kind),
            _ => None,
        }
    }
}

/// A live connection to a guest. Clones share it; it closes with the last of them.
#[derive(Clone, Debug)]
pub struct Control {
    connection: Arc<Connection>,
    kept: Arc<Kept>,
}

/// The state of the interpreter that the guest keeps booted.
#[derive(Debug)]
struct Kept {
    wanted: OnceLock<(KernelKind, KernelSettings)>,
    /// The sandbox's lives so far: a reset begins another.
    life: AtomicU64,
    /// The one in which it was there last.
    there_in: AtomicU64,
}

impl Control {
    /// Greets the guest at the other end of `stream` and starts to serve the connection.
    ///
    /// # Errors
    /// [`ControlError::TimedOut`] without an answer, [`ControlError::Closed`] if the answer is wrong.
    pub async fn open<S>(stream: S) -> Result<Self, ControlError>
    where
        S: AsyncRead + AsyncWrite + Send + 'static,
    {
        let connection = tokio::time::timeout(HANDSHAKE_TIMEOUT, Connection::open(stream))
            .await
            .map_err(|_| ControlError::TimedOut(HANDSHAKE_TIMEOUT))??;
        Ok(Self {
            connection,
            kept: Arc::new(Kept {
                wanted: OnceLock::new(),
                life: AtomicU64::new(1),
                there_in: AtomicU64::new(0),
            }),
        })
    }

    /// Asks the guest to keep an interpreter booted for the run that will need it, and waits until one is. The request
    /// holds through every reset, and also if it is not waited for.
    ///
    /// # Errors
    /// [`ControlError::Failed`] where a module of [`KernelSettings::preload`] is refused or the
    /// interpreter does not start; runs then start one of their own.
    pub async fn prepare(
        &self,
        kernel: KernelKind,
        settings: KernelSettings,
    ) -> Result<(), ControlError> {
        tokio::time::timeout(
            BOOT_TIMEOUT,
            transfer::prepare(&self.connection, kernel, settings),
        )
        .await
        .map_err(|_| ControlError::TimedOut(BOOT_TIMEOUT))?
    }

    /// As [`Self::prepare`], in the background, and again after every reset: a failure is logged, and
    /// shows in the runs' speed.
    pub fn prepare_in_background(&self, kernel: KernelKind, settings: KernelSettings) {
        // A guest keeps one kind of interpreter.
        let (kernel, settings) = self.kept.wanted.get_or_init(|| (kernel, settings)).clone();
        let life = self.kept.life.load(Ordering::Relaxed);
        let control = self.clone();
        tokio::spawn(async move {
            match control.prepare(kernel, settings).await {
                Ok(()) => control.kept.there_in.store(life, Ordering::Relaxed),
                Err(ControlError::Closed(_)) => {}
                Err(error) => log::warn!(error:%; "no interpreter is kept booted"),
            }
        });
    }

    /// Whether a run would find its interpreter booted, as far as is known, or there is none to wait
    /// for.
    #[must_use]
    pub fn is_prepared(&self) -> bool {
        let Kept { life, there_in, .. } = &*self.kept;
        self.kept.wanted.get().is_none()
            || there_in.load(Ordering::Relaxed) == life.load(Ordering::Relaxed)
    }

    /// Asks the guest for the interpreter that it keeps, to see that it answers. Takes as long as
    /// booting one may; a guest that is asked for none is taken to be well.
    ///
    /// # Errors
    /// [`ControlError::TimedOut`] and [`ControlError::Closed`].
    pub async fn check(&self) -> Result<(), ControlError> {
        let Some((kernel, settings)) = self.kept.wanted.get() else {
            return Ok(());
        };
        match self.prepare(*kernel, settings.clone()).await {
            // A failure is an answer too.
            Err(ControlError::Failed(_)) => Ok(()),
            checked => checked,
        }
    }

    /// Starts a run. Its events come from the returned [`Run`]; dropping that ends the run.
    ///
    /// # Errors
    /// [`ControlError::Closed`]; [`ControlError::TooLarge`] for a spec beyond one frame. A program that cannot be
    /// started is reported in the events.
    pub fn run(&self, spec: RunSpec) -> Result<Run, ControlError> {
        Run::start(&self.connection, spec)
    }

    /// Writes a file as the sandbox user.
    ///
    /// # Errors
    /// [`ControlError::Failed`] where the path is refused or the sandbox is full.
    pub async fn write_file(
        &self,
        path: &str,
        mode: u32,
        content: &[u8],
    ) -> Result<(), ControlError> {
        transfer::write_file(&self.connection, path, mode, content).await
    }

    /// Reads a file as the sandbox user, up to `limit` bytes.
    ///
    /// # Errors
    /// [`ControlError::Failed`] if the file does not exist or is refused; [`ControlError::TooLarge`] beyond `limit`.
    pub async fn read_file(&self, path: &str, limit: usize) -> Result<Vec<u8>, ControlError> {
        transfer::read_file(&self.connection, path, limit).await
    }

    /// Starts to write a file as the sandbox user. A refusal is reported with its content.
    ///
    /// # Errors
    /// [`ControlError::Closed`].
    pub fn open_writer(&self, path: &str, mode: u32) -> Result<FileWriter, ControlError> {
        FileWriter::open(&self.connection, path, mode)
    }

    /// Starts to read a file as the sandbox user. A missing file is reported with its first piece.
    ///
    /// # Errors
    /// [`ControlError::Closed`].
    pub fn open_reader(&self, path: &str) -> Result<FileReader, ControlError> {
        FileReader::open(&self.connection, path)
    }

    /// At most `limit` entries of a directory, as the sandbox user sees it, in no particular order.
    ///
    /// # Errors
    /// [`ControlError::Failed`] if the directory does not exist or is refused.
    pub async fn list(&self, path: &str, limit: u32) -> Result<Vec<Entry>, ControlError> {
        file::list(&self.connection, path, limit).await
    }

    /// Makes the sandbox as new: every process but the guest ended, every writable place empty.
    ///
    /// # Errors
    /// Any [`ControlError`]: the sandbox may not be used again.
    pub async fn reset(&self) -> Result<(), ControlError> {
        self.kept.life.fetch_add(1, Ordering::Relaxed);
        tokio::time::timeout(RESET_TIMEOUT, transfer::reset(&self.connection))
            .await
            .map_err(|_| ControlError::TimedOut(RESET_TIMEOUT))??;
        if let Some((kernel, settings)) = self.kept.wanted.get() {
            self.prepare_in_background(*kernel, settings.clone());
        }
        Ok(())
    }

    /// Whether a connection to this guest before this one was lost in the middle of a run: the state that the run left
    /// is unknown.
    #[must_use]
    pub fn was_interrupted(&self) -> bool {
        self.connection.was_interrupted
    }

    /// Whether the connection is gone.
    #[must_use]
    pub fn is_closed(&self) -> bool {
        self.connection.closed().is_some()
    }

    /// Waits until the connection is gone, and says why.
    pub async fn closed(&self) -> String {
        self.connection.wait_closed().await
    }
}

#[cfg(test)]
mod tests;
