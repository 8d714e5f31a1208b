//! `isol8 run`: runs one program in a sandbox of this host or of a server.

pub(super) mod ending;
mod files;
mod inspect;
pub(super) mod local;
pub(super) mod remote;
pub(super) mod request;

use std::process::ExitCode;

use super::error::CommandError;
use super::follow::output::{Output, OutputMode};
use super::follow::signals::Signals;
use super::target;
use crate::cli::RunArgs;
use request::RunRequest;

pub(super) async fn run(arguments: RunArgs) -> Result<ExitCode, CommandError> {
    // Listen before anything is created that has to be removed again.
    let signals = Signals::new()?;
    let server = target::server(&arguments.remote)?;
    if server.is_none() && arguments.session_id.is_some() {
        return Err("--session-id needs --host: on this host, use --persistent".into());
    }
    if server.is_some() && (arguments.persistent || arguments.persist) {
        return Err(
            "--persistent and --persist keep a sandbox of this host: with --host, use --session-id"
                .into(),
        );
    }
    let request = RunRequest::read(&arguments)?;
    let output =
        Output::new(output_mode(&arguments), arguments.out.as_deref()).map_err(|error| {
            let out = arguments.out.as_deref().unwrap_or("the output".as_ref());
            format!("cannot write {}: {error}", out.display())
        })?;
    match server {
        Some(server) => remote::run(server, &arguments, request, signals, output).await,
        None => local::run(&arguments, request, signals, output).await,
    }
}

fn output_mode(arguments: &RunArgs) -> OutputMode {
    match arguments {
        RunArgs { json: true, .. } => OutputMode::Collect,
        RunArgs {
            no_stream: true, ..
        } => OutputMode::AtEnd,
        _ => OutputMode::Live,
    }
}
