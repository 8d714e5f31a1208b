//! The command line: its commands, flags and help texts.

mod common;
mod completions;
mod duration;
mod flags;
mod remote;
mod run;
mod shell;

use std::ffi::OsString;

use clap::{Args, CommandFactory as _, Parser, Subcommand, ValueHint};
use clap_complete::{ArgValueCandidates, CompleteEnv};
use isol8_api::Runtime;

use crate::commands::message;
pub use common::CommonArgs;
pub use completions::CompletionsArgs;
pub(crate) use flags::with_flags;
pub use remote::{
    CleanupArgs, CpArgs, LoginArgs, LsArgs, ServerArgs, SessionCommand, SessionDeleteArgs,
    SessionsArgs, TargetArgs,
};
pub use run::{RunArgs, SandboxArgs};
pub use shell::ShellArgs;

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

/// The command to run.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Start the HTTP server
    Serve(ServeArgs),
    /// Run code in a sandbox, here or on a server
    Run(Box<RunArgs>),
    /// Open a shell in a sandbox
    Shell(Box<ShellArgs>),
    /// List sessions, of a server or of this host
    Sessions(SessionsArgs),
    /// End a session
    #[command(subcommand)]
    Session(SessionCommand),
    /// List a directory of a session
    Ls(LsArgs),
    /// Copy files into and out of sessions
    Cp(CpArgs),
    /// End every session, and remove leftover sandboxes; with --images, outdated images too
    Cleanup(CleanupArgs),
    /// Store a server's address and key for later commands
    Login(LoginArgs),
    /// Delete the address and key that login has stored
    #[command(after_help = "Examples:\n  isol8 logout")]
    Logout,
    /// Build the Docker images of the runtimes and of prebuiltImages, and unpack roots for the native backend
    Setup(SetupArgs),
    /// Build a Docker image with packages in it
    Build(BuildArgs),
    /// Check what can run on this host, and suggest a fix for each problem
    #[command(after_help = "Examples:\n  isol8 doctor\n  isol8 doctor --config config.toml")]
    Doctor(CommonArgs),
    /// Show the configuration that is in effect, and where each value comes from
    Config(ConfigArgs),
    /// Print the completion script for a shell
    Completions(CompletionsArgs),
}

impl Command {
    /// Returns the arguments shared by all commands that read a configuration.
    #[must_use]
    pub fn common(&self) -> Option<&CommonArgs> {
        match self {
            Self::Serve(serve) => Some(&serve.common),
            Self::Run(run) => Some(&run.common),
            Self::Shell(shell) => Some(&shell.common),
            Self::Setup(setup) => Some(&setup.common),
            Self::Build(build) => Some(&build.common),
            Self::Config(config) => Some(&config.common),
            Self::Doctor(common) => Some(common),
            Self::Sessions(sessions) => Some(&sessions.target.common),
            Self::Session(SessionCommand::Delete(delete)) => Some(&delete.target.common),
            Self::Ls(ls) => Some(&ls.target.common),
            Self::Cp(cp) => Some(&cp.target.common),
            Self::Cleanup(cleanup) => Some(&cleanup.target.common),
            Self::Login(_) | Self::Logout | Self::Completions(_) => None,
        }
    }
}

/// `isol8 serve`.
#[derive(Args, Debug)]
#[command(after_help = "Examples:
  ISOL8_API_KEY=secret isol8 serve
  isol8 serve --port 8080 --backend native --config /etc/isol8/config.toml
  isol8 serve --user isol8")]
pub struct ServeArgs {
    /// Port to listen on; 0 for any free one [default: ISOL8_PORT, PORT or 3000]
    #[arg(long, short)]
    pub port: Option<u16>,
    /// The master key; better set in ISOL8_API_KEY, where no process list shows it
    #[arg(
        long,
        short,
        env = "ISOL8_API_KEY",
        hide_env_values = true,
        value_name = "KEY"
    )]
    pub key: Option<String>,
    /// Run the HTTP server as this user, without any privileges; needs root, and a separate process that stays root
    /// makes the sandboxes: NAME, UID or UID:GID [default: server.user of the configuration]
    #[arg(long, value_name = "USER")]
    pub user: Option<String>,
    /// Configuration and backend
    #[command(flatten)]
    pub common: CommonArgs,
}

/// `isol8 setup`.
#[derive(Args, Debug)]
#[command(after_help = "Examples:\n  isol8 setup\n  isol8 setup --force")]
pub struct SetupArgs {
    /// Also rebuild images that are up to date
    #[arg(long)]
    pub force: bool,
    /// Configuration and backend
    #[command(flatten)]
    pub common: CommonArgs,
}

/// `isol8 config`.
#[derive(Args, Debug)]
pub struct ConfigArgs {
    /// Print the values as JSON
    #[arg(long)]
    pub json: bool,
    /// Print the JSON Schema of the file
    #[arg(long, conflicts_with = "json")]
    pub schema: bool,
    /// Configuration and backend
    #[command(flatten)]
    pub common: CommonArgs,
}

/// `isol8 build`.
#[derive(Args, Debug)]
#[command(
    after_help = "Packages are available to every program in the image, without network at run time. Files that a setup \
    script leaves in /sandbox or /tmp are not kept. It runs as root, once, with network. For bash, packages \
    come from Debian.\n\n\
    Examples:\n  isol8 build --base python --install numpy --install 'pandas>=2' --tag isol8:data\n  \
    isol8 build --base bash --install jq --setup 'useradd --uid 70000 x' --tag isol8:tools\n  \
    isol8 run --image isol8:data -e 'import numpy; print(numpy.ones(3).sum())'"
)]
pub struct BuildArgs {
    /// Runtime of the image
    #[arg(long, help = format!("Runtime of the image: {}", Runtime::NAMES), value_name = "RUNTIME", add = ArgValueCandidates::new(completions::runtimes))]
    pub base: Runtime,
    /// Package to install, with the runtime's package manager; may be repeated
    #[arg(long, value_name = "PACKAGE")]
    pub install: Vec<String>,
    /// Bash to run after the packages are installed: a command, or the path of a script file; may be repeated
    #[arg(long, value_name = "SCRIPT", value_hint = ValueHint::FilePath)]
    pub setup: Vec<String>,
    /// Name of the image, such as isol8:data
    #[arg(long)]
    pub tag: String,
    /// Also rebuild the image if it is up to date
    #[arg(long)]
    pub force: bool,
    /// Configuration and backend
    #[command(flatten)]
    pub common: CommonArgs,
}

/// Parses the process's arguments. Returns `None` if the output that was asked for has already been printed.
#[must_use]
pub fn parse() -> Option<Command> {
    if complete() {
        return None;
    }
    parse_from(std::env::args_os())
}

/// Parses the given arguments, the first of which is the program's name; otherwise the same as [`parse`].
#[must_use]
pub fn parse_from(arguments: impl Iterator<Item = OsString>) -> Option<Command> {
    let cli = Cli::parse_from(arguments);
    if cli.version {
        message::to_stdout(concat!(env!("CARGO_PKG_VERSION"), "\n"));
        return None;
    }
    if cli.command.is_none() {
        // Ignore a closed pipe.
        let _ = Cli::command().print_help();
    }
    cli.command
}

/// Completes a command line if the shell asks for it, and returns whether it did.
fn complete() -> bool {
    let completing = CompleteEnv::with_factory(Cli::command).var(completions::VARIABLE);
    let here = std::env::current_dir().ok();
    // Ignore errors and a closed pipe: the shell shows the line that is being typed, so there is no place for a
    // message.
    completing
        .try_complete(std::env::args_os(), here.as_deref())
        .unwrap_or(true)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_definition_is_sound() {
        Cli::command().debug_assert();
    }

    #[test]
    fn runtimes_have_their_aliases() {
        for (alias, runtime) in Runtime::aliases() {
            let cli = Cli::try_parse_from(["isol8", "run", "-r", alias, "-e", "1"]).unwrap();
            let Some(Command::Run(run)) = cli.command else {
                panic!("{alias}");
            };
            assert_eq!(run.runtime, Some(runtime), "{alias}");
        }
    }

    #[test]
    fn the_key_is_not_shown_in_the_help() {
        let mut keyed = Vec::new();
        for command in Cli::command().get_subcommands() {
            for argument in command.get_arguments() {
                if argument.get_env() == Some("ISOL8_API_KEY".as_ref()) {
                    assert!(argument.is_hide_env_values_set(), "{}", command.get_name());
                    keyed.push(command.get_name().to_owned());
                }
            }
        }
        assert!(keyed.contains(&"serve".to_owned()), "{keyed:?}");
        assert!(keyed.contains(&"run".to_owned()), "{keyed:?}");
    }
}
