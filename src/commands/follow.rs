//! Follows one run from this terminal, on this host or on a server.
//!
//! A run has two sides: a stream of the contract's events, which ends with the exit, and an
//! [`Input`](isol8_actors::Input) that takes the user's input. [`input`] makes the latter and fills it from
//! standard input and signals; [`output`] writes the text of the events.

pub(super) mod input;
pub(super) mod output;
pub(super) mod signals;

use futures::StreamExt as _;
use futures::stream::LocalBoxStream;
use isol8_api::{Encoding, Ending, EventKind, Phase, StreamEvent};

use super::error::CommandError;
use input::UserInput;
use output::Output;
use signals::{Signals, StopReason};

/// The events of one run. An error ends the stream; no event follows an error or the exit.
pub(super) type Events<'a> = LocalBoxStream<'a, Result<StreamEvent, CommandError>>;

/// The outcome of a run.
#[derive(Debug)]
pub(super) enum RunOutcome {
    /// The program ended.
    Exited {
        /// The program's exit code.
        code: i32,
        /// Further information about the end.
        ending: Ending,
    },
    /// The user ended the run. The caller ends it by dropping its events.
    Stopped(StopReason),
}

/// Follows a run to its end. The first Ctrl-C is passed on to the program, the second ends the run.
///
/// # Errors
/// Returns the reason why the run has no exit code.
pub(super) async fn follow(
    mut events: Events<'_>,
    user_input: &UserInput,
    signals: &mut Signals,
    output: &mut Output,
) -> Result<RunOutcome, CommandError> {
    let gone = output.gone();
    tokio::select! {
        exited = print(&mut events, output) => exited,
        stop = signals.pass_on(user_input) => Ok(RunOutcome::Stopped(stop)),
        () = gone => Ok(RunOutcome::Stopped(StopReason::ReaderGone)),
    }
}

async fn print(events: &mut Events<'_>, output: &mut Output) -> Result<RunOutcome, CommandError> {
    let mut failure = None;
    while let Some(event) = events.next().await {
        let event = event?;
        match event.kind {
            EventKind::Stdout => output.stdout(written(event)?).await,
            EventKind::Stderr => output.stderr(written(event)?).await,
            // An error that comes with an exit code is reported next to it.
            EventKind::Error => failure = Some(event.data),
            EventKind::Exit if event.phase == Phase::Setup => break,
            EventKind::Exit => {
                if let Some(failure) = failure {
                    output.note(&failure);
                }
                let code = event.data.parse();
                let code = code.map_err(|_| format!("invalid exit code {:?}", event.data))?;
                let ending = event.ending;
                return Ok(RunOutcome::Exited { code, ending });
            }
        }
    }
    let ended = || "the run ended without an exit code".to_owned();
    Err(CommandError(failure.unwrap_or_else(ended)))
}

/// Returns the bytes that an event carries.
fn written(event: StreamEvent) -> Result<Vec<u8>, CommandError> {
    match event.encoding {
        Encoding::Utf8 => Ok(event.data.into_bytes()),
        Encoding::Base64 => Ok(event.encoding.decode(&event.data)?.into_owned()),
    }
}

#[cfg(test)]
mod tests {
    use futures::stream;

    use super::*;
    use output::OutputMode;

    async fn printed(events: Vec<StreamEvent>) -> Result<RunOutcome, CommandError> {
        let events = stream::iter(events).map(Ok);
        let mut output = Output::new(OutputMode::Collect, None).unwrap();
        print(&mut events.boxed_local(), &mut output).await
    }

    fn event(kind: EventKind, data: &str, phase: Phase) -> StreamEvent {
        StreamEvent::new(kind, data, phase)
    }

    #[tokio::test]
    async fn a_failed_setup_script_is_a_failure_and_what_comes_with_an_exit_is_not() {
        let error = event(EventKind::Error, "Setup script failed", Phase::Setup);
        let exit = event(EventKind::Exit, "3", Phase::Setup);
        let failed = printed(vec![error, exit]).await.unwrap_err();
        assert_eq!(failed.0, "Setup script failed");

        let error = event(EventKind::Error, "path cannot be read", Phase::Code);
        let exit = event(EventKind::Exit, "3", Phase::Code);
        let exited = printed(vec![error, exit]).await.unwrap();
        assert!(matches!(exited, RunOutcome::Exited { code: 3, .. }));
    }

    #[tokio::test]
    async fn a_run_without_an_exit_is_a_failure() {
        assert!(printed(Vec::new()).await.is_err());
        let error = event(EventKind::Error, "lost", Phase::Code);
        assert_eq!(printed(vec![error]).await.unwrap_err().0, "lost");
    }
}
