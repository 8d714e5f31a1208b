//! Programs that a waiting interpreter runs do exactly what they do when the interpreter is started
//! on the script file.
//!
//! Every case runs both ways in sandboxes of one server: as `code`, and as a file that a shell
//! command starts the interpreter on. Standard output, standard error and the exit code must agree.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Instant;

use isol8_api::FileContent;
use isol8_client::{ExecutionRequest, ExecutionResult, Runtime};
use libtest_mimic::Trial;
use regex::Regex;
use serde::Deserialize;

use crate::harness::{PATIENCE, Server, eventually};
use crate::shared_server::SharedServer;

/// Takes away what the shell that starts the interpreter brings into its environment.
const BEFORE_A_SHELL: &str = "-u PWD -u OLDPWD -u SHLVL -u _";

/// Addresses, and ids of threads and processes, which differ from run to run.
const ADDRESS: &str = r"0x[0-9a-f]{8,}|started \d+|\(node:\d+\)";

/// How the scripts of a runtime are run as files.
struct Files {
    runtime: Runtime,
    table: &'static str,
    path: &'static str,
    command: &'static str,
}

const TABLES: [Files; 5] = [
    Files {
        runtime: Runtime::Python,
        table: include_str!("compare/python.toml"),
        path: "/sandbox/main.py",
        // The interpreter of a script buffers its output as Python does by itself.
        command: "-u PYTHONUNBUFFERED python3",
    },
    Files {
        runtime: Runtime::Bash,
        table: include_str!("compare/bash.toml"),
        path: "/sandbox/main.sh",
        command: "bash",
    },
    Files {
        runtime: Runtime::Deno,
        table: include_str!("compare/deno.toml"),
        path: "/sandbox/main.mts",
        command: "deno run --allow-all",
    },
    Files {
        runtime: Runtime::Node,
        table: include_str!("compare/node.toml"),
        path: "/sandbox/main.mjs",
        command: "node",
    },
    Files {
        runtime: Runtime::Bun,
        table: include_str!("compare/bun.toml"),
        path: "/sandbox/main.ts",
        command: "bun run",
    },
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
    code: String,
    #[serde(default)]
    stdin: Option<String>,
    #[serde(default)]
    env: BTreeMap<String, String>,
    #[serde(default)]
    files: BTreeMap<String, String>,
    #[serde(default)]
    workdir: Option<String>,
    /// Both must give this exit code; by default only the same one.
    #[serde(default)]
    exit: Option<i32>,
    /// Extension of the script's file, if it is not the runtime's own.
    #[serde(default)]
    extension: Option<String>,
    /// Whether the engine's own frames in traces are left out: those of node 20 tell how a script was loaded.
    #[serde(default)]
    is_without_internals: bool,
}

impl Case {
    fn request(&self, runtime: Runtime) -> ExecutionRequest {
        let mut request = ExecutionRequest::new(runtime);
        request.stdin.clone_from(&self.stdin);
        request.env.clone_from(&self.env);
        request.workdir.clone_from(&self.workdir);
        let files = self.files.iter();
        request.files = files
            .map(|(path, content)| (path.clone(), FileContent(content.clone().into_bytes())))
            .collect();
        request
    }

    fn as_code(&self, runtime: Runtime) -> ExecutionRequest {
        let mut request = self.request(runtime);
        request.code = Some(self.code.clone());
        request.file_extension.clone_from(&self.extension);
        request
    }

    fn as_file(&self, runtime: Runtime, path: &str, command: &str) -> ExecutionRequest {
        let mut request = self.request(runtime);
        request
            .files
            .insert(path.to_owned(), FileContent(self.code.clone().into_bytes()));
        request.cmd = Some(format!("exec env {BEFORE_A_SHELL} {command} {path}"));
        request
    }
}

/// Returns a test for each case of each table.
pub(crate) fn tests(server: &'static SharedServer) -> Vec<Trial> {
    let masks = Arc::new(Masks::new());
    let mut tests = Vec::new();
    for files in &TABLES {
        let table: Table = toml::from_str(files.table).unwrap();
        for case in table.cases {
            let (name, masks) = (case.name.clone(), Arc::clone(&masks));
            let check = async move |server: &Server| difference(server, files, &case, &masks).await;
            tests.push(crate::test(server, "compare", files.runtime, &name, check));
        }
    }
    tests
}

/// Runs a case both ways, and returns how the results differ.
async fn difference(server: &Server, files: &Files, case: &Case, masks: &Masks) -> String {
    let path = match &case.extension {
        Some(extension) => format!("/sandbox/main{extension}"),
        None => files.path.to_owned(),
    };
    let request = case.as_file(files.runtime, &path, files.command);
    let file = masks.apply(case, run(server, request, &case.name).await);
    let code = run_in_booted_interpreter(server, case.as_code(files.runtime), &case.name).await;
    let code = masks.apply(case, code);
    let exit = case.exit.unwrap_or(file.0);
    if code == file && file.0 == exit {
        return String::new();
    }
    format!(
        "{}: expected exit code {exit}\n  as code: {code:?}\n  as file: {file:?}",
        case.name
    )
}

/// Expressions for the parts of the output that differ from run to run and are not compared.
struct Masks {
    address: Regex,
    internals: Regex,
}

impl Masks {
    fn new() -> Self {
        Self {
            address: Regex::new(ADDRESS).unwrap(),
            internals: Regex::new(r"(?m)^ +at .*node:internal.*\n").unwrap(),
        }
    }

    /// Returns the exit code and both outputs.
    fn apply(&self, case: &Case, result: ExecutionResult) -> (i32, String, String) {
        let masked = |text: &str| {
            let text = self.address.replace_all(text, "ADDRESS").into_owned();
            match case.is_without_internals {
                true => self.internals.replace_all(&text, "").into_owned(),
                false => text,
            }
        };
        (
            result.exit_code,
            masked(&result.stdout),
            masked(&result.stderr),
        )
    }
}

/// Runs code until a booted interpreter has served it. An interpreter that is not ready yet would be started on the file,
/// and prove nothing.
async fn run_in_booted_interpreter(
    server: &Server,
    request: ExecutionRequest,
    name: &str,
) -> ExecutionResult {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let result = run(server, request.clone(), name).await;
        if was_booted(server, &result.execution_id).await {
            return result;
        }
        assert!(
            Instant::now() < deadline,
            "{name}: no interpreter is booted"
        );
    }
}

/// Returns whether an interpreter waited for a run, as the server's log says.
async fn was_booted(server: &Server, execution: &str) -> bool {
    let mut booted = None;
    eventually(&format!("the log has {execution}"), || {
        let log = server.log();
        let line = log.lines().rev().find(|line| line.contains(execution));
        booted = line.map(|line| line.contains("booted=true"));
        booted.is_some()
    })
    .await;
    booted.unwrap()
}

async fn run(server: &Server, request: ExecutionRequest, name: &str) -> ExecutionResult {
    let result = server.client().execute(request).await;
    result.unwrap_or_else(|error| panic!("{name}: {error}"))
}
