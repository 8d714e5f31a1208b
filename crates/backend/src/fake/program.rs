//! The language of the fake guest: one statement per line (or between semicolons).
//!
//! | statement | does |
//! |---|---|
//! | `print TEXT`, `eprint TEXT` | writes a line |
//! | `flood N` | writes N bytes to standard output |
//! | `env NAME`, `stdin`, `cwd`, `size` | prints the variable, the input, the directory, the terminal's size |
//! | `set NAME TEXT`, `get NAME` | sets or prints a variable, which only cells keep |
//! | `write PATH TEXT`, `cat PATH` | writes or prints a file |
//! | `connect TEXT` | sends a text through the network and prints the answer, if the run has a network |
//! | `sleep MS`, `hang` | waits for a time, or forever |
//! | `exit N` | ends with that code |
//! | `oom` | is ended by the OOM killer |
//! | `crash` | ends the interpreter by signal 11 |
//! | `die` | ends the guest |
//! | `starve` | makes the OOM killer end the guest |

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use super::lock;
use isol8_protocol::{ExitStatus, OutputStream, TerminalSize};

/// The effect of one statement of a program.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Step {
    /// Writes output.
    Write(OutputStream, Vec<u8>),
    /// Sends bytes through the network, and writes the answer.
    Connect(Vec<u8>),
    /// Waits; forever if `None`.
    Wait(Option<Duration>),
    /// Ends the program.
    End(ExitStatus),
    /// The OOM killer ends the program.
    OutOfMemory,
    /// Ends the guest.
    Die,
    /// The OOM killer ends the guest.
    Starve,
}

/// Environment and input of a program.
#[derive(Debug, Default)]
pub(super) struct ProgramContext {
    pub(super) env: BTreeMap<String, String>,
    pub(super) cwd: String,
    pub(super) stdin: Vec<u8>,
    pub(super) terminal: Option<Arc<Mutex<TerminalSize>>>,
    pub(super) network: bool,
}

/// Files and variables of a sandbox, which outlive a program.
#[derive(Debug, Default)]
pub(super) struct SandboxContents {
    pub(super) files: BTreeMap<String, Vec<u8>>,
    pub(super) variables: BTreeMap<String, String>,
}

/// Splits a source text into its statements.
pub(super) fn statements(source: &[u8]) -> Vec<String> {
    String::from_utf8_lossy(source)
        .split(['\n', ';'])
        .map(|line| line.trim().to_owned())
        .filter(|line| !line.is_empty() && !line.starts_with('#'))
        .collect()
}

/// Evaluates one statement.
pub(super) fn step(
    statement: &str,
    context: &ProgramContext,
    contents: &mut SandboxContents,
) -> Step {
    let (verb, rest) = statement.split_once(' ').unwrap_or((statement, ""));
    match verb {
        "print" => line(OutputStream::Stdout, rest),
        "eprint" => line(OutputStream::Stderr, rest),
        "flood" => Step::Write(
            OutputStream::Stdout,
            vec![b'x'; rest.parse().unwrap_or_default()],
        ),
        "env" => found(context.env.get(rest), rest),
        "stdin" => Step::Write(OutputStream::Stdout, context.stdin.clone()),
        "cwd" => line(OutputStream::Stdout, &context.cwd),
        "size" => match context.terminal.as_deref().map(lock) {
            Some(size) => line(
                OutputStream::Stdout,
                &format!("{} {}", size.columns, size.rows),
            ),
            None => line(OutputStream::Stderr, "there is no terminal"),
        },
        "set" => {
            let (name, value) = rest.split_once(' ').unwrap_or((rest, ""));
            contents.variables.insert(name.to_owned(), value.to_owned());
            Step::Wait(Some(Duration::ZERO))
        }
        "get" => found(contents.variables.get(rest), rest),
        "write" => {
            let (path, content) = rest.split_once(' ').unwrap_or((rest, ""));
            let content = content.as_bytes().to_vec();
            contents.files.insert(path.to_owned(), content);
            Step::Wait(Some(Duration::ZERO))
        }
        "cat" => match contents.files.get(rest) {
            Some(content) => Step::Write(OutputStream::Stdout, content.clone()),
            None => found(None, rest),
        },
        "sleep" => Step::Wait(Some(Duration::from_millis(
            rest.parse().unwrap_or_default(),
        ))),
        "connect" if context.network => Step::Connect(rest.as_bytes().to_vec()),
        "connect" => line(OutputStream::Stderr, "there is no network"),
        "hang" => Step::Wait(None),
        "exit" => Step::End(ExitStatus::Code(rest.parse().unwrap_or_default())),
        "oom" => Step::OutOfMemory,
        "crash" => Step::End(ExitStatus::Signal(11)),
        "die" => Step::Die,
        "starve" => Step::Starve,
        _ => line(OutputStream::Stderr, &format!("unknown statement: {verb}")),
    }
}

fn line(stream: OutputStream, text: &str) -> Step {
    Step::Write(stream, format!("{text}\n").into_bytes())
}

fn found(value: Option<&String>, name: &str) -> Step {
    match value {
        Some(value) => line(OutputStream::Stdout, value),
        None => line(OutputStream::Stderr, &format!("{name} is not there")),
    }
}
