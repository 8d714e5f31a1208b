//! Packages that user code installs itself, as programs and models write it: they can be imported at once, in the
//! same run too, and their scripts are on `PATH`.

use futures::future::join_all;
use isol8_api::{NetworkMode, Options};
use isol8_client::{ExecutionRequest, ExecutionResult, RemoteIsol8, Runtime};

use super::TIMEOUT_MS;
use crate::harness::{Server, on_each_backend, source};

on_each_backend!(
    with super::super::CONFIG;
    what_code_installs_is_there_for_the_rest_of_its_run,
    what_code_installs_is_there_for_its_session,
    what_a_command_installs_is_there_for_the_running_interpreter,
    scripts_of_installed_packages_are_found,
);

/// A way to install one package, and what shows that it is there.
struct Case {
    runtime: Runtime,
    install: &'static str,
    /// Prints what the package says.
    import: &'static str,
    expected: &'static str,
    /// A program of the package, where the way of installing brings one.
    script: Option<&'static str>,
}

const SEMVER: &str = "console.log((await import('semver')).default.major('7.1.0'));";
const SEMVER_OF_NPM: &str =
    "console.log((await import('npm:semver@7.7.2')).default.major('7.1.0'));";

const CASES: [Case; 6] = [
    Case {
        runtime: Runtime::Python,
        install: "pip install -q tabulate==0.9.0",
        import: "import tabulate; print(tabulate.__version__)",
        expected: "0.9.0",
        script: Some("echo 7 | tabulate -f plain"),
    },
    Case {
        runtime: Runtime::Python,
        install: "python3 -m pip install -q --user tabulate==0.9.0",
        import: "from tabulate import tabulate; print(tabulate([[7]], tablefmt='plain'))",
        expected: "7",
        script: None,
    },
    Case {
        runtime: Runtime::Node,
        install: "npm i semver@7.7.2",
        import: SEMVER,
        expected: "7",
        script: Some("semver 7.0.0"),
    },
    Case {
        runtime: Runtime::Node,
        install: "npm i -g semver@7.7.2 && npx --yes semver@7.7.2 7.1.0 >&2",
        import: "console.log(7);",
        expected: "7",
        script: Some("semver 7.0.0"),
    },
    Case {
        runtime: Runtime::Bun,
        install: "bun add semver@7.7.2 && bun add -g semver@7.7.2",
        import: SEMVER,
        expected: "7",
        script: Some("semver 7.0.0"),
    },
    Case {
        runtime: Runtime::Deno,
        install: "deno add -q npm:semver@7.7.2 && deno install -q -gA -n semver npm:semver@7.7.2",
        import: SEMVER,
        expected: "7",
        script: Some("semver 7.0.0"),
    },
];

fn printed_by_script(runtime: Runtime) -> &'static str {
    match runtime {
        Runtime::Python => "7",
        _ => "7.0.0",
    }
}

/// Code that runs a shell command and fails where that does.
fn shell(runtime: Runtime, command: &str) -> String {
    match runtime {
        Runtime::Python => {
            format!("import subprocess\nsubprocess.run({command:?}, shell=True, check=True)")
        }
        _ => format!(
            "(await import('node:child_process')).execSync({command:?}, {{ stdio: 'inherit' }});"
        ),
    }
}

fn quiet(command: &str) -> String {
    format!("({command}) >&2")
}

async fn run(client: &RemoteIsol8, mut request: ExecutionRequest) -> ExecutionResult {
    request.timeout_ms = Some(TIMEOUT_MS);
    let options = Options {
        network: Some(NetworkMode::Filtered),
        ..Options::default()
    };
    client.execute_with(request, options).await.unwrap()
}

/// Returns the fault of a run that was to print this.
fn fault(result: &ExecutionResult, case: &Case, expected: &str) -> Option<String> {
    let (runtime, install) = (case.runtime, case.install);
    (result.stdout != expected).then(|| format!("{runtime}, {install}: {result:#?}"))
}

/// All faults at once: each takes a while to come to.
fn none_of(faults: impl IntoIterator<Item = Option<String>>) {
    let faults: Vec<String> = faults.into_iter().flatten().collect();
    assert!(faults.is_empty(), "{}", faults.join("\n"));
}

async fn what_code_installs_is_there_for_the_rest_of_its_run(server: Server) {
    let client = server.client();
    // A variable that an interpreter reads at its start has one started for the script.
    let started = CASES.iter().map(|case| (case, Some("PYTHONHASHSEED")));
    let started = started.filter(|(case, _)| case.runtime == Runtime::Python);
    let all = CASES.iter().map(|case| (case, None)).chain(started);
    let runs = all.map(async |(case, variable)| {
        let import = match case.runtime {
            // Deno reads its configuration at its start, as everywhere.
            Runtime::Deno => SEMVER_OF_NPM.to_owned(),
            _ => case.import.to_owned(),
        };
        let install = shell(case.runtime, &quiet(case.install));
        let script = case.script.map(|script| shell(case.runtime, script));
        let code = format!("{install}\n{import}\n{}", script.unwrap_or_default());
        let mut request = source(case.runtime, code);
        let env = variable.map(|name| (name.to_owned(), "0".to_owned()));
        request.env.extend(env);
        let result = run(&client, request).await;
        // The two write on their own, one of them through a buffer.
        let mut lines: Vec<&str> = result.stdout.lines().collect();
        lines.sort_unstable();
        let mut expected = vec![case.expected];
        expected.extend(case.script.map(|_| printed_by_script(case.runtime)));
        expected.sort_unstable();
        (lines != expected).then(|| format!("{}: {result:#?}", case.install))
    });
    none_of(join_all(runs).await);
    server.stop();
}

async fn what_code_installs_is_there_for_its_session(server: Server) {
    let runs = CASES.iter().enumerate().map(async |(index, case)| {
        let session = server.session(&format!("s{index}"));
        let state = match case.runtime {
            Runtime::Python => "x = 41",
            _ => "let x = 41",
        };
        run(&session, source(case.runtime, state)).await;
        let install = shell(case.runtime, &quiet(case.install));
        let code = format!("{install}\n{}", case.import);
        let result = run(&session, source(case.runtime, code)).await;
        let at_once = fault(&result, case, case.expected);
        let result = run(&session, source(case.runtime, case.import)).await;
        let later = fault(&result, case, case.expected);
        session.stop().await.unwrap();
        [at_once, later]
    });
    none_of(join_all(runs).await.into_iter().flatten());
    server.stop();
}

async fn what_a_command_installs_is_there_for_the_running_interpreter(server: Server) {
    let runs = CASES.iter().enumerate().map(async |(index, case)| {
        let session = server.session(&format!("s{index}"));
        let missing = source(case.runtime, case.import);
        run(&session, missing).await;
        let mut install = ExecutionRequest::new(case.runtime);
        install.cmd = Some(quiet(case.install));
        let result = run(&session, install).await;
        let installed = fault(&result, case, "");
        let result = run(&session, source(case.runtime, case.import)).await;
        let imported = fault(&result, case, case.expected);
        let mut found = None;
        if let Some(script) = case.script {
            let mut command = ExecutionRequest::new(case.runtime);
            command.cmd = Some(script.to_owned());
            let result = run(&session, command).await;
            found = fault(&result, case, printed_by_script(case.runtime));
        }
        session.stop().await.unwrap();
        [installed, imported, found]
    });
    none_of(join_all(runs).await.into_iter().flatten());
    server.stop();
}

async fn scripts_of_installed_packages_are_found(server: Server) {
    let client = server.client();
    let cases = [
        (
            Runtime::Python,
            "tabulate==0.9.0",
            "echo 7 | tabulate -f plain",
        ),
        (Runtime::Node, "semver@7.7.2", "semver 7.0.0"),
        (Runtime::Bun, "semver@7.7.2", "semver 7.0.0"),
    ];
    let runs = cases.map(async |(runtime, package, script)| {
        let request = super::with(&[package], source(runtime, shell(runtime, script)));
        let result = client.execute(request).await.unwrap();
        let is_there = result.stdout == printed_by_script(runtime);
        (!is_there).then(|| format!("{runtime}: {result:#?}"))
    });
    none_of(join_all(runs).await);
    server.stop();
}
