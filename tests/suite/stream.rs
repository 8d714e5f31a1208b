//! Runs that are followed while they go on: server-sent events and WebSockets.

mod client;
pub(crate) mod socket;
mod sse;
mod terminal;
mod websocket;

use isol8_api::{EventKind, Phase, StreamEvent};

/// Returns the text of each stream, and the exit code, which comes last and once.
pub(super) fn joined(events: &[StreamEvent]) -> (String, String, String) {
    let (last, before) = events.split_last().expect("there is no event");
    assert_eq!(last.kind, EventKind::Exit, "{last:?}");
    assert_eq!(last.phase, Phase::Code);
    let of = |kind: EventKind| {
        let events = before.iter().filter(|event| event.kind == kind);
        events.map(|event| event.data.as_str()).collect::<String>()
    };
    assert_eq!(of(EventKind::Error), "");
    assert_eq!(of(EventKind::Exit), "");
    (
        of(EventKind::Stdout),
        of(EventKind::Stderr),
        last.data.clone(),
    )
}
