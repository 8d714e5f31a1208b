//! Arguments of the commands that work on a server or on the sessions of this host.

use std::path::PathBuf;

use clap::{Args, Subcommand};
use clap_complete::{ArgValueCandidates, ArgValueCompleter};
use isol8_api::SessionId;

use super::common::CommonArgs;
use super::completions;

/// A server and its API key.
#[derive(Args, Clone, Default)]
pub struct ServerArgs {
    /// The server, for example http://127.0.0.1:3000
    #[arg(long, value_name = "URL")]
    pub host: Option<String>,
    /// The server's API key; better set in ISOL8_API_KEY, where no process list shows it [default: the key stored by login]
    #[arg(
        long,
        env = "ISOL8_API_KEY",
        hide_env_values = true,
        value_name = "KEY"
    )]
    pub key: Option<String>,
}

/// Leaves out the key, which must not appear in logs.
impl std::fmt::Debug for ServerArgs {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ServerArgs")
            .field("host", &self.host)
            .finish_non_exhaustive()
    }
}

/// Selects the sessions that a command works on: those of a server or those of this host.
#[derive(Args, Clone, Debug)]
pub struct TargetArgs {
    /// The server and its key
    #[command(flatten)]
    pub remote: ServerArgs,
    /// Use the sessions of this host, even after login
    #[arg(long, conflicts_with = "host")]
    pub local: bool,
    /// Configuration and backend
    #[command(flatten)]
    pub common: CommonArgs,
}

/// `isol8 login`.
#[derive(Args, Debug)]
#[command(
    after_help = "The key is checked with the server and stored in ~/.isol8/login.json, which only you can read.
Afterwards sessions, session, cleanup, ls and cp use that server, unless --local is given, and
run and shell with --host use the stored key. Without --host, run and shell use this host.

Examples:
  ISOL8_API_KEY=secret isol8 login --host https://isol8.example.com
  isol8 login --host http://127.0.0.1:3000 --key secret"
)]
pub struct LoginArgs {
    /// The server and its key
    #[command(flatten)]
    pub remote: ServerArgs,
}

/// `isol8 sessions`.
#[derive(Args, Debug)]
#[command(
    after_help = "Lists the sessions of --host, otherwise of the login's server, otherwise of this host.

Examples:
  isol8 sessions
  isol8 sessions --host http://127.0.0.1:3000
  isol8 sessions --json | jq -r '.sessions[].id'"
)]
pub struct SessionsArgs {
    /// Print the sessions as JSON
    #[arg(long)]
    pub json: bool,
    /// The server or host
    #[command(flatten)]
    pub target: TargetArgs,
}

/// `isol8 session`.
#[derive(Debug, Subcommand)]
pub enum SessionCommand {
    /// End a session, with its variables and files
    #[command(after_help = "Examples:
  isol8 session delete demo
  isol8 session delete demo --host http://127.0.0.1:3000")]
    Delete(SessionDeleteArgs),
}

/// `isol8 session delete`.
#[derive(Args, Debug)]
pub struct SessionDeleteArgs {
    /// The session
    #[arg(value_name = "ID", add = ArgValueCandidates::new(completions::sessions))]
    pub id: SessionId,
    /// The server or host
    #[command(flatten)]
    pub target: TargetArgs,
}

/// `isol8 cleanup`.
#[derive(Args, Debug)]
#[command(
    after_help = "Exit codes: 0 if everything was removed or there was nothing to remove; 1 if something could not be
removed (standard error names it), if the question was answered with no, and on other errors.

Examples:
  isol8 cleanup
  isol8 cleanup --images --force
  isol8 cleanup --force --host http://127.0.0.1:3000     needs the master key"
)]
pub struct CleanupArgs {
    /// Also remove images that newer ones have replaced
    #[arg(long)]
    pub images: bool,
    /// Do not ask for confirmation
    #[arg(long, short)]
    pub force: bool,
    /// Print what was removed as JSON
    #[arg(long)]
    pub json: bool,
    /// The server or host
    #[command(flatten)]
    pub target: TargetArgs,
}

/// `isol8 ls`.
#[derive(Args, Debug)]
#[command(after_help = "Examples:
  isol8 ls demo:/sandbox
  isol8 ls demo:results                   a path within /sandbox
  isol8 ls /tmp --session-id demo --json")]
pub struct LsArgs {
    /// The directory, in /sandbox or /tmp
    #[arg(value_name = "[SESSION:]PATH", add = ArgValueCandidates::new(completions::session_paths))]
    pub path: String,
    /// The session, if the path does not name it
    #[arg(long, value_name = "ID", add = ArgValueCandidates::new(completions::sessions))]
    pub session_id: Option<SessionId>,
    /// Print the listing as JSON
    #[arg(long)]
    pub json: bool,
    /// The server or host
    #[command(flatten)]
    pub target: TargetArgs,
}

/// `isol8 cp`.
#[derive(Args, Debug)]
#[command(
    after_help = "SESSION:PATH is in a session's sandbox, other paths are on this host, and - is standard input or output.
A directory is copied with its content: into DST if that is a directory, else as DST; SRC/. copies
the content without the directory itself. Links are not copied from a sandbox; on this host they are followed if
they point to a file.

Examples:
  isol8 cp data.csv demo:/sandbox/data.csv
  isol8 cp demo:/sandbox/results ./results
  isol8 cp demo:/tmp/log - | less
  isol8 cp one:/sandbox/model.bin two:/sandbox/"
)]
pub struct CpArgs {
    /// File or directory to copy
    #[arg(value_name = "SRC", add = ArgValueCompleter::new(completions::files_and_sessions))]
    pub from: String,
    /// Destination
    #[arg(value_name = "DST", add = ArgValueCompleter::new(completions::files_and_sessions))]
    pub to: String,
    /// The server or host
    #[command(flatten)]
    pub target: TargetArgs,
}

impl CpArgs {
    /// Returns the text as a path of this host, or `None` if it is `SESSION:PATH`.
    #[must_use]
    pub fn local_path(text: &str) -> Option<PathBuf> {
        let is_path = text.starts_with(['/', '.']) || !text.contains(':');
        is_path.then(|| PathBuf::from(text))
    }
}
