//! What a run writes, on its way to a result or to whoever follows it.

use std::sync::Arc;
use std::time::Duration;

use isol8_api::{EventKind, Phase, StreamEvent};
use isol8_protocol::{Exit, OutputStream};
use tokio::time::Instant;

use super::events::{self, EventSender};
use super::secrets::Secrets;
use super::text::Text;
use crate::error::ExecuteError;

/// Last line of standard error of a run whose time was over.
const TIMED_OUT: &str = "--- EXECUTION TIMED OUT ---";

/// How long a client may take nothing at all. It holds a sandbox meanwhile.
const STALLED_AFTER: Duration = Duration::from_secs(60);

/// Most text of one event, in bytes. A server has a few of them under way for each client.
const EVENT_SIZE: usize = 16 * 1024;

/// Where text goes.
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
    /// Until then the run goes on as fast as the client takes its events. What runs has ended by then, and what it
    /// left is kept for the client.
    waits_until: Instant,
    /// Output that the program left, until its end is known. Small pieces are joined: each event has a cost.
    left: Vec<StreamEvent>,
    left_cost: usize,
}

/// Both streams of a result.
#[derive(Debug, Default)]
pub(super) struct Written {
    pub(super) stdout: String,
    pub(super) stderr: String,
}

impl Sink {
    /// A client that follows the run. It is waited for from [`Self::wait_until`] on.
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
        text: &str,
    ) -> Result<(), ExecuteError> {
        match (self, stream) {
            (Self::Result(written), OutputStream::Stdout) => written.stdout.push_str(text),
            (Self::Result(written), OutputStream::Stderr) => written.stderr.push_str(text),
            (Self::Stream(follower), _) => {
                let kind = match stream {
                    OutputStream::Stdout => EventKind::Stdout,
                    OutputStream::Stderr => EventKind::Stderr,
                };
                for data in pieces(text) {
                    follower.send(StreamEvent::new(kind, data, phase)).await?;
                }
            }
        }
        Ok(())
    }

    /// Tells whoever follows the run of something that is no output of it.
    pub(super) async fn tell(&mut self, event: StreamEvent) -> Result<(), ExecuteError> {
        match self {
            Self::Result(_) => Ok(()),
            Self::Stream(follower) => {
                follower.send(event).await?;
                follower.flush()
            }
        }
    }

    /// What the phase that has just ended wrote, where it is kept.
    pub(super) fn take(&mut self) -> Written {
        match self {
            Self::Result(written) => {
                let mut written = std::mem::take(written);
                for text in [&mut written.stdout, &mut written.stderr] {
                    text.truncate(text.trim_end().len());
                }
                written
            }
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

/// Cuts a text into events of whole characters.
fn pieces(mut text: &str) -> impl Iterator<Item = &str> {
    std::iter::from_fn(move || {
        let (piece, rest) = text.split_at(text.floor_char_boundary(EVENT_SIZE));
        text = rest;
        (!piece.is_empty()).then_some(piece)
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
    ) -> Self {
        let text = || Text::new(limit, secrets.cloned());
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
        self.sink.put(self.phase, stream, &text).await
    }

    /// Passes on the rest. Says whether something was cut.
    pub(super) async fn finish(&mut self, exit: &Exit) -> Result<bool, ExecuteError> {
        let (rest, stdout_cut) = self.stdout.finish(exit.stdout_bytes);
        self.sink
            .put(self.phase, OutputStream::Stdout, &rest)
            .await?;
        let (mut rest, stderr_cut) = self.stderr.finish(exit.stderr_bytes);
        if exit.timed_out {
            rest.push_str(&self.stderr.line(TIMED_OUT));
        }
        self.sink
            .put(self.phase, OutputStream::Stderr, &rest)
            .await?;
        if let Sink::Stream(follower) = self.sink {
            follower.flush()?;
        }
        Ok(stdout_cut || stderr_cut)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn events_are_bounded_and_end_with_whole_characters() {
        let text = "€".repeat(EVENT_SIZE);
        let cut: Vec<&str> = pieces(&text).collect();
        assert!(cut.iter().all(|piece| piece.len() <= EVENT_SIZE));
        assert_eq!(cut.concat(), text);
        assert_eq!(pieces("").count(), 0);
    }

    #[tokio::test]
    async fn trailing_white_space_of_a_result_goes_and_other_stays() {
        let mut sink = Sink::Result(Written::default());
        let stream = OutputStream::Stdout;
        sink.put(Phase::Code, stream, " a\n b \n\n").await.unwrap();
        assert_eq!(sink.take().stdout, " a\n b");
    }
}
