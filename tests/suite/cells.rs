//! State that lives on between the cells of a session: tables of sessions, each with consecutive cells.

use std::collections::BTreeMap;

use isol8_client::{ExecutionRequest, Runtime};
use regex::Regex;
use serde::Deserialize;

use crate::harness::{Server, on_each_backend};

on_each_backend!(bash_cells, python_cells, node_cells, bun_cells, deno_cells);

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

async fn bash_cells(server: Server) {
    run(&server, include_str!("cells/bash.toml"), Runtime::Bash).await;
}

async fn python_cells(server: Server) {
    run(&server, include_str!("cells/python.toml"), Runtime::Python).await;
}

async fn node_cells(server: Server) {
    run(&server, include_str!("cells/node.toml"), Runtime::Node).await;
}

async fn bun_cells(server: Server) {
    run(&server, include_str!("cells/bun.toml"), Runtime::Bun).await;
}

async fn deno_cells(server: Server) {
    run(&server, include_str!("cells/deno.toml"), Runtime::Deno).await;
}

async fn run(server: &Server, table: &str, runtime: Runtime) {
    let table: Table = toml::from_str(table).unwrap();
    let mut differences = String::new();
    for (number, case) in table.cases.iter().enumerate() {
        let session = server.session(&format!("case-{number}"));
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
    }
    assert!(differences.is_empty(), "{differences}");
}
