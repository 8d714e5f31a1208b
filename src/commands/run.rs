//! `isol8 run`: runs one program in a sandbox of this host or of a server.

mod files;
mod inspect;
pub(super) mod local;
pub(super) mod order;
pub(super) mod remote;

use std::process::ExitCode;
use std::time::Duration;

use isol8_api::{Ending, ExecutionResult, NetworkAction, NetworkLogEntry};

use super::follow::output::{Manner, Output};
use super::follow::signals::{Signals, Stop};
use super::{Failure, place, say};
use crate::cli::Run;
use order::Order;

/// Longest wait for the remaining output to be written when the user ends a run.
const LAST_WORDS: Duration = Duration::from_secs(1);

pub(super) async fn run(arguments: Run) -> Result<ExitCode, Failure> {
    // Listen before anything is created that has to be removed again.
    let signals = Signals::new()?;
    let server = place::server(&arguments.remote)?;
    if server.is_none() && arguments.session_id.is_some() {
        return Err(
            "--session-id needs --host: on this host, use --persistent".into(),
        );
    }
    if server.is_some() && (arguments.persistent || arguments.persist) {
        return Err(
            "--persistent and --persist keep a sandbox of this host: with --host, use --session-id"
                .into(),
        );
    }
    let order = Order::read(&arguments)?;
    let output = Output::new(manner(&arguments), arguments.out.as_deref()).map_err(|error| {
        let out = arguments.out.as_deref().unwrap_or("the output".as_ref());
        format!("cannot write {}: {error}", out.display())
    })?;
    match server {
        Some(server) => remote::run(server, &arguments, order, signals, output).await,
        None => local::run(&arguments, order, signals, output).await,
    }
}

fn manner(arguments: &Run) -> Manner {
    match arguments {
        Run { json: true, .. } => Manner::Collect,
        Run {
            no_stream: true, ..
        } => Manner::AtEnd,
        _ => Manner::Live,
    }
}

/// Prints what the exit code does not tell, and returns the exit code.
///
/// # Errors
/// Returns an error if the output could not be written.
pub(super) async fn exited(
    code: i32,
    ending: &Ending,
    mut output: Output,
) -> Result<ExitCode, Failure> {
    if ending.truncated {
        output.note("the output was truncated: raise the limit with --max-output");
    }
    if ending.oom_killed {
        output.note("the program was out of memory: raise the limit with --memory");
    }
    if ending.state_lost {
        output.note("the session's interpreter ended with this run: its variables are gone");
    }
    for warning in &ending.warnings {
        output.note(warning);
    }
    output.finish().await?;
    exit_code(code)
}

/// Prints the result to standard output as one line of JSON, and returns the program's exit code.
///
/// # Errors
/// Returns an error if the output could not be written.
pub(super) async fn exited_with(
    result: &ExecutionResult,
    output: Output,
) -> Result<ExitCode, Failure> {
    let line = serde_json::to_string(result)?;
    output.finish().await?;
    say::to_stdout(&format!("{line}\n"));
    exit_code(result.exit_code)
}

/// Returns the exit code of a program that was ended by the signal.
///
/// # Errors
/// Returns an error if the output could not be written.
pub(super) async fn stopped(stop: Stop, output: Output) -> Result<ExitCode, Failure> {
    let printing = output.finish();
    // Do not wait for a blocked terminal.
    let printed = tokio::time::timeout(LAST_WORDS, printing).await;
    match (stop, printed) {
        (Stop::ReaderGone | Stop::HungUp, _) | (_, Err(_)) => {}
        (_, Ok(printed)) => printed?,
    }
    Ok(ExitCode::from(stop.exit_code()))
}

/// Reduces a code to one byte, as Linux does: a process reports only the lowest byte.
fn exit_code(code: i32) -> Result<ExitCode, Failure> {
    Ok(ExitCode::from(u8::try_from(code & 0xff)?))
}

/// Prints the program's network requests.
pub(super) fn tell_network(entries: &[NetworkLogEntry], output: &mut Output) {
    for entry in entries {
        output.line(&line(entry));
    }
}

fn line(entry: &NetworkLogEntry) -> String {
    let NetworkLogEntry {
        timestamp,
        method,
        host,
        duration_ms,
        ..
    } = entry;
    let path = entry.path.as_deref().unwrap_or_default();
    let action = match entry.action {
        NetworkAction::Allow => "allowed",
        NetworkAction::Block => "blocked",
    };
    format!("{timestamp} {action} {method} {host}{path} {duration_ms:.1} ms\n")
}
