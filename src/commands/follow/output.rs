//! Where the text of a run goes.

use std::fs::File;
use std::io::{self, Write};
use std::path::Path;
use std::thread;

use tokio::sync::{mpsc, oneshot, watch};

use crate::commands::say;

/// When a run's text is printed.
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
/// ending the run. What waits there is as bounded as the output of a run is.
#[derive(Debug)]
pub(in crate::commands) struct Output {
    manner: Manner,
    writer: Option<mpsc::UnboundedSender<(Stream, String)>>,
    written: oneshot::Receiver<io::Result<()>>,
    gone: watch::Receiver<bool>,
    kept: Vec<(Stream, String)>,
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
        let prints = manner != Manner::Collect;
        thread::Builder::new()
            .name("output".to_owned())
            .spawn(move || {
                // Nobody waits for it where the command has failed.
                let _ = finished.send(write(pieces, prints, copy, &is_gone));
            })?;
        Ok(Self {
            manner,
            writer: Some(writer),
            written,
            gone,
            kept: Vec::new(),
            within_line: false,
        })
    }

    /// Text of the program's standard output.
    pub(super) fn stdout(&mut self, text: String) {
        self.put(Stream::Stdout, text);
    }

    /// Text of the program's standard error.
    pub(super) fn stderr(&mut self, text: String) {
        if !text.is_empty() {
            self.within_line = !text.ends_with('\n');
        }
        self.put(Stream::Stderr, text);
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
        self.put(Stream::Stderr, format!("{begin}{line}"));
    }

    fn put(&mut self, stream: Stream, text: String) {
        match (self.manner, &self.writer) {
            // One that has ended is found by `gone`.
            (Manner::Live, Some(writer)) => drop(writer.send((stream, text))),
            _ => self.kept.push((stream, text)),
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
    pub(in crate::commands) fn collected(&self) -> (String, String) {
        let of = |wanted| {
            let kept = self.kept.iter().filter(|(stream, _)| *stream == wanted);
            kept.map(|(_, text)| text.as_str()).collect()
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

/// Writes until nothing more comes. A reader that has gone away, as in `isol8 run … | head -1`, is no
/// fault.
fn write(
    mut pieces: mpsc::UnboundedReceiver<(Stream, String)>,
    prints: bool,
    mut copy: Option<File>,
    gone: &watch::Sender<bool>,
) -> io::Result<()> {
    while let Some((stream, text)) = pieces.blocking_recv() {
        if let (Some(copy), Stream::Stdout) = (&mut copy, stream) {
            copy.write_all(text.as_bytes())?;
        }
        let printed = match stream {
            _ if !prints => Ok(()),
            Stream::Stdout => print(&mut io::stdout(), &text),
            // Whoever closed it wants to know nothing.
            Stream::Stderr => print(&mut io::stderr(), &text).or(Ok(())),
        };
        match printed {
            Err(error) if error.kind() == io::ErrorKind::BrokenPipe => {
                gone.send_replace(true);
                return Ok(());
            }
            printed => printed?,
        }
    }
    Ok(())
}

fn print(to: &mut impl Write, text: &str) -> io::Result<()> {
    to.write_all(text.as_bytes())?;
    to.flush()
}
