//! Programs that a waiting interpreter runs do exactly what they do when the interpreter is started
//! on the script file.
//!
//! Every case runs both ways in sandboxes of one server: as `code`, and as a file that a shell
//! command starts the interpreter on. Standard output, standard error and the exit code must agree.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::time::Duration;

use isol8_api::FileContent;
use isol8_client::{ExecutionRequest, ExecutionResult, RemoteIsol8, Runtime};
use regex::Regex;
use serde::Deserialize;

use crate::harness::{Server, on_each_backend};

on_each_backend!(
    python_scripts,
    bash_scripts,
    deno_scripts,
    node_scripts,
    bun_scripts,
    an_interpreter_waits_for_the_request
);

/// Takes away what the shell that starts the interpreter brings into its environment.
const BEFORE_A_SHELL: &str = "-u PWD -u OLDPWD -u SHLVL -u _";

/// Addresses, and ids of threads and processes, which differ from run to run.
const ADDRESS: &str = r"0x[0-9a-f]{8,}|started \d+|\(node:\d+\)";

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

async fn python_scripts(server: Server) {
    let table = include_str!("compare/python.toml");
    // The interpreter of a script buffers its output as Python does by itself.
    let command = "-u PYTHONUNBUFFERED python3";
    let path = "/sandbox/main.py";
    compare(&server, table, Runtime::Python, path, command).await;
}

async fn bash_scripts(server: Server) {
    let table = include_str!("compare/bash.toml");
    compare(&server, table, Runtime::Bash, "/sandbox/main.sh", "bash").await;
}

async fn deno_scripts(server: Server) {
    let table = include_str!("compare/deno.toml");
    let command = "deno run --allow-all";
    compare(&server, table, Runtime::Deno, "/sandbox/main.mts", command).await;
}

async fn node_scripts(server: Server) {
    let table = include_str!("compare/node.toml");
    compare(&server, table, Runtime::Node, "/sandbox/main.mjs", "node").await;
}

async fn bun_scripts(server: Server) {
    let table = include_str!("compare/bun.toml");
    compare(&server, table, Runtime::Bun, "/sandbox/main.ts", "bun run").await;
}

async fn compare(server: &Server, table: &str, runtime: Runtime, path: &str, command: &str) {
    let table: Table = toml::from_str(table).unwrap();
    let client = server.client();
    let address = Regex::new(ADDRESS).unwrap();
    let internals = Regex::new(r"(?m)^ +at .*node:internal.*\n").unwrap();
    let mut differences = String::new();
    for case in table.cases {
        let code = run(&client, case.as_code(runtime), &case.name).await;
        let path = match &case.extension {
            Some(extension) => format!("/sandbox/main{extension}"),
            None => path.to_owned(),
        };
        let file = run(&client, case.as_file(runtime, &path, command), &case.name).await;
        let masked = |text: &str| {
            let text = address.replace_all(text, "ADDRESS").into_owned();
            match case.is_without_internals {
                true => internals.replace_all(&text, "").into_owned(),
                false => text,
            }
        };
        let seen = |result: &ExecutionResult| {
            (
                result.exit_code,
                masked(&result.stdout),
                masked(&result.stderr),
            )
        };
        let (code, file) = (seen(&code), seen(&file));
        let exit = case.exit.unwrap_or(file.0);
        if code != file || file.0 != exit {
            let _ = writeln!(
                differences,
                "{}: expected exit code {exit}\n  as code: {code:?}\n  as file: {file:?}",
                case.name
            );
        }
    }
    assert!(differences.is_empty(), "{differences}");
}

async fn run(client: &RemoteIsol8, request: ExecutionRequest, name: &str) -> ExecutionResult {
    // An interpreter that is not ready yet would be started on the file, and prove nothing.
    let boot = match request.runtime {
        Runtime::Python | Runtime::Bash => 30,
        Runtime::Node | Runtime::Bun | Runtime::Deno => 150,
    };
    tokio::time::sleep(Duration::from_millis(boot)).await;
    let result = client.execute(request).await;
    result.unwrap_or_else(|error| panic!("{name}: {error}"))
}

async fn an_interpreter_waits_for_the_request(server: Server) {
    let age = "ticks = int(open('/proc/self/stat').read().rsplit(')', 1)[1].split()[19])\n\
               import os\n\
               uptime = float(open('/proc/uptime').read().split()[0])\n\
               print(uptime - ticks / os.sysconf('SC_CLK_TCK'))";
    let mut ages = Vec::new();
    // A server that has just started may have no sandbox yet.
    for _ in 0..20 {
        tokio::time::sleep(Duration::from_secs(1)).await;
        let result = server.python(age).await;
        let age: f64 = result.stdout.parse().unwrap();
        if age > 0.5 {
            return;
        }
        ages.push(age);
    }
    panic!("no interpreter was booted before its request: they were {ages:?} s old");
}
