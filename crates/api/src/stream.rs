//! What streams carry: events to the client, and a WebSocket client's messages.

use serde::{Deserialize, Serialize};

use crate::request::ExecuteBody;

/// One event of `POST /execute/stream` or `GET /execute/ws`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct StreamEvent {
    /// What happened.
    #[serde(rename = "type")]
    pub kind: EventKind,
    /// What was written, the exit code, or what went wrong.
    pub data: String,
    /// When it happened.
    pub phase: Phase,
}

/// The kinds of events.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum EventKind {
    /// The program wrote to standard output.
    Stdout,
    /// The program wrote to standard error.
    Stderr,
    /// The program ended with this code. Comes last.
    Exit,
    /// There will be no exit code, or a message was not understood; the reason.
    Error,
}

/// The parts of a run.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Phase {
    /// The setup script.
    Setup,
    /// The program.
    Code,
}

/// What a WebSocket client sends.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "camelCase")]
pub enum ClientMessage {
    /// Run this; the first message, and the only one of its kind.
    Execute(Box<ExecuteBody>),
    /// Write this to the program's standard input.
    Stdin {
        /// The text.
        data: String,
    },
    /// End the program's standard input.
    StdinEnd,
    /// Signal the program.
    Signal {
        /// Which signal.
        signal: SignalName,
    },
    /// Change the size of the program's terminal.
    Resize {
        /// Characters in a line, 1 to 1000.
        cols: u32,
        /// Lines, 1 to 1000.
        rows: u32,
    },
}

impl ClientMessage {
    /// The valid values of a message's `type`.
    pub const TYPES: [&'static str; 5] = ["execute", "stdin", "stdinEnd", "signal", "resize"];
}

/// The signals that a client may send.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum SignalName {
    /// As Ctrl-C does.
    #[serde(rename = "SIGINT")]
    Interrupt,
    /// Asks the program to end.
    #[serde(rename = "SIGTERM")]
    Terminate,
}
