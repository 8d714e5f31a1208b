//! `isol8 completions`, and the candidates for completing a command line.
//!
//! The script printed by `isol8 completions` makes the shell call this executable with [`VARIABLE`] set, so that it
//! can complete values which only a running program knows, such as sessions.

use std::env;
use std::ffi::OsStr;
use std::path::Path;
use std::time::Duration;

use clap::Args;
use clap_complete::Shell;
use clap_complete::engine::{CompletionCandidate, PathCompleter, ValueCompleter as _};
use clap_complete::env::Shells;
use isol8_api::{NetworkMode, Runtime};
use isol8_engine::backends::BackendKind;

use crate::commands::{self, message};

/// Environment variable that the shell's script sets to have this process complete a command line.
pub(super) const VARIABLE: &str = "ISOL8_COMPLETE";

/// Longest time that a user waits for the sessions of a server after TAB.
const SERVER_TIMEOUT: Duration = Duration::from_secs(1);

/// `isol8 completions`.
#[derive(Args, Clone, Copy, Debug)]
#[command(after_help = "Examples:
  source <(isol8 completions bash)
  isol8 completions bash > /usr/share/bash-completion/completions/isol8
  isol8 completions zsh  > ~/.zfunc/_isol8        (a directory of $fpath)
  isol8 completions fish > ~/.config/fish/completions/isol8.fish")]
pub struct CompletionsArgs {
    /// The shell
    pub shell: Shell,
}

impl CompletionsArgs {
    /// Prints the shell's script.
    ///
    /// # Errors
    /// Returns an error for an unknown shell.
    pub(crate) fn print(self) -> Result<(), String> {
        let shells = Shells::builtins();
        let name = self.shell.to_string();
        let shell = shells
            .completer(&name)
            .ok_or_else(|| format!("there is no completion script for {name}"))?;
        let mut script = Vec::new();
        shell
            .write_registration(VARIABLE, "isol8", "isol8", &executable(), &mut script)
            .map_err(|error| error.to_string())?;
        message::to_stdout(&String::from_utf8_lossy(&script));
        Ok(())
    }
}

/// Returns how the shell calls this executable: by name if it was found in PATH, otherwise by path.
fn executable() -> String {
    let called = env::args_os().next().unwrap_or_default();
    let is_path = Path::new(&called).components().count() > 1;
    let path = env::current_exe().ok().filter(|_| is_path);
    path.map_or_else(|| "isol8".to_owned(), |path| path.display().to_string())
}

pub(super) fn runtimes() -> Vec<CompletionCandidate> {
    candidates(Runtime::ALL)
}

pub(super) fn backends() -> Vec<CompletionCandidate> {
    let names = BackendKind::ALL.map(BackendKind::name);
    candidates(names.into_iter().chain(["auto"]))
}

pub(super) fn networks() -> Vec<CompletionCandidate> {
    candidates([NetworkMode::None, NetworkMode::Filtered, NetworkMode::Host])
}

/// Returns the sessions of this host, and those of the login's server if it answers within [`SERVER_TIMEOUT`].
pub(super) fn sessions() -> Vec<CompletionCandidate> {
    candidates(commands::known_sessions(SERVER_TIMEOUT))
}

/// Returns the files of this host, and `session:` for a path in a session.
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

/// Returns `session:` for a path in each known session.
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
