//! State that lives on between the cells of a session: tables of sessions, each with consecutive cells.

use std::collections::BTreeMap;

use isol8_client::{ExecutionRequest, Runtime};
use libtest_mimic::Trial;
use regex::Regex;
use serde::Deserialize;

use crate::harness::Server;
use crate::shared_server::SharedServer;

const TABLES: [(Runtime, &str); 5] = [
    (Runtime::Bash, include_str!("cells/bash.toml")),
    (Runtime::Python, include_str!("cells/python.toml")),
    (Runtime::Node, include_str!("cells/node.toml")),
    (Runtime::Bun, include_str!("cells/bun.toml")),
    (Runtime::Deno, include_str!("cells/deno.toml")),
];

#[derive(Deserialize)]
struct Table {
    #[serde(rename = "case")]
    cases: Vec<Case>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Case {
    name: String,
    #[serde(rename = "cell")]
    cells: Vec<Cell>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Cell {
    #[serde(default)]
    code: Option<String>,
    /// A command beside the interpreter, instead of code.
    #[serde(default)]
    cmd: Option<String>,
    #[serde(default)]
    stdin: Option<String>,
    #[serde(default)]
    env: BTreeMap<String, String>,
    #[serde(default)]
    workdir: Option<String>,
    #[serde(default)]
    stdout: String,
    /// The standard output of a newer version of the interpreter, where that says the same in other words.
    #[serde(default)]
    or_stdout: Option<String>,
    /// Length of the standard output, if its text is not written here.
    #[serde(default)]
    size: Option<usize>,
    /// A regular expression; `None` expects no output.
    #[serde(default)]
    stderr: Option<String>,
    #[serde(default)]
    exit: i32,
    /// Whether the interpreter must have been lost.
    #[serde(default)]
    lost: bool,
}

impl Cell {
    fn request(&self, runtime: Runtime) -> ExecutionRequest {
        let mut request = ExecutionRequest::new(runtime);
        request.code.clone_from(&self.code);
        request.cmd.clone_from(&self.cmd);
        request.stdin.clone_from(&self.stdin);
        request.env.clone_from(&self.env);
        request.workdir.clone_from(&self.workdir);
        request
    }
}

/// Returns a test for each case of each table.
pub(crate) fn tests(server: &'static SharedServer) -> Vec<Trial> {
    let mut tests = Vec::new();
    for (runtime, table) in TABLES {
        let table: Table = toml::from_str(table).unwrap();
        for (number, case) in table.cases.into_iter().enumerate() {
            let session = format!("{runtime}-{number}");
            let name = case.name.clone();
            let check =
                async move |server: &Server| differences(server, &session, runtime, &case).await;
            tests.push(crate::test(server, "cells", runtime, &name, check));
        }
    }
    tests
}

/// Runs the cells of a case in a session of this name, and returns how the results differ from what the case expects.
async fn differences(server: &Server, session: &str, runtime: Runtime, case: &Case) -> String {
    let session = server.session(session);
    let mut differences = String::new();
    for cell in &case.cells {
        let result = session.execute(cell.request(runtime)).await;
        let result = result.unwrap_or_else(|error| panic!("{}: {error}", case.name));
        // The server takes white space off the end.
        let stderr = match &cell.stderr {
            Some(pattern) => {
                let pattern = Regex::new(pattern).unwrap();
                pattern.is_match(&format!("{}\n", result.stderr))
            }
            None => result.stderr.is_empty(),
        };
        let stdout = match cell.size {
            Some(size) => result.stdout.len() == size,
            None => [Some(&cell.stdout), cell.or_stdout.as_ref()]
                .into_iter()
                .flatten()
                .any(|right| result.stdout == right.trim_end()),
        };
        let end = (result.exit_code, result.state_lost);
        if !stderr || !stdout || end != (cell.exit, cell.lost) {
            let code = cell.code.as_ref().or(cell.cmd.as_ref());
            let text: String = result.stdout.chars().take(2000).collect();
            differences += &format!(
                "{}: {code:?}\n  gave {end:?} {text:?} {:?}\n",
                case.name, result.stderr
            );
        }
    }
    session.stop().await.unwrap();
    differences
}
