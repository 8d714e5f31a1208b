//! `isol8 completions`, and what a shell asks for while a command line is typed.
//!
//! The script of `isol8 completions` has the shell call this executable with [`VARIABLE`] set, so that it completes
//! what only a running program knows, such as sessions.

use std::env;
use std::ffi::OsStr;
use std::path::Path;
use std::time::Duration;

use clap::{Args, CommandFactory as _};
use clap_complete::engine::{CompletionCandidate, PathCompleter, ValueCompleter as _};
use clap_complete::env::Shells;
use clap_complete::{CompleteEnv, Shell};
use isol8_api::{NetworkMode, Runtime};

use super::Cli;
use crate::backends::Kind;
use crate::commands::{self, say};

/// Set by the shell's script where the process is to complete a command line.
const VARIABLE: &str = "ISOL8_COMPLETE";

/// The longest time that a person waits for sessions of a server after TAB.
const SERVER_TIMEOUT: Duration = Duration::from_secs(1);

/// `isol8 completions`.
#[derive(Args, Clone, Copy, Debug)]
#[command(after_help = "Examples:
  source <(isol8 completions bash)
  isol8 completions bash > /usr/share/bash-completion/completions/isol8
  isol8 completions zsh  > ~/.zfunc/_isol8        (a directory of $fpath)
  isol8 completions fish > ~/.config/fish/completions/isol8.fish")]
pub struct Completions {
    /// The shell
    pub shell: Shell,
}

impl Completions {
    /// Prints the shell's script.
    ///
    /// # Errors
    /// A shell that is not known.
    pub(crate) fn print(self) -> Result<(), String> {
        let shells = Shells::builtins();
        let name = self.shell.to_string();
        let shell = shells
            .completer(&name)
            .ok_or_else(|| format!("{name} cannot complete commands of isol8"))?;
        let mut script = Vec::new();
        shell
            .write_registration(VARIABLE, "isol8", "isol8", &executable(), &mut script)
            .map_err(|error| error.to_string())?;
        say::to_stdout(&String::from_utf8_lossy(&script));
        Ok(())
    }
}

/// How the shell calls this executable: by its name where it was found in PATH, else by its path.
fn executable() -> String {
    let called = env::args_os().next().unwrap_or_default();
    let is_path = Path::new(&called).components().count() > 1;
    let path = env::current_exe().ok().filter(|_| is_path);
    path.map_or_else(|| "isol8".to_owned(), |path| path.display().to_string())
}

/// Completes a command line where the shell asks for that. Says whether it did.
pub(super) fn complete() -> bool {
    let completing = CompleteEnv::with_factory(Cli::command).var(VARIABLE);
    let here = env::current_dir().ok();
    // What fails here, or finds a closed pipe, cannot be told: the shell shows the line that is being typed.
    completing
        .try_complete(env::args_os(), here.as_deref())
        .unwrap_or(true)
}

pub(super) fn runtimes() -> Vec<CompletionCandidate> {
    candidates(Runtime::ALL)
}

pub(super) fn backends() -> Vec<CompletionCandidate> {
    let names = Kind::ALL.map(Kind::name);
    candidates(names.into_iter().chain(["auto"]))
}

pub(super) fn networks() -> Vec<CompletionCandidate> {
    candidates([NetworkMode::None, NetworkMode::Filtered, NetworkMode::Host])
}

/// The sessions of this host, and those of the login's server where it answers at once.
pub(super) fn sessions() -> Vec<CompletionCandidate> {
    candidates(commands::known_sessions(SERVER_TIMEOUT))
}

/// Files of this host, and `session:` for a path in a session.
pub(super) fn files_and_sessions(typed: &OsStr) -> Vec<CompletionCandidate> {
    let mut found = PathCompleter::any().stdio().complete(typed);
    let typed = typed.to_string_lossy();
    if !typed.contains(['/', ':']) {
        let sessions = commands::known_sessions(SERVER_TIMEOUT);
        let begun = sessions.into_iter().filter(|id| id.starts_with(&*typed));
        found.extend(candidates(begun.map(|id| format!("{id}:/sandbox/"))));
    }
    found
}

/// `session:` for a path in a session.
pub(super) fn session_paths() -> Vec<CompletionCandidate> {
    let sessions = commands::known_sessions(SERVER_TIMEOUT).into_iter();
    candidates(sessions.map(|id| format!("{id}:/sandbox/")))
}

fn candidates(values: impl IntoIterator<Item = impl ToString>) -> Vec<CompletionCandidate> {
    let values = values.into_iter();
    values
        .map(|value| CompletionCandidate::new(value.to_string()))
        .collect()
}
