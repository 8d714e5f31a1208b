//! Writes the output of a run, as unchanged bytes.

use std::fs::File;
use std::io::{self, Write};
use std::path::Path;
use std::sync::Arc;
use std::thread;

use isol8_api::{ExecutionResult, NotBase64};
use tokio::sync::{Semaphore, mpsc, oneshot, watch};

use crate::commands::message;

/// Bytes that may be buffered before a slow reader slows the run down. More than most programs may write at all,
/// because a user who reads the output page by page must not be taken for a closed pipe.
const MAX_BUFFERED: u32 = 8 << 20;

/// When a run's output is printed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::commands) enum OutputMode {
    /// As it arrives.
    Live,
    /// Once the run has ended, with the same bytes.
    AtEnd,
    /// Not at all; the caller puts the output into a result.
    Collect,
}

/// One of the two output streams.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stream {
    Stdout,
    Stderr,
}

/// The output of a run, written by a thread of its own, so that a slow or blocked reader does not keep the user
/// from ending the run.
#[derive(Debug)]
pub(in crate::commands) struct Output {
    mode: OutputMode,
    writer: Option<mpsc::UnboundedSender<(Stream, Vec<u8>)>>,
    written: oneshot::Receiver<io::Result<()>>,
    gone: watch::Receiver<bool>,
    /// A permit for each byte that may be buffered.
    room: Arc<Semaphore>,
    kept: Vec<(Stream, Vec<u8>)>,
    /// Whether the last text on standard error ended within a line.
    within_line: bool,
}

impl Output {
    /// Returns an output, which also writes standard output to the file `out`, if given.
    ///
    /// # Errors
    /// Returns an error if the file cannot be created.
    pub(in crate::commands) fn new(mode: OutputMode, out: Option<&Path>) -> io::Result<Self> {
        let copy = out.map(File::create).transpose()?;
        let (writer, pieces) = mpsc::unbounded_channel();
        let (finished, written) = oneshot::channel();
        let (is_gone, gone) = watch::channel(false);
        let room = Arc::new(Semaphore::new(MAX_BUFFERED as usize));
        let prints = mode != OutputMode::Collect;
        let taken = Arc::clone(&room);
        thread::Builder::new()
            .name("output".to_owned())
            .spawn(move || {
                let mut to = Writer {
                    prints,
                    copy,
                    gone: is_gone,
                    room: taken,
                };
                // Ignore a dropped receiver: a command that failed does not wait for the output.
                let _ = finished.send(to.write_all(pieces));
            })?;
        Ok(Self {
            mode,
            writer: Some(writer),
            written,
            gone,
            room,
            kept: Vec::new(),
            within_line: false,
        })
    }

    /// Writes the program's standard output.
    pub(super) async fn stdout(&mut self, bytes: Vec<u8>) {
        self.wait_for_room(&bytes).await;
        self.put(Stream::Stdout, bytes);
    }

    /// Writes the program's standard error.
    pub(super) async fn stderr(&mut self, bytes: Vec<u8>) {
        self.wait_for_room(&bytes).await;
        if let Some(last) = bytes.last() {
            self.within_line = *last != b'\n';
        }
        self.put(Stream::Stderr, bytes);
    }

    /// Writes the output of a program that has ended. The result must not be trimmed.
    ///
    /// # Errors
    /// Returns an error if the result claims to be base64 and is not.
    pub(in crate::commands) async fn result(
        &mut self,
        result: &ExecutionResult,
    ) -> Result<(), NotBase64> {
        let stdout = result.stdout_encoding.decode(&result.stdout)?;
        self.stdout(stdout.into_owned()).await;
        let stderr = result.stderr_encoding.decode(&result.stderr)?;
        self.stderr(stderr.into_owned()).await;
        Ok(())
    }

    /// Writes a message of isol8 on standard error, and never into a result.
    pub(in crate::commands) fn note(&mut self, text: &str) {
        let line = format!("{}{text}\n", message::prefix());
        self.line(&line);
    }

    /// Writes a line unchanged on standard error, and never into a result.
    pub(in crate::commands) fn line(&mut self, line: &str) {
        if self.mode == OutputMode::Collect {
            // No output of the program is printed, so the line needs no separation from it.
            message::to_stderr(line);
            return;
        }
        let begin = if self.within_line { "\n" } else { "" };
        self.within_line = false;
        self.put(Stream::Stderr, format!("{begin}{line}").into_bytes());
    }

    async fn wait_for_room(&self, written: &[u8]) {
        if self.mode != OutputMode::Live {
            return;
        }
        let bytes = u32::try_from(written.len())
            .unwrap_or(MAX_BUFFERED)
            .min(MAX_BUFFERED);
        // The semaphore is never closed.
        if let Ok(room) = self.room.acquire_many(bytes).await {
            room.forget();
        }
    }

    fn put(&mut self, stream: Stream, bytes: Vec<u8>) {
        match (self.mode, &self.writer) {
            // Ignore a writer that has ended: `gone` reports it.
            (OutputMode::Live, Some(writer)) => drop(writer.send((stream, bytes))),
            _ => self.kept.push((stream, bytes)),
        }
    }

    /// Completes once standard output has no reader any more; otherwise never.
    pub(super) fn gone(&self) -> impl Future<Output = ()> + use<> {
        let mut gone = self.gone.clone();
        async move {
            if gone.wait_for(|gone| *gone).await.is_err() {
                std::future::pending().await
            }
        }
    }

    /// Returns the program's standard output and standard error, if they are collected.
    pub(in crate::commands) fn collected(&self) -> (Vec<u8>, Vec<u8>) {
        let of = |wanted| {
            let kept = self.kept.iter().filter(|(stream, _)| *stream == wanted);
            kept.flat_map(|(_, bytes)| bytes).copied().collect()
        };
        (of(Stream::Stdout), of(Stream::Stderr))
    }

    /// Prints the remaining output, and waits until everything is written.
    ///
    /// # Errors
    /// Returns an error if a file or standard output could not be written.
    pub(in crate::commands) async fn finish(mut self) -> io::Result<()> {
        if let Some(writer) = self.writer.take() {
            for piece in self.kept.drain(..) {
                let _ = writer.send(piece);
            }
        }
        self.written.await.unwrap_or(Ok(()))
    }
}

/// The writing thread's part of the output.
#[derive(Debug)]
struct Writer {
    prints: bool,
    copy: Option<File>,
    gone: watch::Sender<bool>,
    room: Arc<Semaphore>,
}

impl Writer {
    /// Writes until the channel is closed. A reader that has gone away, as in `isol8 run … | head -1`, is not an
    /// error.
    fn write_all(
        &mut self,
        mut pieces: mpsc::UnboundedReceiver<(Stream, Vec<u8>)>,
    ) -> io::Result<()> {
        while let Some((stream, bytes)) = pieces.blocking_recv() {
            match self.write(stream, &bytes) {
                Err(error) if error.kind() == io::ErrorKind::BrokenPipe => {
                    self.gone.send_replace(true);
                    return Ok(());
                }
                written => written?,
            }
            // Also add permits for bytes that never waited for any: only a few lines of isol8's own messages.
            self.room.add_permits(bytes.len());
        }
        Ok(())
    }

    fn write(&mut self, stream: Stream, bytes: &[u8]) -> io::Result<()> {
        if let (Some(copy), Stream::Stdout) = (&mut self.copy, stream) {
            copy.write_all(bytes)?;
        }
        match stream {
            _ if !self.prints => Ok(()),
            Stream::Stdout => print(&mut io::stdout(), bytes),
            // Ignore errors: standard error may be closed.
            Stream::Stderr => print(&mut io::stderr(), bytes).or(Ok(())),
        }
    }
}

fn print(to: &mut impl Write, bytes: &[u8]) -> io::Result<()> {
    to.write_all(bytes)?;
    to.flush()
}
