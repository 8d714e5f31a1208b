//! How bash is asked for a script, and for cells, where its control line is the script that it reads.

use std::iter;

use crate::run::{CellRequest, Start};

/// Variables of its own: some it makes of what it finds at its start, some mean something to it.
pub(super) const NAMES: &[&str] = &[
    "CDPATH",
    "CHILD_MAX",
    "COLUMNS",
    "DIRSTACK",
    "EPOCHREALTIME",
    "EPOCHSECONDS",
    "EUID",
    "EXECIGNORE",
    "FCEDIT",
    "FIGNORE",
    "FUNCNAME",
    "FUNCNEST",
    "GLOBIGNORE",
    "GROUPS",
    "HOME",
    "HOSTFILE",
    "HOSTNAME",
    "HOSTTYPE",
    "IFS",
    "IGNOREEOF",
    "INPUTRC",
    "INSIDE_EMACS",
    "LINENO",
    "LINES",
    "MACHTYPE",
    "MAILCHECK",
    "MAPFILE",
    "OLDPWD",
    "OPTARG",
    "OPTERR",
    "OPTIND",
    "OSTYPE",
    "PATH",
    "PIPESTATUS",
    "POSIXLY_CORRECT",
    "POSIX_PEDANTIC",
    "PPID",
    "PWD",
    "RANDOM",
    "REPLY",
    "SECONDS",
    "SHELL",
    "SHELLOPTS",
    "SHLVL",
    "SRANDOM",
    "TERM",
    "TIMEFORMAT",
    "TMOUT",
    "UID",
    "_",
    "auto_resume",
    "histchars",
];

/// The same, by their first letters, and those of `bash.sh`.
pub(super) const PREFIXES: &[&str] = &[
    "BASH",
    "COMP_",
    "COPROC",
    "HIST",
    "PROMPT_",
    "PS",
    "READLINE_",
    "isol8_",
];

/// Whether bash can have a variable of this name. Bash passes others on to programs, but has no command that sets them.
pub(super) fn can_have(name: &str) -> bool {
    let is_word = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'_';
    name.bytes().all(is_word) && !name.starts_with(|first: char| first.is_ascii_digit())
}

/// The line that has it run its script.
pub(super) const SCRIPT: &str = "script\n";

/// The line before the first cell.
const CELLS: &str = "cells\n";

/// The lines that have a cell read from the mailbox and evaluated. `bash.sh` tells why they are as
/// they are.
const CELL: &str = r#"\isol8_begin; { \isol8_status; } <&"$((LINENO=0))"
\builtin eval "$isol8_source" <"$isol8_stdin" 251>&- 252>&- 253>&-; { \isol8_end; } >/dev/null 2>&1
\isol8_end
"#;

/// The lines that evaluate the cell of this number, from 1.
pub(super) fn lines(number: u64) -> String {
    if number == 1 {
        format!("{CELLS}{CELL}")
    } else {
        CELL.to_owned()
    }
}

/// The content of the mailbox for a script.
pub(super) fn script(start: &Start) -> Vec<u8> {
    closed(start.fields())
}

/// The content of the mailbox for a cell.
pub(super) fn cell(number: u64, cell: &CellRequest, stdin: &str) -> Vec<u8> {
    closed(iter::once(number.to_string().as_bytes()).chain(cell.fields(stdin)))
}

/// Strings, each closed by a zero byte, which no string of the shell can hold.
fn closed<'a>(fields: impl Iterator<Item = &'a [u8]>) -> Vec<u8> {
    let mut text = Vec::new();
    for field in fields {
        text.extend(field.iter().filter(|byte| **byte != 0));
        text.push(0);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_is_a_list_of_strings_without_zero_bytes() {
        let request = CellRequest {
            source: b"echo 'a\0b'\n".to_vec(),
            env: vec![("A".into(), "1 2".into())],
            ..CellRequest::default()
        };
        assert_eq!(
            cell(7, &request, "/tmp/in"),
            b"7\0\0/tmp/in\0echo 'ab'\n\0A\x001 2\0"
        );
    }
}
