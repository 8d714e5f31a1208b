//! Arguments of `isol8 run`.

use std::path::PathBuf;

use clap::{Args, ValueHint};
use clap_complete::ArgValueCandidates;
use isol8_api::{ByteSize, NetworkMode, Runtime, SessionId};

use super::common::CommonArgs;
use super::completions;
use super::duration::milliseconds;
use super::remote::ServerArgs;

/// `isol8 run`.
#[derive(Args, Debug)]
#[command(after_help = "Exit codes:
  the program's own; 128 plus the signal's number if a signal ended it
  137  it exceeded its time or memory limit
  130  ended by a second Ctrl-C (the first is passed to the program), 143 by SIGTERM
  1    isol8 itself failed and printed the reason; 2 for an unknown flag

Examples:
  isol8 run -e 'print(6 * 7)'
  isol8 run script.py --timeout 5s --memory 256m
  isol8 run sum.js < numbers.txt
  echo 'echo $((6 * 7))' | isol8 run -r bash -
  while read -r name; do isol8 run -n hello.py; done < names.txt
  isol8 run --persistent -e 'x = 10' && isol8 run --persistent -e 'print(x + 5)'
  isol8 run main.py --files ./project --install requests --out result.txt
  isol8 run -e 'print(1)' --json
  isol8 run script.py --host http://127.0.0.1:3000 --session-id demo")]
pub struct RunArgs {
    /// Script to run; with -, or with neither FILE nor -e, the script is read from standard input
    #[arg(conflicts_with = "eval", value_hint = ValueHint::FilePath)]
    pub file: Option<PathBuf>,
    /// Code to run
    #[arg(long, short, value_name = "CODE", allow_hyphen_values = true)]
    pub eval: Option<String>,
    /// Runtime of the program
    #[arg(long, short, help = format!("{} [default: by the file's extension, otherwise python]", Runtime::NAMES), add = ArgValueCandidates::new(completions::runtimes))]
    pub runtime: Option<Runtime>,
    /// Text for the program's standard input, instead of the command's own standard input
    #[arg(long, value_name = "TEXT", allow_hyphen_values = true)]
    pub stdin: Option<String>,
    /// Give the program no standard input, so that it takes no lines from a surrounding shell loop
    #[arg(long, short = 'n', conflicts_with = "stdin")]
    pub no_stdin: bool,
    /// Working directory, in /sandbox
    #[arg(long, value_name = "DIR")]
    pub workdir: Option<String>,
    /// Limits, sizes and network of the sandbox
    #[command(flatten)]
    pub sandbox: SandboxArgs,
    /// Time after which the program is ended, such as 500ms, 5s or 2m; a bare number counts milliseconds
    #[arg(long, value_name = "TIME", value_parser = milliseconds)]
    pub timeout: Option<u64>,
    /// Bytes kept of each of stdout and stderr
    #[arg(long, value_name = "BYTES")]
    pub max_output: Option<u64>,
    /// Run in the runtime's session on this host, with its variables, files and packages
    #[arg(long, conflicts_with = "persist")]
    pub persistent: bool,
    /// Keep the sandbox afterwards, and print how to enter it
    #[arg(long)]
    pub persist: bool,
    /// Print the program's output when it has ended, instead of at once
    #[arg(long)]
    pub no_stream: bool,
    /// Print the whole result as one line of JSON
    #[arg(long)]
    pub json: bool,
    /// Package to install first, with the runtime's package manager; may be repeated
    #[arg(long, value_name = "PACKAGE")]
    pub install: Vec<String>,
    /// Bash to run first: a command, or the path of a script file; may be repeated
    #[arg(long, value_name = "SCRIPT", allow_hyphen_values = true, value_hint = ValueHint::FilePath)]
    pub setup: Vec<String>,
    /// Variable for the environment, whose value is masked in the output; may be repeated
    #[arg(long, value_name = "NAME=VALUE")]
    pub secret: Vec<String>,
    /// Copy this directory's files into /sandbox first, except .git, node_modules and the like
    #[arg(long, value_name = "DIR", value_hint = ValueHint::DirPath)]
    pub files: Option<PathBuf>,
    /// Also write standard output to this file
    #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath)]
    pub out: Option<PathBuf>,
    /// Run on a server instead of this host
    #[command(flatten)]
    pub remote: ServerArgs,
    /// With --host, run in this session, with its variables, files and packages
    #[arg(
        long,
        value_name = "ID",
        conflicts_with_all = ["persistent", "persist"],
        add = ArgValueCandidates::new(completions::sessions)
    )]
    pub session_id: Option<SessionId>,
    /// Configuration and backend
    #[command(flatten)]
    pub common: CommonArgs,
}

/// Properties of the sandbox. Those not given come from the configuration's defaults.
#[derive(Args, Clone, Debug, Default)]
pub struct SandboxArgs {
    /// Network of the program: none, filtered or host [default: the configuration's]; host is this machine's own
    /// network
    #[arg(long, value_name = "MODE", add = ArgValueCandidates::new(completions::networks))]
    pub net: Option<NetworkMode>,
    /// With --net filtered, reach only hosts that match this regular expression, such as '^pypi\.org$' (without
    /// ^ and $ it matches inside longer names); may be repeated
    #[arg(long, value_name = "PATTERN")]
    pub allow: Vec<String>,
    /// With --net filtered, reach no host that matches this regular expression; may be repeated
    #[arg(long, value_name = "PATTERN")]
    pub deny: Vec<String>,
    /// Print the program's network requests on standard error
    #[arg(long)]
    pub log_network: bool,
    /// Memory, such as 256m
    #[arg(long, value_name = "SIZE")]
    pub memory: Option<ByteSize>,
    /// Cores
    #[arg(long, value_name = "N")]
    pub cpu: Option<f64>,
    /// Processes and threads
    #[arg(long, value_name = "N")]
    pub pids_limit: Option<u32>,
    /// Size of /sandbox
    #[arg(long, value_name = "SIZE")]
    pub sandbox_size: Option<ByteSize>,
    /// Size of /tmp
    #[arg(long, value_name = "SIZE")]
    pub tmp_size: Option<ByteSize>,
    /// Image to run in, made by `isol8 build` or prebuiltImages; needs Docker
    #[arg(long, value_name = "IMAGE")]
    pub image: Option<String>,
}

impl SandboxArgs {
    /// Returns the given flags for limits that need a cgroup, each with the property of a systemd unit that sets
    /// the same limit.
    pub(crate) fn limits(&self) -> impl Iterator<Item = (&'static str, String)> {
        let memory = self
            .memory
            .map(|size| ("--memory", format!("MemoryMax={}", size.bytes())));
        let cpu = self
            .cpu
            .map(|cores| ("--cpu", format!("CPUQuota={:.0}%", cores * 100.0)));
        let processes = self
            .pids_limit
            .map(|most| ("--pids-limit", format!("TasksMax={most}")));
        [memory, cpu, processes].into_iter().flatten()
    }
}
