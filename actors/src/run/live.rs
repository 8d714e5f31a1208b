//! The connection between a run and the client that follows it.

use std::convert::Infallible;
use std::future::pending;
use std::sync::Arc;

use isol8_backend::RunInput;
use isol8_protocol::{Signal, TerminalSize};
use tokio::sync::{Mutex, mpsc, watch};

use super::events::EventSender;

/// The client's side of a run. Clones belong to the same client.
#[derive(Clone, Debug)]
pub struct Attachment {
    /// The channel for events. Each event waits until there is room, and the run with it.
    pub(crate) events: EventSender,
    /// Set once the job's program, or its setup script, is about to start.
    pub(crate) begun: watch::Sender<bool>,
    /// Held by the run for as long as it goes on.
    pub(crate) input: Option<Arc<Mutex<Input>>>,
}

/// The input of a client while its run goes on.
#[derive(Debug)]
pub struct Input {
    /// Standard input; it ends with its sender.
    pub stdin: mpsc::Receiver<Vec<u8>>,
    /// Signals. A signal does not wait for input that the program does not read.
    pub signals: mpsc::Receiver<Signal>,
    /// The size of the run's terminal, if it has one. Only changes are passed on.
    pub size: Option<watch::Receiver<TerminalSize>>,
}

/// The client's ends of an [`Input`].
#[derive(Debug)]
pub struct InputSender {
    /// Standard input. At most one piece waits here; the sender holds back the rest.
    pub stdin: mpsc::Sender<Vec<u8>>,
    /// Signals. [`Input::SIGNALS`] of them wait here at most.
    pub signals: mpsc::Sender<Signal>,
    /// The size of the run's terminal, if it has one. Only the last value counts.
    pub size: Option<watch::Sender<TerminalSize>>,
}

impl Input {
    /// Highest number of signals that wait to be sent to the sandbox. The queue empties at once, unless the run has not
    /// started or a client floods it.
    pub const SIGNALS: usize = 16;

    /// Both ends, of a run at a terminal of this size or at none.
    #[must_use]
    pub fn channel(terminal: Option<TerminalSize>) -> (InputSender, Self) {
        let (stdin, read_stdin) = mpsc::channel(1);
        let (signals, read_signals) = mpsc::channel(Self::SIGNALS);
        let (size, read_size) = terminal.map(watch::channel).unzip();
        let sender = InputSender {
            stdin,
            signals,
            size,
        };
        let input = Self {
            stdin: read_stdin,
            signals: read_signals,
            size: read_size,
        };
        (sender, input)
    }
}

impl Attachment {
    /// Carries what the client sends to the run, for as long as that goes on.
    pub(super) async fn feed(&self, run: &RunInput) -> Infallible {
        if let Some(input) = &self.input {
            let input = &mut *input.lock().await;
            futures::join!(
                feed_stdin(run, &mut input.stdin),
                feed_signals(run, &mut input.signals),
                feed_size(run, input.size.as_mut())
            );
        }
        pending().await
    }
}

/// An error is the run's end, which the run itself tells of.
async fn feed_stdin(run: &RunInput, stdin: &mut mpsc::Receiver<Vec<u8>>) {
    while let Some(bytes) = stdin.recv().await {
        if run.write(&bytes).await.is_err() {
            return;
        }
    }
    let _ = run.end();
}

async fn feed_signals(run: &RunInput, signals: &mut mpsc::Receiver<Signal>) {
    while let Some(signal) = signals.recv().await {
        if run.signal(signal).is_err() {
            return;
        }
    }
}

async fn feed_size(run: &RunInput, size: Option<&mut watch::Receiver<TerminalSize>>) {
    let Some(size) = size else { return };
    while size.changed().await.is_ok() {
        let size = *size.borrow_and_update();
        if run.resize(size).is_err() {
            return;
        }
    }
}
