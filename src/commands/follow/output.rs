//! Where the output of a run goes: bytes, unchanged.

use std::fs::File;
use std::io::{self, Write};
use std::path::Path;
use std::sync::Arc;
use std::thread;

use isol8_api::{ExecutionResult, NotBase64};
use tokio::sync::{Semaphore, mpsc, oneshot, watch};

use crate::commands::say;

/// Bytes that may wait to be written before a slow reader slows the run down. More than most programs
/// may write at all: somebody who reads a page of it at a time is not to be taken for gone.
const WAITING: u32 = 8 << 20;

/// When a run's output is printed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::commands) enum Manner {
    /// As it comes.
    Live,
    /// Once the run has ended; the same bytes.
    AtEnd,
    /// Not at all: whoever asked puts it into a result.
    Collect,
}

/// One of the two streams.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stream {
    Stdout,
    Stderr,
}

/// What is written, by a thread of its own: a reader that is slow, or stands still, keeps nobody from
/// ending the run.
#[derive(Debug)]
pub(in crate::commands) struct Output {
    manner: Manner,
    writer: Option<mpsc::UnboundedSender<(Stream, Vec<u8>)>>,
    written: oneshot::Receiver<io::Result<()>>,
    gone: watch::Receiver<bool>,
    /// A permit for each byte that may wait.
    room: Arc<Semaphore>,
    kept: Vec<(Stream, Vec<u8>)>,
    /// What went to standard error ends within a line.
    within_line: bool,
}

impl Output {
    /// An output that writes standard output to a file, too, where one is named.
    ///
    /// # Errors
    /// Where the file cannot be made.
    pub(in crate::commands) fn new(manner: Manner, out: Option<&Path>) -> io::Result<Self> {
        let copy = out.map(File::create).transpose()?;
        let (writer, pieces) = mpsc::unbounded_channel();
        let (finished, written) = oneshot::channel();
        let (is_gone, gone) = watch::channel(false);
        let room = Arc::new(Semaphore::new(WAITING as usize));
        let prints = manner != Manner::Collect;
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
                // Nobody waits for it where the command has failed.
                let _ = finished.send(to.write_all(pieces));
            })?;
        Ok(Self {
            manner,
            writer: Some(writer),
            written,
            gone,
            room,
            kept: Vec::new(),
            within_line: false,
        })
    }

    /// Writes what the program wrote to standard output.
    pub(super) async fn stdout(&mut self, bytes: Vec<u8>) {
        self.wait_for_room(&bytes).await;
        self.put(Stream::Stdout, bytes);
    }

    /// Writes what the program wrote to standard error.
    pub(super) async fn stderr(&mut self, bytes: Vec<u8>) {
        self.wait_for_room(&bytes).await;
        if let Some(last) = bytes.last() {
            self.within_line = *last != b'\n';
        }
        self.put(Stream::Stderr, bytes);
    }

    /// Writes what a program has written that has ended. The result must not be trimmed.
    ///
    /// # Errors
    /// Where the result says base64 and is none.
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

    /// A line of ours, on standard error and in no result.
    pub(in crate::commands) fn note(&mut self, text: &str) {
        let line = format!("{}{text}\n", say::prefix());
        self.line(&line);
    }

    /// A line that is printed as it is, on standard error and in no result.
    pub(in crate::commands) fn line(&mut self, line: &str) {
        if self.manner == Manner::Collect {
            // Nothing of the program's is there to keep apart from.
            say::to_stderr(line);
            return;
        }
        let begin = if self.within_line { "\n" } else { "" };
        self.within_line = false;
        self.put(Stream::Stderr, format!("{begin}{line}").into_bytes());
    }

    async fn wait_for_room(&self, written: &[u8]) {
        if self.manner != Manner::Live {
            return;
        }
        let bytes = u32::try_from(written.len()).unwrap_or(WAITING).min(WAITING);
        // The semaphore is never closed.
        if let Ok(room) = self.room.acquire_many(bytes).await {
            room.forget();
        }
    }

    fn put(&mut self, stream: Stream, bytes: Vec<u8>) {
        match (self.manner, &self.writer) {
            // One that has ended is found by `gone`.
            (Manner::Live, Some(writer)) => drop(writer.send((stream, bytes))),
            _ => self.kept.push((stream, bytes)),
        }
    }

    /// Done once nobody reads standard output any more; never where that does not happen.
    pub(super) fn gone(&self) -> impl Future<Output = ()> + use<> {
        let mut gone = self.gone.clone();
        async move {
            if gone.wait_for(|gone| *gone).await.is_err() {
                std::future::pending().await
            }
        }
    }

    /// What the program wrote, where it is collected.
    pub(in crate::commands) fn collected(&self) -> (Vec<u8>, Vec<u8>) {
        let of = |wanted| {
            let kept = self.kept.iter().filter(|(stream, _)| *stream == wanted);
            kept.flat_map(|(_, bytes)| bytes).copied().collect()
        };
        (of(Stream::Stdout), of(Stream::Stderr))
    }

    /// Prints what is left, and waits until all is written.
    ///
    /// # Errors
    /// Where something, a file or standard output, could not be written.
    pub(in crate::commands) async fn finish(mut self) -> io::Result<()> {
        if let Some(writer) = self.writer.take() {
            for piece in self.kept.drain(..) {
                let _ = writer.send(piece);
            }
        }
        self.written.await.unwrap_or(Ok(()))
    }
}

/// The thread's part.
#[derive(Debug)]
struct Writer {
    prints: bool,
    copy: Option<File>,
    gone: watch::Sender<bool>,
    room: Arc<Semaphore>,
}

impl Writer {
    /// Writes until nothing more comes. A reader that has gone away, as in `isol8 run … | head -1`, is no
    /// fault.
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
            // What never waited for room gives some, too: a few lines of ours.
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
            // Whoever closed it wants to know nothing.
            Stream::Stderr => print(&mut io::stderr(), bytes).or(Ok(())),
        }
    }
}

fn print(to: &mut impl Write, bytes: &[u8]) -> io::Result<()> {
    to.write_all(bytes)?;
    to.flush()
}
