//! Messages of streams: events to the client, and messages of a WebSocket client.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::encoding::Encoding;
use crate::error::ErrorCode;
use crate::request::ExecuteBody;

/// An event of `POST /execute/stream` or `GET /execute/ws`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct StreamEvent {
    /// Type of the event.
    #[serde(rename = "type")]
    pub kind: EventKind,
    /// The output, the exit code, or the text of the error.
    pub data: String,
    /// Encoding of `data`: `base64` only if the request's `outputEncoding` is `base64` and the output is not UTF-8.
    #[serde(default, skip_serializing_if = "Encoding::is_utf8")]
    pub encoding: Encoding,
    /// Part of the run in which the event occurred.
    pub phase: Phase,
    /// Further members of an `exit` event, or of the last `error` event.
    #[serde(flatten)]
    pub ending: Ending,
}

impl StreamEvent {
    /// Returns an event without further members.
    #[must_use]
    pub fn new(kind: EventKind, data: impl Into<String>, phase: Phase) -> Self {
        Self {
            kind,
            data: data.into(),
            encoding: Encoding::Utf8,
            phase,
            ending: Ending::default(),
        }
    }
}

/// Result of a run beyond its exit code: the members of an
/// [`ExecutionResult`](crate::ExecutionResult) with the same names. Members that are false or empty are left out.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(rename_all = "camelCase", default)]
pub struct Ending {
    /// Whether output was cut at `maxOutputSize`.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub truncated: bool,
    /// Whether the run was ended because of its timeout.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub timed_out: bool,
    /// Whether the kernel ended a process of the run because the sandbox was out of memory.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub oom_killed: bool,
    /// Whether the session's interpreter ended with this run, so that its variables are lost. Files are kept.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub state_lost: bool,
    /// Map of path to base64 content, for each of `outputPaths` that exists.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub files: Option<BTreeMap<String, String>>,
    /// Differences from the request: ignored members, missing files, and the like.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub warnings: Vec<String>,
    /// Kind of an `error` event that is the last event: the request was refused, or there will be no
    /// exit code. Other `error` events have no code.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub code: Option<ErrorCode>,
}

/// Types of events.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(rename_all = "lowercase")]
pub enum EventKind {
    /// The program wrote to standard output.
    Stdout,
    /// The program wrote to standard error.
    Stderr,
    /// The program, or a setup script that failed, ended with this code. The last event.
    Exit,
    /// An error with its reason: the setup script failed, an output path cannot be read, there will be no exit code,
    /// or a message was not understood.
    Error,
}

/// The parts of a run.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(rename_all = "lowercase")]
pub enum Phase {
    /// The setup script.
    Setup,
    /// The program.
    Code,
}

/// A message of a WebSocket client.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(tag = "type", rename_all = "camelCase")]
pub enum ClientMessage {
    /// Start a run. Must be the first message, and occurs only once.
    Execute(Box<ExecuteBody>),
    /// Write to the program's standard input.
    Stdin {
        /// The text, or the bytes in base64.
        data: String,
        /// Encoding of `data`.
        #[serde(default, skip_serializing_if = "Encoding::is_utf8")]
        encoding: Encoding,
    },
    /// Close the program's standard input.
    StdinEnd,
    /// Send a signal to the program.
    Signal {
        /// The signal.
        signal: SignalName,
    },
    /// Change the size of the program's terminal.
    Resize {
        /// Characters per line, 1 to 1000.
        cols: u32,
        /// Number of lines, 1 to 1000.
        rows: u32,
    },
}

impl ClientMessage {
    /// The valid values of a message's `type`.
    pub const TYPES: [&'static str; 5] = ["execute", "stdin", "stdinEnd", "signal", "resize"];
}

/// Signals that a client may send.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub enum SignalName {
    /// Interrupts the program, as Ctrl-C does.
    #[serde(rename = "SIGINT")]
    Interrupt,
    /// Asks the program to terminate.
    #[serde(rename = "SIGTERM")]
    Terminate,
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn only_the_last_error_has_a_code() {
        let mut event = StreamEvent::new(EventKind::Error, "gone", Phase::Code);
        assert_eq!(json!(event).get("code"), None);
        event.ending.code = Some(ErrorCode::SessionLost);
        assert_eq!(json!(event)["code"], "SESSION_LOST");
    }

    #[test]
    fn an_event_has_three_members_and_an_exit_only_those_that_are_set() {
        let mut event = StreamEvent::new(EventKind::Exit, "137", Phase::Code);
        let mut expected = json!({"type": "exit", "data": "137", "phase": "code"});
        assert_eq!(json!(event), expected);
        event.ending.timed_out = true;
        event.ending.files = Some([("/tmp/x".to_owned(), "eA==".to_owned())].into());
        expected["timedOut"] = json!(true);
        expected["files"] = json!({"/tmp/x": "eA=="});
        assert_eq!(json!(event), expected);
        assert_eq!(
            serde_json::from_value::<StreamEvent>(expected).unwrap(),
            event
        );
    }
}
