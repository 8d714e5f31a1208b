//! What lives on between the cells of a session: tables of sessions, each with consecutive cells.

use std::collections::BTreeMap;

use isol8_client::{ExecutionRequest, Runtime};
use regex::Regex;
use serde::Deserialize;

use crate::harness::{Server, on_each_backend};

on_each_backend!(bash_cells);

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
    code: String,
    #[serde(default)]
    stdin: Option<String>,
    #[serde(default)]
    env: BTreeMap<String, String>,
    #[serde(default)]
    workdir: Option<String>,
    #[serde(default)]
    stdout: String,
    /// A regular expression; nothing at all where there is none.
    #[serde(default)]
    stderr: Option<String>,
    #[serde(default)]
    exit: i32,
}

impl Cell {
    fn request(&self, runtime: Runtime) -> ExecutionRequest {
        let mut request = ExecutionRequest::new(runtime);
        request.code = Some(self.code.clone());
        request.stdin.clone_from(&self.stdin);
        request.env.clone_from(&self.env);
        request.workdir.clone_from(&self.workdir);
        request
    }
}

async fn bash_cells(server: Server) {
    run(&server, include_str!("cells/bash.toml"), Runtime::Bash).await;
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
            let stdout = result.stdout == cell.stdout.trim_end();
            if !stderr || !stdout || result.exit_code != cell.exit {
                differences += &format!(
                    "{}: {:?}\n  gave {} {:?} {:?}\n",
                    case.name, cell.code, result.exit_code, result.stdout, result.stderr
                );
            }
        }
        session.stop().await.unwrap();
    }
    assert!(differences.is_empty(), "{differences}");
}
