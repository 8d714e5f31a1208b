//! What is done with a server, or with the sessions of this host, as far as words and flags go.

use std::path::PathBuf;

use clap::{Args, Subcommand};
use clap_complete::{ArgValueCandidates, ArgValueCompleter};
use isol8_api::SessionId;

use super::{Common, completions};

/// A server, and the key that it takes.
#[derive(Args, Clone, Default)]
pub struct Host {
    /// The server, for example http://127.0.0.1:3000
    #[arg(long, value_name = "URL")]
    pub host: Option<String>,
    /// Its API key; better set in ISOL8_API_KEY, which no process list shows [default: the login's]
    #[arg(
        long,
        env = "ISOL8_API_KEY",
        hide_env_values = true,
        value_name = "KEY"
    )]
    pub key: Option<String>,
}

/// The key stays out of logs.
impl std::fmt::Debug for Host {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Host")
            .field("host", &self.host)
            .finish_non_exhaustive()
    }
}

/// Whose sessions a command is about.
#[derive(Args, Clone, Debug)]
pub struct Whose {
    /// The server and its key
    #[command(flatten)]
    pub remote: Host,
    /// The sessions of this host, although there is a login
    #[arg(long, conflicts_with = "host")]
    pub local: bool,
    /// Configuration and backend
    #[command(flatten)]
    pub common: Common,
}

/// `isol8 login`.
#[derive(Args, Debug)]
#[command(
    after_help = "The key is checked with the server and kept in ~/.isol8/login.json, which only you can read.
Afterwards sessions, session, cleanup, ls and cp are about that server, unless --local is given, and
run and shell with --host find its key. Without --host, run and shell go on here.

Examples:
  ISOL8_API_KEY=secret isol8 login --host https://isol8.example.com
  isol8 login --host http://127.0.0.1:3000 --key secret"
)]
pub struct Login {
    /// The server and its key
    #[command(flatten)]
    pub remote: Host,
}

/// `isol8 sessions`.
#[derive(Args, Debug)]
#[command(
    after_help = "Lists those of --host, else of the login's server, else of this host.

Examples:
  isol8 sessions
  isol8 sessions --host http://127.0.0.1:3000
  isol8 sessions --json | jq -r '.sessions[].id'"
)]
pub struct Sessions {
    /// Print them as JSON
    #[arg(long)]
    pub json: bool,
    /// Which ones
    #[command(flatten)]
    pub whose: Whose,
}

/// `isol8 session`.
#[derive(Debug, Subcommand)]
pub enum Session {
    /// End a session, with its variables and files
    #[command(after_help = "Examples:
  isol8 session delete demo
  isol8 session delete demo --host http://127.0.0.1:3000")]
    Delete(SessionDelete),
}

/// `isol8 session delete`.
#[derive(Args, Debug)]
pub struct SessionDelete {
    /// The session
    #[arg(value_name = "ID", add = ArgValueCandidates::new(completions::sessions))]
    pub id: SessionId,
    /// Which ones
    #[command(flatten)]
    pub whose: Whose,
}

/// `isol8 cleanup`.
#[derive(Args, Debug)]
#[command(
    after_help = "Exit codes: 0 where all that was found is removed, also where there was nothing; 1 where something could not be
removed (standard error says what), where the answer to the question is no, and on other errors.

Examples:
  isol8 cleanup
  isol8 cleanup --images --force
  isol8 cleanup --force --host http://127.0.0.1:3000     needs the master key"
)]
pub struct Cleanup {
    /// Remove images, too, that newer ones have replaced
    #[arg(long)]
    pub images: bool,
    /// Do not ask
    #[arg(long, short)]
    pub force: bool,
    /// Print what was removed as JSON
    #[arg(long)]
    pub json: bool,
    /// Which ones
    #[command(flatten)]
    pub whose: Whose,
}

/// `isol8 ls`.
#[derive(Args, Debug)]
#[command(after_help = "Examples:
  isol8 ls demo:/sandbox
  isol8 ls demo:results                   a path within /sandbox
  isol8 ls /tmp --session-id demo --json")]
pub struct Ls {
    /// The directory, in /sandbox or /tmp
    #[arg(value_name = "[SESSION:]PATH", add = ArgValueCandidates::new(completions::session_paths))]
    pub path: String,
    /// The session, where the path does not name it
    #[arg(long, value_name = "ID", add = ArgValueCandidates::new(completions::sessions))]
    pub session_id: Option<SessionId>,
    /// Print the listing as JSON
    #[arg(long)]
    pub json: bool,
    /// Which ones
    #[command(flatten)]
    pub whose: Whose,
}

/// `isol8 cp`.
#[derive(Args, Debug)]
#[command(
    after_help = "SESSION:PATH is in a session's sandbox, other paths are files here, and - is standard input or output.
A directory is copied with all that is in it: into DST where that is a directory, else as DST; SRC/. copies
what is in it and not the directory itself. Links are not copied from a sandbox; here they are followed where
they lead to a file.

Examples:
  isol8 cp data.csv demo:/sandbox/data.csv
  isol8 cp demo:/sandbox/results ./results
  isol8 cp demo:/tmp/log - | less
  isol8 cp one:/sandbox/model.bin two:/sandbox/"
)]
pub struct Cp {
    /// What to copy
    #[arg(value_name = "SRC", add = ArgValueCompleter::new(completions::files_and_sessions))]
    pub from: String,
    /// Where to
    #[arg(value_name = "DST", add = ArgValueCompleter::new(completions::files_and_sessions))]
    pub to: String,
    /// Which ones
    #[command(flatten)]
    pub whose: Whose,
}

impl Cp {
    /// A path of this host, where that is what was given.
    #[must_use]
    pub fn here(text: &str) -> Option<PathBuf> {
        let is_path = text.starts_with(['/', '.']) || !text.contains(':');
        is_path.then(|| PathBuf::from(text))
    }
}
