//! Arguments of `isol8 shell`.

use clap::Args;
use clap_complete::ArgValueCandidates;
use isol8_api::{Runtime, SessionId};

use super::common::CommonArgs;
use super::completions;
use super::duration::milliseconds;
use super::remote::ServerArgs;
use super::run::SandboxArgs;

/// `isol8 shell`.
#[derive(Args, Debug)]
#[command(after_help = "The exit code is that of the shell.

Examples:
  isol8 shell                             a sandbox that is removed afterwards
  isol8 shell -r node --net filtered
  isol8 shell --persistent                in the session of `isol8 run --persistent`
  isol8 shell --session-id kept-0123456789abcdef
  isol8 shell --host http://127.0.0.1:3000 --session-id demo")]
pub struct ShellArgs {
    /// The session to enter
    #[arg(
        long,
        value_name = "ID",
        conflicts_with = "persistent",
        add = ArgValueCandidates::new(completions::sessions)
    )]
    pub session_id: Option<SessionId>,
    /// Runtime of the program
    #[arg(long, short, help = format!("{} [default: the session's, otherwise python]", Runtime::NAMES), add = ArgValueCandidates::new(completions::runtimes))]
    pub runtime: Option<Runtime>,
    /// Enter the runtime's session on this host
    #[arg(long)]
    pub persistent: bool,
    /// Directory to start in, in /sandbox
    #[arg(long, value_name = "DIR")]
    pub workdir: Option<String>,
    /// Time after which the shell is ended, such as 90s, 30m or 1h; a bare number counts milliseconds [default:
    /// never; on a server, an hour]
    #[arg(long, value_name = "TIME", value_parser = milliseconds)]
    pub timeout: Option<u64>,
    /// Bytes of output after which no more is shown [default: no limit; on a server, 67108864]
    #[arg(long, value_name = "BYTES")]
    pub max_output: Option<u64>,
    /// Limits, sizes and network of the sandbox
    #[command(flatten)]
    pub sandbox: SandboxArgs,
    /// Open the shell on a server instead of this host
    #[command(flatten)]
    pub remote: ServerArgs,
    /// Configuration and backend
    #[command(flatten)]
    pub common: CommonArgs,
}
