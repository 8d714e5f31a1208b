//! The contents of streams: events to the client, and messages of a WebSocket client.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::encoding::Encoding;
use crate::error::ErrorCode;
use crate::request::ExecuteBody;

/// An event of `POST /execute/stream` or `GET /execute/ws`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct StreamEvent {
    /// The kind of event.
    #[serde(rename = "type")]
    pub kind: EventKind,
    /// The output, the exit code, or the text of the error.
    pub data: String,
    /// How `data` carries what was written: `base64` only where the request's `outputEncoding` is that, and what
    /// was written is not UTF-8.
    #[serde(default, skip_serializing_if = "Encoding::is_utf8")]
    pub encoding: Encoding,
    /// When it happened.
    pub phase: Phase,
    /// Members of an exit beside the code, and of the last `error` beside its text.
    #[serde(flatten)]
    pub ending: Ending,
}

impl StreamEvent {
    /// An event with nothing to tell beside its text.
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

/// How a run ended, beside its exit code: the members of an [`ExecutionResult`](crate::ExecutionResult) of the same
/// names. Members with their default value are left out.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(rename_all = "camelCase", default)]
pub struct Ending {
    /// Output was cut at `maxOutputSize`.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub truncated: bool,
    /// The run was ended because its time was over.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub timed_out: bool,
    /// The kernel ended a process of the run because the sandbox was out of memory.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub oom_killed: bool,
    /// The session's interpreter ended with this run; its variables are gone, its files are not.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub state_lost: bool,
    /// Path to base64 content, for each of `outputPaths` that exists.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub files: Option<BTreeMap<String, String>>,
    /// Notes about things that were ignored, are missing, or went another way than asked.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub warnings: Vec<String>,
    /// The kind of an `error` after which nothing comes: the request was refused, or there will be no
    /// exit code. Other errors have none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub code: Option<ErrorCode>,
}

/// The kinds of events.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(rename_all = "lowercase")]
pub enum EventKind {
    /// The program wrote to standard output.
    Stdout,
    /// The program wrote to standard error.
    Stderr,
    /// The program, or the setup script where that failed, ended with this code. Comes last.
    Exit,
    /// The setup script failed, an output path cannot be read, there will be no exit code, or a message was
    /// not understood. The reason.
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
    /// Run this; the first message, and the only one of its kind.
    Execute(Box<ExecuteBody>),
    /// Write this to the program's standard input.
    Stdin {
        /// The text, or the bytes in base64.
        data: String,
        /// How `data` carries the bytes.
        #[serde(default, skip_serializing_if = "Encoding::is_utf8")]
        encoding: Encoding,
    },
    /// End the program's standard input.
    StdinEnd,
    /// Signal the program.
    Signal {
        /// The signal to send.
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
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub enum SignalName {
    /// As Ctrl-C does.
    #[serde(rename = "SIGINT")]
    Interrupt,
    /// Asks the program to end.
    #[serde(rename = "SIGTERM")]
    Terminate,
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn only_an_error_that_is_the_last_has_a_code() {
        let mut event = StreamEvent::new(EventKind::Error, "gone", Phase::Code);
        assert_eq!(json!(event).get("code"), None);
        event.ending.code = Some(ErrorCode::SessionLost);
        assert_eq!(json!(event)["code"], "SESSION_LOST");
    }

    #[test]
    fn an_event_has_three_members_and_an_exit_what_there_is_to_tell() {
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
