//! `isol8 completions`.

use std::io::{self, Write as _};

use clap::{Args, CommandFactory as _};
use clap_complete::Shell;

use super::Cli;

/// `isol8 completions`.
#[derive(Args, Clone, Copy, Debug)]
#[command(after_help = "Examples:
  isol8 completions bash > /usr/share/bash-completion/completions/isol8
  isol8 completions zsh  > ~/.zfunc/_isol8        (a directory of $fpath)
  isol8 completions fish > ~/.config/fish/completions/isol8.fish")]
pub struct Completions {
    /// The shell
    pub shell: Shell,
}

impl Completions {
    /// Prints the shell's script.
    pub(super) fn print(self) {
        let mut script = Vec::new();
        clap_complete::generate(self.shell, &mut Cli::command(), "isol8", &mut script);
        // A reader that has gone away is no fault of ours.
        let _ = io::stdout().write_all(&script);
    }
}
