//! `isol8 shell`: a shell in a sandbox, at this terminal.

use std::io::{self, IsTerminal as _};
use std::process::ExitCode;
use std::time::Duration;

use isol8_actors::{Job, TerminalSize};
use isol8_api::{Encoding, ExecutionRequest, Options, Runtime, SessionId, TenantId};
use isol8_client::RemoteIsol8;
use isol8_config::Config;
use isol8_engine::active::ActiveConfig;
use isol8_engine::images::choice;
use isol8_engine::jobs;
use isol8_engine::local;

use super::error::CommandError;
use super::follow::input::UserInput;
use super::follow::output::{Output, OutputMode};
use super::follow::signals::Signals;
use super::follow::{RunOutcome, follow};
use super::load::load_config;
use super::run::ending;
use super::run::local::{close, events, grant_network, needs, open, refuse_unenforced};
use super::run::remote::follow_run;
use super::run::request::sandbox_options;
use super::terminal::Raw;
use super::{target, terminal};
use crate::cli::ShellArgs;

/// Size assumed for a terminal that does not report its size.
const DEFAULT_SIZE: TerminalSize = TerminalSize {
    columns: 80,
    rows: 24,
};

/// A server's default ceilings: milliseconds that a run may take, and bytes that it may write. If the ceilings were
/// changed, the server's error names them, and the user can pass fitting flags.
const SERVER_MAX_TIMEOUT_MS: u64 = 3_600_000;
const SERVER_MAX_OUTPUT: u64 = 64 << 20;

/// The command that is run.
const COMMAND: &str = "exec bash -i";

/// A year, longer than any shell stays open.
const UNLIMITED: Duration = Duration::from_secs(365 * 24 * 3600);

pub(super) async fn shell(arguments: ShellArgs) -> Result<ExitCode, CommandError> {
    if !io::stdin().is_terminal() {
        return Err("standard input is not a terminal: use isol8 run".into());
    }
    let mut signals = Signals::new()?;
    let mut output = Output::new(OutputMode::Live, None)?;
    if let Some(server) = target::server(&arguments.remote)? {
        return shell_on_server(server, &arguments, signals, output).await;
    }
    let mut config = load_config(&arguments.common)?;
    grant_network(&mut config, &arguments.sandbox);
    let config = ActiveConfig::new(config)?;
    let (session, runtime) = session_and_runtime(&arguments, &config)?;
    let (request, options) = shell_request(&arguments, runtime);
    let job = job(request, options, &arguments, &config)?;
    let (mut user_input, input) = UserInput::new(job.terminal);
    let needs = needs(&arguments.sandbox, runtime);
    let local = tokio::select! {
        local = open(&config, session, &needs) => local?,
        stop = signals.stop() => return ending::stopped(stop, output).await,
    };
    if let Err(refused) = refuse_unenforced(&arguments.sandbox, &local) {
        close(&config, local).await?;
        return Err(refused);
    }
    let mut shell = local.stream(job, Some(input));
    let raw = Raw::enter()?;
    user_input.forward_stdin(true)?;
    let followed = follow(events(&mut shell), &user_input, &mut signals, &mut output).await;
    drop(raw);
    drop(shell);
    close(&config, local).await?;
    match followed? {
        RunOutcome::Exited { code, ending } => ending::exited(code, &ending, output).await,
        RunOutcome::Stopped(stop) => ending::stopped(stop, output).await,
    }
}

/// Opens the shell on a server.
async fn shell_on_server(
    server: RemoteIsol8,
    arguments: &ShellArgs,
    mut signals: Signals,
    mut output: Output,
) -> Result<ExitCode, CommandError> {
    if arguments.persistent {
        return Err("--persistent is a session of this host: with --host, use --session-id".into());
    }
    let runtime = match (arguments.runtime, &arguments.session_id) {
        (Some(runtime), _) => runtime,
        (None, Some(id)) => {
            let sessions = server.sessions().await?.into_iter();
            let session = { sessions }.find(|session| session.id == *id);
            session.map_or(Runtime::Python, |session| session.runtime)
        }
        (None, None) => Runtime::Python,
    };
    let server = match arguments.session_id.clone() {
        Some(session) => server.with_session(session),
        None => server,
    };
    let (mut request, mut options) = shell_request(arguments, runtime);
    request.timeout_ms.get_or_insert(SERVER_MAX_TIMEOUT_MS);
    options.max_output_size.get_or_insert(SERVER_MAX_OUTPUT);
    let size = terminal::size().unwrap_or(DEFAULT_SIZE);
    let (mut user_input, input) = UserInput::new(Some(size));
    let mut shell = server.execute_stream_with(request, options).await?;
    let raw = Raw::enter()?;
    user_input.forward_stdin(true)?;
    let followed = follow_run(&mut shell, &user_input, input, &mut signals, &mut output).await;
    drop(raw);
    drop(shell);
    match followed? {
        RunOutcome::Exited { code, ending } => ending::exited(code, &ending, output).await,
        RunOutcome::Stopped(stop) => ending::stopped(stop, output).await,
    }
}

/// Returns the session to enter, if any, and the runtime of the sandbox.
fn session_and_runtime(
    arguments: &ShellArgs,
    config: &Config,
) -> Result<(Option<SessionId>, Runtime), CommandError> {
    let Some(id) = &arguments.session_id else {
        let runtime = arguments.runtime.unwrap_or(Runtime::Python);
        let session = arguments.persistent.then(|| runtime.to_string().parse());
        return Ok((session.transpose()?, runtime));
    };
    let mut sessions = local::list(config).into_iter();
    let Some(session) = sessions.find(|session| session.info.id == *id) else {
        return Err(format!("Session not found: {id} does not exist on this host").into());
    };
    Ok((
        Some(id.clone()),
        arguments.runtime.unwrap_or(session.info.runtime),
    ))
}

/// Returns the request of the contract for a shell at this terminal.
pub(super) fn shell_request(
    arguments: &ShellArgs,
    runtime: Runtime,
) -> (ExecutionRequest, Options) {
    let mut request = ExecutionRequest::new(runtime);
    request.cmd = Some(COMMAND.to_owned());
    request.tty = true;
    request.output_encoding = Encoding::Base64;
    if let Some(size) = terminal::size() {
        request.cols = Some(size.columns.into());
        request.rows = Some(size.rows.into());
    }
    if let Ok(name) = std::env::var("TERM") {
        request.env.insert("TERM".to_owned(), name);
    }
    request.workdir.clone_from(&arguments.workdir);
    request.timeout_ms = arguments.timeout;
    let mut options = sandbox_options(&arguments.sandbox);
    options.max_output_size = arguments.max_output;
    (request, options)
}

fn job(
    request: ExecutionRequest,
    options: Options,
    arguments: &ShellArgs,
    config: &ActiveConfig,
) -> Result<Job, CommandError> {
    choice::check_named(&options, request.runtime, &TenantId::master(), config)?;
    let mut job = jobs::job(request, options, config)?;
    // Lift the bounds, which are meant for programs without a user at the terminal.
    job.output_limit = arguments.max_output.unwrap_or(u64::MAX);
    if arguments.timeout.is_none() {
        job.timeout = UNLIMITED;
    }
    Ok(job)
}
