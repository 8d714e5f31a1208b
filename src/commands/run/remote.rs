//! A run on a server.

use std::io::{self, IsTerminal as _, Read as _};
use std::process::ExitCode;

use futures::StreamExt as _;
use isol8_actors::{Input, Signal, TerminalSize};
use isol8_api::{Encoding, Ending, SignalName};
use isol8_client::{RemoteIsol8, RunInput, RunStream};

use super::ending;
use super::request::RunRequest;
use crate::cli::RunArgs;
use crate::commands::error::CommandError;
use crate::commands::follow::input::UserInput;
use crate::commands::follow::output::Output;
use crate::commands::follow::signals::Signals;
use crate::commands::follow::{Events, RunOutcome, follow};

pub(super) async fn run(
    server: RemoteIsol8,
    arguments: &RunArgs,
    request: RunRequest,
    mut signals: Signals,
    mut output: Output,
) -> Result<ExitCode, CommandError> {
    let server = match arguments.session_id.clone() {
        Some(session) => server.with_session(session),
        None => server,
    };
    // The event stream lacks the full result and the network log.
    if arguments.json || arguments.sandbox.log_network {
        return for_the_result(&server, arguments, request, signals, output).await;
    }
    let stdin = all_of_stdin(request.reads_stdin);
    let opening = server.execute_stream_feeding(request.body, request.options, stdin);
    let mut run = tokio::select! {
        run = opening => run?,
        stop = signals.stop() => return ending::stopped(stop, output).await,
    };
    let (mut user_input, input) = UserInput::new(None);
    user_input.forward_stdin(request.reads_stdin)?;
    let followed = follow_run(&mut run, &user_input, input, &mut signals, &mut output).await;
    drop(run);
    match followed {
        Ok(RunOutcome::Exited { code, ending }) => ending::exited(code, &ending, output).await,
        Ok(RunOutcome::Stopped(stop)) => ending::stopped(stop, output).await,
        Err(failure) => {
            output.finish().await?;
            Err(failure)
        }
    }
}

/// Follows a run on a server, and passes on the user's input.
pub(in crate::commands) async fn follow_run(
    run: &mut RunStream,
    user_input: &UserInput,
    input: Input,
    signals: &mut Signals,
    output: &mut Output,
) -> Result<RunOutcome, CommandError> {
    let Some(to_program) = run.take_input() else {
        output.note("cannot open a WebSocket to the server: further input and signals do not reach the program");
        return follow(events(run), user_input, signals, output).await;
    };
    tokio::select! {
        followed = follow(events(run), user_input, signals, output) => followed,
        never = pass_on(input, to_program) => match never {},
    }
}

fn events(run: &mut RunStream) -> Events<'_> {
    let events = run.map(|event| event.map_err(CommandError::from));
    events.boxed_local()
}

/// Sends the user's input to the server. Never returns: the events tell when the run is over.
async fn pass_on(mut input: Input, to: RunInput) -> std::convert::Infallible {
    let typing = forward_stdin(input.stdin, to.clone());
    let signalling = async {
        while let Some(signal) = input.signals.recv().await {
            let name = match signal {
                Signal::Interrupt => SignalName::Interrupt,
                _ => SignalName::Terminate,
            };
            let _ = to.signal(name).await;
        }
    };
    let sizing = async {
        let Some(mut size) = input.size else { return };
        while size.changed().await.is_ok() {
            let TerminalSize { columns, rows } = *size.borrow_and_update();
            let _ = to.resize(columns.into(), rows.into()).await;
        }
    };
    tokio::join!(typing, signalling, sizing);
    std::future::pending().await
}

/// Sends standard input to the server, as bytes.
async fn forward_stdin(mut stdin: tokio::sync::mpsc::Receiver<Vec<u8>>, to: RunInput) {
    while let Some(piece) = stdin.recv().await {
        // Ignore the error: the run has ended, and its exit arrives as an event.
        let _ = to.stdin_bytes(&piece).await;
    }
    let _ = to.end_stdin().await;
}

/// Runs a program and prints its complete result. No output appears before the end, and Ctrl-C ends the run.
async fn for_the_result(
    server: &RemoteIsol8,
    arguments: &RunArgs,
    mut request: RunRequest,
    mut signals: Signals,
    mut output: Output,
) -> Result<ExitCode, CommandError> {
    // Trim the output only in JSON, as results always contain it; a user wants to see it unchanged.
    request.body.trim = arguments.json;
    if request.reads_stdin {
        let bytes = tokio::select! {
            bytes = read_stdin() => bytes?,
            stop = signals.stop() => return ending::stopped(stop, output).await,
        };
        let (text, encoding) = Encoding::encode(bytes);
        request.body.stdin = Some(text);
        request.body.stdin_encoding = encoding;
    }
    let running = server.execute_with(request.body, request.options);
    let mut result = tokio::select! {
        result = running => result?,
        stop = signals.stop() => return ending::stopped(stop, output).await,
    };
    if arguments.json {
        return ending::exited_with(&result, output).await;
    }
    output.result(&result).await?;
    ending::print_network_log(&result.network_logs.take().unwrap_or_default(), &mut output);
    let ending = Ending {
        truncated: result.truncated,
        oom_killed: result.oom_killed,
        state_lost: result.state_lost,
        warnings: std::mem::take(&mut result.warnings),
        ..Ending::default()
    };
    ending::exited(result.exit_code, &ending, output).await
}

/// Reads all of standard input.
async fn read_stdin() -> io::Result<Vec<u8>> {
    let reading = tokio::task::spawn_blocking(|| {
        let mut bytes = Vec::new();
        io::stdin().read_to_end(&mut bytes)?;
        Ok(bytes)
    });
    reading.await.map_err(io::Error::other)?
}

/// Reads all of standard input, for a run that accepts no input later. Does not wait for a user at a terminal.
async fn all_of_stdin(is_the_programs: bool) -> Option<Vec<u8>> {
    if !is_the_programs || io::stdin().is_terminal() {
        return None;
    }
    // Treat an unreadable standard input as ended.
    read_stdin().await.ok()
}
