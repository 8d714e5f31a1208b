//! The way of a run's output into a result or to the client that follows the run.

use std::sync::Arc;
use std::time::Duration;

use isol8_api::{Encoding, EventKind, Phase, StreamEvent};
use isol8_protocol::{Exit, OutputStream};
use tokio::time::Instant;

use super::events::{self, EventSender};
use super::secrets::Secrets;
use super::text::Text;
use crate::error::ExecuteError;

/// Last line of standard error of a run whose time was over.
const TIMED_OUT: &str = "--- EXECUTION TIMED OUT ---";

/// How long a client may take no output at all. The run occupies its sandbox meanwhile.
const STALLED_AFTER: Duration = Duration::from_secs(60);

/// Most text of one event, in bytes. A server has a few of them under way for each client.
const EVENT_SIZE: usize = 16 * 1024;

/// Most bytes of an event in base64, which are as long as an event may be then.
const MAX_EVENT_BYTES: usize = EVENT_SIZE / 4 * 3;

/// The destination of text.
#[derive(Debug)]
pub(super) enum Sink {
    /// Into a result.
    Result(Written),
    /// To a client.
    Stream(Follower),
}

/// A client that follows the run.
#[derive(Debug)]
pub(super) struct Follower {
    events: EventSender,
    /// Until this time the run goes on as fast as the client takes its events. After it, programs have ended, and the
    /// rest of their output is kept for the client.
    waits_until: Instant,
    /// Output that the program left, until its end is known. Small pieces are joined: each event has a cost.
    left: Vec<StreamEvent>,
    left_cost: usize,
}

/// Both streams of a result. Without an encoding asked for, both are UTF-8.
#[derive(Debug, Default)]
pub(super) struct Written {
    pub(super) stdout: Vec<u8>,
    pub(super) stderr: Vec<u8>,
}

/// An output stream of a result, encoded as the contract says.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Carried {
    pub(super) text: String,
    pub(super) encoding: Encoding,
}

impl Carried {
    /// Encodes bytes as text, without white space at its end if `is_trimmed`, or as base64 if they are not UTF-8.
    pub(super) fn new(bytes: Vec<u8>, is_trimmed: bool) -> Self {
        let (mut text, encoding) = Encoding::encode(bytes);
        if is_trimmed && encoding.is_utf8() {
            text.truncate(text.trim_end().len());
        }
        Self { text, encoding }
    }
}

impl Sink {
    /// Returns the sink for a client that follows the run. The run waits for the client from [`Self::wait_until`] on.
    pub(super) fn stream(events: EventSender) -> Self {
        let waits_until = Instant::now();
        Self::Stream(Follower {
            events,
            waits_until,
            left: Vec::new(),
            left_cost: 0,
        })
    }

    /// Sets until when a slow client slows the run down.
    pub(super) fn wait_until(&mut self, deadline: Instant) {
        if let Self::Stream(follower) = self {
            follower.waits_until = deadline;
        }
    }

    async fn put(
        &mut self,
        phase: Phase,
        stream: OutputStream,
        mut bytes: Vec<u8>,
    ) -> Result<(), ExecuteError> {
        match (self, stream) {
            (Self::Result(written), OutputStream::Stdout) => written.stdout.append(&mut bytes),
            (Self::Result(written), OutputStream::Stderr) => written.stderr.append(&mut bytes),
            (Self::Stream(follower), _) => {
                let kind = match stream {
                    OutputStream::Stdout => EventKind::Stdout,
                    OutputStream::Stderr => EventKind::Stderr,
                };
                for Carried { text, encoding } in pieces(&bytes) {
                    let mut event = StreamEvent::new(kind, text, phase);
                    event.encoding = encoding;
                    follower.send(event).await?;
                }
            }
        }
        Ok(())
    }

    /// Sends an event that is not output to the client that follows the run.
    pub(super) async fn tell(&mut self, event: StreamEvent) -> Result<(), ExecuteError> {
        match self {
            Self::Result(_) => Ok(()),
            Self::Stream(follower) => {
                follower.send(event).await?;
                follower.flush()
            }
        }
    }

    /// Returns the output of the phase that has just ended, if it is kept.
    pub(super) fn take(&mut self) -> Written {
        match self {
            Self::Result(written) => std::mem::take(written),
            Self::Stream(_) => Written::default(),
        }
    }
}

impl Follower {
    async fn send(&mut self, event: StreamEvent) -> Result<(), ExecuteError> {
        if !self.left.is_empty() {
            return self.keep(event);
        }
        let stalled = Instant::now() + STALLED_AFTER;
        let deadline = self.waits_until.min(stalled);
        match self.events.send(event, deadline).await? {
            Ok(()) => Ok(()),
            Err(_) if deadline == stalled => Err(ExecuteError::Cancelled),
            Err(event) => self.keep(event),
        }
    }

    fn keep(&mut self, event: StreamEvent) -> Result<(), ExecuteError> {
        let last = self.left.last_mut().filter(|last| {
            (last.kind, last.phase) == (event.kind, event.phase)
                && last.encoding.is_utf8()
                && event.encoding.is_utf8()
                && last.data.len() + event.data.len() <= EVENT_SIZE
        });
        self.left_cost += match last {
            Some(last) => {
                last.data.push_str(&event.data);
                event.data.len()
            }
            None => {
                let cost = events::cost(&event);
                self.left.push(event);
                cost
            }
        };
        match self.left_cost <= events::MOST_LEFT {
            true => Ok(()),
            false => Err(ExecuteError::Cancelled),
        }
    }

    /// Leaves to the client what is kept for it.
    fn flush(&mut self) -> Result<(), ExecuteError> {
        let mut left = self.left.drain(..);
        left.try_for_each(|event| self.events.send_after_end(event))
    }
}

/// Cuts output into events: text into whole characters, and what is no text anywhere.
fn pieces(bytes: &[u8]) -> impl Iterator<Item = Carried> {
    let mut rest = bytes;
    let is_text = std::str::from_utf8(bytes).is_ok();
    let limit = if is_text { EVENT_SIZE } else { MAX_EVENT_BYTES };
    std::iter::from_fn(move || {
        let mut length = rest.len().min(limit);
        // A character has at most four bytes.
        while is_text && length < rest.len() && rest[length] & 0xC0 == 0x80 {
            length -= 1;
        }
        let (piece, after) = rest.split_at(length);
        rest = after;
        (!piece.is_empty()).then(|| Carried::new(piece.to_vec(), false))
    })
}

/// Both streams of one program.
#[derive(Debug)]
pub(super) struct Output<'a> {
    sink: &'a mut Sink,
    phase: Phase,
    stdout: Text,
    stderr: Text,
}

impl<'a> Output<'a> {
    pub(super) fn new(
        sink: &'a mut Sink,
        phase: Phase,
        limit: u64,
        secrets: Option<&Arc<Secrets>>,
        encoding: Encoding,
    ) -> Self {
        let text = || Text::new(limit, secrets.cloned(), encoding);
        Self {
            sink,
            phase,
            stdout: text(),
            stderr: text(),
        }
    }

    /// Passes on what was written; waits where the client is slow.
    pub(super) async fn push(
        &mut self,
        stream: OutputStream,
        bytes: Vec<u8>,
    ) -> Result<(), ExecuteError> {
        let text = match stream {
            OutputStream::Stdout => self.stdout.push(bytes),
            OutputStream::Stderr => self.stderr.push(bytes),
        };
        self.sink.put(self.phase, stream, text).await
    }

    /// Passes on the rest.
    pub(super) async fn finish(mut self, exit: &Exit) -> Result<Finished, ExecuteError> {
        let (rest, stdout_cut) = self.stdout.finish(exit.stdout_bytes);
        self.sink
            .put(self.phase, OutputStream::Stdout, rest)
            .await?;
        let (mut rest, stderr_cut) = self.stderr.finish(exit.stderr_bytes);
        if exit.timed_out {
            rest.append(&mut self.stderr.line(TIMED_OUT));
        }
        self.sink
            .put(self.phase, OutputStream::Stderr, rest)
            .await?;
        if let Sink::Stream(follower) = self.sink {
            follower.flush()?;
        }
        Ok(Finished {
            truncated: stdout_cut || stderr_cut,
            stderr: self.stderr,
        })
    }
}

/// All output of a program that has ended.
#[derive(Debug)]
pub(super) struct Finished {
    /// Something was cut.
    pub(super) truncated: bool,
    stderr: Text,
}

impl Finished {
    /// The output of a job that has no program.
    pub(super) fn empty() -> Self {
        Self {
            truncated: false,
            stderr: Text::new(0, None, Encoding::Utf8),
        }
    }

    /// Adds a line at the end of the program's standard error.
    pub(super) async fn add_line(
        &mut self,
        sink: &mut Sink,
        note: &str,
    ) -> Result<(), ExecuteError> {
        let line = self.stderr.line(note);
        sink.put(Phase::Code, OutputStream::Stderr, line).await?;
        if let Sink::Stream(follower) = sink {
            follower.flush()?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn events_are_bounded_and_end_with_whole_characters() {
        let text = "€".repeat(EVENT_SIZE);
        let cut: Vec<Carried> = pieces(text.as_bytes()).collect();
        assert!(cut.iter().all(|piece| piece.text.len() <= EVENT_SIZE));
        let joined: String = cut.iter().map(|piece| piece.text.as_str()).collect();
        assert_eq!(joined, text);
        assert_eq!(pieces(b"").count(), 0);
    }

    #[test]
    fn events_of_what_is_no_text_are_bounded_and_lose_nothing() {
        let bytes = b"\xffx".repeat(EVENT_SIZE);
        let mut joined = Vec::new();
        for Carried { text, encoding } in pieces(&bytes) {
            assert_eq!(encoding, Encoding::Base64);
            assert!(text.len() <= EVENT_SIZE);
            joined.extend_from_slice(&encoding.decode(&text).unwrap());
        }
        assert_eq!(joined, bytes);
    }

    #[tokio::test]
    async fn trailing_white_space_of_a_result_goes_and_other_stays() {
        for (bytes, is_trimmed, text, encoding) in [
            (&b" a\n b \n\n"[..], true, " a\n b", Encoding::Utf8),
            (b" a\n b \n\n", false, " a\n b \n\n", Encoding::Utf8),
            (b"\xff\n", true, "/wo=", Encoding::Base64),
        ] {
            let mut sink = Sink::Result(Written::default());
            let put = sink.put(Phase::Code, OutputStream::Stdout, bytes.to_vec());
            put.await.unwrap();
            let carried = Carried::new(sink.take().stdout, is_trimmed);
            let text = text.to_owned();
            assert_eq!(carried, Carried { text, encoding });
        }
    }
}
