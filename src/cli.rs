//! The command line, as far as words and flags go.

use std::path::PathBuf;

use clap::{Args, CommandFactory as _, Parser, Subcommand};
use isol8_api::{ByteSize, NetworkMode, Runtime};

use crate::config::BackendChoice;

/// Run untrusted code in isolated containers.
#[derive(Debug, Parser)]
#[command(name = "isol8", version, disable_version_flag = true)]
pub struct Cli {
    /// Print the version
    #[arg(long, short = 'V')]
    version: bool,
    #[command(subcommand)]
    command: Option<Command>,
}

/// What to do.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Start the HTTP server
    Serve(Serve),
    /// Run code in a sandbox of its own, without a server
    Run(Box<Run>),
    /// Build the Docker images of the runtimes, and unpack those of the native backend
    Setup(Setup),
    /// Say what can run on this host, and how to mend what cannot
    Doctor(Common),
}

/// What every command takes.
#[derive(Args, Clone, Debug)]
pub struct Common {
    /// Read this configuration file
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// auto, docker or native [default: from the configuration]
    #[arg(long)]
    pub backend: Option<BackendChoice>,
    /// Log what happens in detail
    #[arg(long)]
    pub debug: bool,
}

/// `isol8 serve`.
#[derive(Args, Debug)]
pub struct Serve {
    /// Port to listen on; 0 for any free one [default: ISOL8_PORT, PORT or 3000]
    #[arg(long, short)]
    pub port: Option<u16>,
    /// The master key; better set in ISOL8_API_KEY, which no process list shows
    #[arg(
        long,
        short,
        env = "ISOL8_API_KEY",
        hide_env_values = true,
        value_name = "KEY"
    )]
    pub key: Option<String>,
    /// Configuration and backend
    #[command(flatten)]
    pub common: Common,
}

/// `isol8 run`.
#[derive(Args, Debug)]
#[command(
    after_help = "The exit code is that of the program: 137 where its time was over.\n\n\
    Examples:\n  isol8 run -e 'print(6 * 7)' -r python\n  isol8 run script.py --timeout 5000 --memory 256m\n  \
    echo 'echo $((6 * 7))' | isol8 run -r bash"
)]
pub struct Run {
    /// Script to run; without it and -e, standard input is the script
    #[arg(conflicts_with = "eval")]
    pub file: Option<PathBuf>,
    /// Code to run
    #[arg(long, short, value_name = "CODE")]
    pub eval: Option<String>,
    /// python, node, bun, deno or bash [default: by the file's extension, else python]
    #[arg(long, short)]
    pub runtime: Option<Runtime>,
    /// Standard input of the program
    #[arg(long)]
    pub stdin: Option<String>,
    /// Working directory, in /sandbox
    #[arg(long, value_name = "DIR")]
    pub workdir: Option<String>,
    /// What the program may reach: none, filtered or host [default: the configuration's]
    #[arg(long, value_name = "MODE")]
    pub net: Option<NetworkMode>,
    /// With --net filtered, reach only hosts that match this regular expression; may be repeated
    #[arg(long, value_name = "PATTERN")]
    pub allow: Vec<String>,
    /// With --net filtered, reach no host that matches this regular expression; may be repeated
    #[arg(long, value_name = "PATTERN")]
    pub deny: Vec<String>,
    /// Tell on standard error what the program asked the network for
    #[arg(long)]
    pub log_network: bool,
    /// Milliseconds until the program is ended
    #[arg(long, value_name = "MS")]
    pub timeout: Option<u64>,
    /// Memory, such as 256m
    #[arg(long, value_name = "SIZE")]
    pub memory: Option<ByteSize>,
    /// Cores
    #[arg(long, value_name = "N")]
    pub cpu: Option<f64>,
    /// Processes and threads
    #[arg(long, value_name = "N")]
    pub pids_limit: Option<u32>,
    /// Bytes kept of each of stdout and stderr
    #[arg(long, value_name = "BYTES")]
    pub max_output: Option<u64>,
    /// Size of /sandbox
    #[arg(long, value_name = "SIZE")]
    pub sandbox_size: Option<ByteSize>,
    /// Size of /tmp
    #[arg(long, value_name = "SIZE")]
    pub tmp_size: Option<ByteSize>,
    /// Package to install first, with the runtime's package manager; may be repeated
    #[arg(long, value_name = "PACKAGE")]
    pub install: Vec<String>,
    /// Bash to run first: a command, or the path of a script file; may be repeated
    #[arg(long, value_name = "SCRIPT")]
    pub setup: Vec<String>,
    /// Set in the environment and masked in the output; may be repeated
    #[arg(long, value_name = "NAME=VALUE")]
    pub secret: Vec<String>,
    /// Configuration and backend
    #[command(flatten)]
    pub common: Common,
}

/// `isol8 setup`.
#[derive(Args, Debug)]
pub struct Setup {
    /// Build and unpack what is up to date, too
    #[arg(long)]
    pub force: bool,
    /// Configuration and backend
    #[command(flatten)]
    pub common: Common,
}

/// Parses the process's arguments. `None` where all that was asked for has been printed.
#[must_use]
pub fn parse() -> Option<Command> {
    let cli = Cli::parse();
    if cli.version {
        println!("{}", env!("CARGO_PKG_VERSION"));
        return None;
    }
    if cli.command.is_none() {
        // Printing to a closed pipe is no fault of ours.
        let _ = Cli::command().print_help();
    }
    cli.command
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_definition_is_sound() {
        Cli::command().debug_assert();
    }

    #[test]
    fn the_key_is_not_shown_in_the_help() {
        let help = Cli::command().render_long_help().to_string();
        assert!(help.contains("Commands:"));
    }
}
