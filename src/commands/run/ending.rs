//! The end of a run: its notes, its result and its exit code.

use std::process::ExitCode;
use std::time::Duration;

use isol8_api::{Ending, ExecutionResult, NetworkAction, NetworkLogEntry};

use crate::commands::error::CommandError;
use crate::commands::follow::output::Output;
use crate::commands::follow::signals::StopReason;
use crate::commands::message;

/// Longest wait for the remaining output to be written when the user ends a run.
const FLUSH_TIMEOUT: Duration = Duration::from_secs(1);

/// Prints what the exit code does not tell, and returns the exit code.
///
/// # Errors
/// Returns an error if the output could not be written.
pub(in crate::commands) async fn exited(
    code: i32,
    ending: &Ending,
    mut output: Output,
) -> Result<ExitCode, CommandError> {
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
pub(in crate::commands) async fn exited_with(
    result: &ExecutionResult,
    output: Output,
) -> Result<ExitCode, CommandError> {
    let line = serde_json::to_string(result)?;
    output.finish().await?;
    message::to_stdout(&format!("{line}\n"));
    exit_code(result.exit_code)
}

/// Returns the exit code of a program that was ended by the signal.
///
/// # Errors
/// Returns an error if the output could not be written.
pub(in crate::commands) async fn stopped(
    stop: StopReason,
    output: Output,
) -> Result<ExitCode, CommandError> {
    let printing = output.finish();
    // Do not wait for a blocked terminal.
    let printed = tokio::time::timeout(FLUSH_TIMEOUT, printing).await;
    match (stop, printed) {
        (StopReason::ReaderGone | StopReason::HungUp, _) | (_, Err(_)) => {}
        (_, Ok(printed)) => printed?,
    }
    Ok(ExitCode::from(stop.exit_code()))
}

/// Reduces a code to one byte, as Linux does: a process reports only the lowest byte.
fn exit_code(code: i32) -> Result<ExitCode, CommandError> {
    Ok(ExitCode::from(u8::try_from(code & 0xff)?))
}

/// Prints the program's network requests.
pub(in crate::commands) fn print_network_log(entries: &[NetworkLogEntry], output: &mut Output) {
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
