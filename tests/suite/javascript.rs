//! Behaviour that programs of JavaScript rely on, in every runtime: output arrives, a cell waits for the work that it
//! started, and no error goes unreported.

use std::fmt::Write as _;
use std::time::{Duration, Instant};

use isol8_client::{ExecutionRequest, ExecutionResult, RemoteIsol8, Runtime};

use crate::harness::{PATIENCE, Server, on_each_backend, source};

on_each_backend!(
    an_exit_loses_no_output,
    a_cell_waits_for_the_work_that_it_started,
    a_cell_does_not_wait_for_what_has_no_end,
    output_between_cells_comes_with_the_next_one,
    an_error_that_nothing_awaits_is_told,
    a_script_is_common_js_where_it_uses_what_only_that_has,
    typescript_runs_in_node_or_is_refused_with_the_reason,
    cells_go_on_where_the_working_directory_was_removed,
    an_import_map_of_the_first_request_is_seen_by_its_cell,
    cells_have_the_names_that_the_prompt_of_their_runtime_has,
    programs_are_told_to_contact_nothing_on_their_own,
);

const RUNTIMES: [Runtime; 3] = [Runtime::Node, Runtime::Bun, Runtime::Deno];

/// More than a pipe holds.
const MUCH: usize = 300_000;

/// Programs that end abruptly when they have written, the streams that they write to, and their exit codes.
const ABRUPT: [(&str, [bool; 2], i32); 5] = [
    ("console.log(much); process.exit(0)", [true, false], 0),
    ("console.error(much); process.exit(2)", [false, true], 2),
    (
        "process.stdout.write(much); throw new Error('thrown')",
        [true, false],
        1,
    ),
    (
        "process.stderr.write(much); process.stdout.write(much); process.exit(3)",
        [true, true],
        3,
    ),
    (
        "console.log(much); console.error(much); process.exit(4)",
        [true, true],
        4,
    ),
];

async fn an_exit_loses_no_output(server: Server) {
    let mut wrong = String::new();
    for runtime in RUNTIMES {
        let session = server.session(&format!("exit-{runtime}"));
        for (code, streams, exit) in ABRUPT {
            let code = format!("{{ const much = 'y'.repeat({MUCH}) + 'END';\n{code} }}");
            let waiting = source(runtime, &code);
            let mut fresh = source(runtime, &code);
            fresh.env.insert("NODE_NO_WARNINGS".into(), "1".into());
            let client = server.client();
            for (manner, client, request) in [
                ("waiting", &client, waiting.clone()),
                ("fresh", &client, fresh),
                ("cell", &session, waiting),
            ] {
                let result = client.execute(request).await.unwrap();
                let found = [&result.stdout, &result.stderr];
                let is_whole = |(text, wanted): (&&String, bool)| {
                    !wanted || text.contains(&format!("{}END", "y".repeat(MUCH)))
                };
                if !found.iter().zip(streams).all(is_whole) || result.exit_code != exit {
                    let lengths = found.map(|text| text.len());
                    let _ = writeln!(
                        wrong,
                        "{runtime} {manner} {code}: {lengths:?} {}",
                        result.exit_code
                    );
                }
            }
        }
    }
    assert!(wrong.is_empty(), "{wrong}");
    server.stop();
}

/// Cells that print `done` after they have come to their end.
const WORK: [&str; 9] = [
    "async function main() { await 1; await new Promise((end) => setTimeout(end, 30)); console.log('done') }; main()",
    "import fs from 'node:fs'; fs.readFile('/etc/hostname', () => console.log('done'))",
    "import { readFile } from 'node:fs/promises'; readFile('/etc/hostname').then(() => console.log('done')); 0",
    "setTimeout(() => setTimeout(() => console.log('done'), 5), 5); 0",
    "setImmediate(() => process.nextTick(() => queueMicrotask(() => console.log('done')))); 0",
    "import crypto from 'node:crypto'; crypto.pbkdf2('a', 'b', 1000, 32, 'sha256', () => console.log('done'))",
    "import cp from 'node:child_process'; cp.exec('sleep 0.1; echo done', (_, text) => console.log(text.trim()))",
    "import zlib from 'node:zlib'; zlib.gzip('text', () => console.log('done'))",
    "{ const other = setInterval(() => {}, 1000); setTimeout(() => { clearInterval(other); console.log('done') }, 30); }",
];

async fn a_cell_waits_for_the_work_that_it_started(server: Server) {
    let mut wrong = String::new();
    for runtime in RUNTIMES {
        let session = server.session(&format!("work-{runtime}"));
        for code in WORK {
            let result = session.execute(source(runtime, code)).await.unwrap();
            if result.stdout != "done" || !result.stderr.is_empty() || result.exit_code != 0 {
                let _ = writeln!(wrong, "{runtime} {code}: {result:?}");
            }
        }
        let exits = "setTimeout(() => process.exit(7), 10); 0";
        let result = session.execute(source(runtime, exits)).await.unwrap();
        assert_eq!(result.exit_code, 7, "{runtime} {result:?}");
    }
    assert!(wrong.is_empty(), "{wrong}");
    server.stop();
}

/// Cells that leave something that ends with the session only.
const ENDLESS: [&str; 6] = [
    "setInterval(() => {}, 10); 0",
    "import http from 'node:http'; http.createServer((_, answer) => answer.end('served')).listen(8123); 0",
    "console.log(await (await fetch('http://127.0.0.1:8123')).text())",
    "async function main() { await new Promise((end) => setTimeout(end, 10)); http.createServer(() => {}).listen(8124) }; main()",
    "import net from 'node:net'; const connection = net.connect(8123); 0",
    "setTimeout(() => {}, 50_000).unref(); 0",
];

async fn a_cell_does_not_wait_for_what_has_no_end(server: Server) {
    for runtime in RUNTIMES {
        let session = server.session(&format!("endless-{runtime}"));
        for code in ENDLESS {
            let result = session.execute(source(runtime, code)).await.unwrap();
            let is_fine = result.exit_code == 0 && result.stderr.is_empty();
            assert!(
                is_fine && result.duration_ms < 10_000.0,
                "{runtime} {code}: {result:?}"
            );
        }
        // Work without an end takes a cell's time once, and none of the next one's.
        let mut polling = source(
            runtime,
            "(async () => { for (;;) await new Promise((end) => setTimeout(end, 20)) })(); 0",
        );
        polling.timeout_ms = Some(1000);
        let result = session.execute(polling).await.unwrap();
        assert!(
            result.stderr.contains("WORK THAT IT STARTED GOES ON"),
            "{runtime} {result:?}"
        );
        assert_eq!(
            (result.exit_code, result.timed_out),
            (0, false),
            "{runtime} {result:?}"
        );
        let result = session
            .execute(source(runtime, "console.log('next')"))
            .await
            .unwrap();
        assert_eq!(result.stdout, "next", "{runtime} {result:?}");
    }
    server.stop();
}

/// Waits until a cell's work has written a file.
async fn until_written(session: &RemoteIsol8, path: &str) {
    let deadline = Instant::now() + PATIENCE;
    while session.get_file(path).await.is_err() {
        assert!(Instant::now() < deadline, "{path} was not written");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    // Standard output and error have another way than files.
    tokio::time::sleep(Duration::from_millis(50)).await;
}

async fn next_cell(session: &RemoteIsol8, runtime: Runtime) -> ExecutionResult {
    let request: ExecutionRequest = source(runtime, "console.log('next')");
    session.execute(request).await.unwrap()
}

async fn output_between_cells_comes_with_the_next_one(server: Server) {
    for runtime in RUNTIMES {
        let session = server.session(&format!("late-{runtime}"));
        let code = "import fs from 'node:fs';\n\
                    const timer = setInterval(() => { if (!fs.existsSync('/sandbox/go')) return; clearInterval(timer); \
                    console.log('late'); console.error('error'); fs.writeFileSync('/sandbox/done', '') }, 10).unref(); 0";
        let result = session.execute(source(runtime, code)).await.unwrap();
        assert_eq!(
            (result.stdout.as_str(), result.stderr.as_str()),
            ("", ""),
            "{runtime}"
        );
        session.put_file("/sandbox/go", "").await.unwrap();
        until_written(&session, "/sandbox/done").await;
        let result = next_cell(&session, runtime).await;
        let marked = "--- LATE stdout OF EARLIER CELLS ---\nlate\n\
                      --- LATE stderr OF EARLIER CELLS ---\nerror\n\
                      --- END OF LATE OUTPUT ---";
        assert_eq!(
            (result.stdout.as_str(), result.stderr.as_str()),
            ("next", marked),
            "{runtime}"
        );
        let result = next_cell(&session, runtime).await;
        assert_eq!(
            (result.stdout.as_str(), result.stderr.as_str()),
            ("next", ""),
            "{runtime}"
        );
    }
    server.stop();
}

/// Cells with an error that is thrown where nothing awaits it.
const UNAWAITED: [&str; 6] = [
    "Promise.reject(new Error('told'))",
    "(async () => { throw new Error('told') })()",
    "async function main() { await 1; throw new Error('told') }; main()",
    "async function slow() { await new Promise((end) => setTimeout(end, 20)); throw new Error('told') }; slow(); 0",
    "setTimeout(() => { throw new Error('told') }, 5); 0",
    "Promise.reject(new Error('told')).finally(() => {}); 0",
];

async fn an_error_that_nothing_awaits_is_told(server: Server) {
    let mut wrong = String::new();
    for runtime in RUNTIMES {
        let session = server.session(&format!("error-{runtime}"));
        session
            .execute(source(runtime, "let kept = 5"))
            .await
            .unwrap();
        for (number, code) in UNAWAITED.iter().enumerate() {
            let text = format!("told {number}");
            let code = code.replace("told", &text);
            let result = session.execute(source(runtime, &code)).await.unwrap();
            if !result.stderr.contains(&text) || result.exit_code != 0 {
                let _ = writeln!(wrong, "{runtime} {code}: {result:?}");
            }
        }
        let later = "import fs from 'node:fs';\n\
                     setTimeout(() => { fs.writeFileSync('/sandbox/done', ''); Promise.reject(new Error('told')) }, 50).unref(); 0";
        session.execute(source(runtime, later)).await.unwrap();
        session.put_file("/sandbox/go", "").await.unwrap();
        until_written(&session, "/sandbox/done").await;
        let result = next_cell(&session, runtime).await;
        assert!(result.stderr.contains("told"), "{runtime} {result:?}");
        let result = session
            .execute(source(runtime, "console.log(kept)"))
            .await
            .unwrap();
        assert_eq!(result.stdout, "5", "{runtime} {result:?}");
    }
    assert!(wrong.is_empty(), "{wrong}");
    server.stop();
}

/// Scripts by the runtime, their code, and what they print.
const COMMON: [(Runtime, &str, &str); 9] = [
    (
        Runtime::Node,
        "const fs = require('fs'); console.log(typeof fs.readFileSync, typeof module, __dirname)",
        "function object /sandbox",
    ),
    (
        Runtime::Bun,
        "const fs = require('fs'); console.log(typeof fs.readFileSync, typeof module, __dirname)",
        "function object /sandbox",
    ),
    (
        Runtime::Deno,
        "const fs = require('node:fs'); console.log(typeof fs.readFileSync, typeof module, __dirname)",
        "function object /sandbox",
    ),
    (
        Runtime::Node,
        "async function main() { console.log(await require('util').promisify(setTimeout)(1, 'x')) } main()",
        "x",
    ),
    (
        Runtime::Node,
        "import fs from 'node:fs'; console.log(typeof fs.readFileSync, typeof require)",
        "function undefined",
    ),
    (
        Runtime::Node,
        "console.log(typeof require, await 1)",
        "undefined 1",
    ),
    (
        Runtime::Node,
        "// as with require('x')\nconsole.log(await 1, typeof require)",
        "1 undefined",
    ),
    (
        Runtime::Deno,
        "// as with require('x')\nconsole.log(await 1, typeof require)",
        "1 undefined",
    ),
    (Runtime::Deno, "const x: number = 1; console.log(x)", "1"),
];

async fn a_script_is_common_js_where_it_uses_what_only_that_has(server: Server) {
    for (runtime, code, expected) in COMMON {
        let result = server
            .client()
            .execute(source(runtime, code))
            .await
            .unwrap();
        assert_eq!(
            (result.stdout.as_str(), result.exit_code),
            (expected, 0),
            "{runtime} {code}: {result:?}"
        );
    }
    // A file with an extension has the kind that the extension names.
    let mut named = source(Runtime::Node, "console.log(typeof require('fs'))");
    named.file_extension = Some(".mjs".into());
    let result = server.client().execute(named).await.unwrap();
    assert_eq!(result.exit_code, 1, "{result:?}");
    assert!(
        result.stderr.contains("require is not defined"),
        "{result:?}"
    );
    server.stop();
}

/// Node runs TypeScript if it can strip types; otherwise the refusal says why.
async fn typescript_runs_in_node_or_is_refused_with_the_reason(server: Server) {
    let version = "console.log(process.features.typescript || 'none')";
    let able = server
        .client()
        .execute(source(Runtime::Node, version))
        .await
        .unwrap();
    for fresh in [false, true] {
        let mut request = source(Runtime::Node, "const x: number = 1; console.log(x)");
        request.file_extension = Some(".ts".into());
        if fresh {
            request.env.insert("NODE_NO_WARNINGS".into(), "1".into());
        }
        let result = server.client().execute(request).await.unwrap();
        if able.stdout == "none" {
            assert_eq!(result.exit_code, 1, "{result:?}");
            assert!(
                result
                    .stderr
                    .contains("cannot run TypeScript; node runs TypeScript from 22.18 on"),
                "{result:?}"
            );
        } else {
            assert_eq!(
                (result.stdout.as_str(), result.exit_code),
                ("1", 0),
                "{result:?}"
            );
        }
    }
    server.stop();
}

/// Cells by the runtime: one that removes its working directory, and later ones.
const REMOVED: [(Runtime, &str, &str); 5] = [
    (
        Runtime::Python,
        "import os; os.mkdir('/tmp/gone'); os.chdir('/tmp/gone'); os.rmdir('/tmp/gone')",
        "import json; print(json.dumps([1]))",
    ),
    (
        Runtime::Bash,
        "mkdir /tmp/gone; cd /tmp/gone; rmdir /tmp/gone",
        "echo '[1]'",
    ),
    (
        Runtime::Node,
        "import fs from 'node:fs'; fs.mkdirSync('/tmp/gone'); process.chdir('/tmp/gone'); fs.rmdirSync('/tmp/gone')",
        "import os from 'node:os'; console.log(JSON.stringify([typeof os.cpus && 1]))",
    ),
    (
        Runtime::Bun,
        "import fs from 'node:fs'; fs.mkdirSync('/tmp/gone'); process.chdir('/tmp/gone'); fs.rmdirSync('/tmp/gone')",
        "import os from 'node:os'; console.log(JSON.stringify([typeof os.cpus && 1]))",
    ),
    (
        Runtime::Deno,
        "Deno.mkdirSync('/tmp/gone'); Deno.chdir('/tmp/gone'); Deno.removeSync('/tmp/gone')",
        "import os from 'node:os'; console.log(JSON.stringify([typeof os.cpus && 1]))",
    ),
];

async fn cells_go_on_where_the_working_directory_was_removed(server: Server) {
    for (runtime, removes, later) in REMOVED {
        let session = server.session(&format!("removed-{runtime}"));
        session.execute(source(runtime, removes)).await.unwrap();
        for _ in 0..2 {
            let result = session.execute(source(runtime, later)).await.unwrap();
            assert_eq!(
                (result.stdout.as_str(), result.exit_code),
                ("[1]", 0),
                "{runtime} {result:?}"
            );
        }
    }
    server.stop();
}

/// Files of a session's first request that its interpreter reads when it starts.
async fn an_import_map_of_the_first_request_is_seen_by_its_cell(server: Server) {
    let session = server.session("import-map");
    let code = "import { value } from 'mapped'; import { other } from '@local/other.mjs'; console.log(value, other)";
    let mut request = source(Runtime::Deno, code);
    let map = r#"{"imports": {"mapped": "./lib/value.mjs", "@local/": "./lib/"}}"#;
    for (path, content) in [
        ("/sandbox/deno.json", map),
        ("/sandbox/lib/value.mjs", "export const value = 5"),
        ("/sandbox/lib/other.mjs", "export const other = 6"),
    ] {
        let content = isol8_api::FileContent(content.as_bytes().to_vec());
        request.files.insert(path.into(), content);
    }
    let result = session.execute(request).await.unwrap();
    assert_eq!(result.stdout, "5 6", "{result:?}");
    let result = session
        .execute(source(Runtime::Deno, "console.log(value)"))
        .await
        .unwrap();
    assert_eq!(result.stdout, "5", "{result:?}");
    server.stop();
}

/// Names that the runtime's own prompt has.
async fn cells_have_the_names_that_the_prompt_of_their_runtime_has(server: Server) {
    let code = "console.log([typeof require, typeof module, typeof exports, typeof __filename, typeof __dirname].join(' '))";
    for (runtime, expected) in [
        (Runtime::Node, "function object object string string"),
        (Runtime::Bun, "function object object string string"),
        (
            Runtime::Deno,
            "undefined undefined undefined undefined undefined",
        ),
    ] {
        let session = server.session(&format!("names-{runtime}"));
        let result = session.execute(source(runtime, code)).await.unwrap();
        assert_eq!(result.stdout, expected, "{runtime} {result:?}");
    }
    server.stop();
}

/// Programs find that they are to look for no updates and to report nothing.
async fn programs_are_told_to_contact_nothing_on_their_own(server: Server) {
    let told = [
        "DENO_NO_UPDATE_CHECK=1",
        "DO_NOT_TRACK=1",
        "NO_UPDATE_NOTIFIER=1",
        "NPM_CONFIG_UPDATE_NOTIFIER=false",
        "PIP_DISABLE_PIP_VERSION_CHECK=1",
    ];
    for runtime in [
        Runtime::Python,
        Runtime::Node,
        Runtime::Bun,
        Runtime::Deno,
        Runtime::Bash,
    ] {
        let mut request = ExecutionRequest::new(runtime);
        request.cmd = Some("env".into());
        let result = server.client().execute(request).await.unwrap();
        for variable in told {
            assert!(
                result.stdout.lines().any(|line| line == variable),
                "{runtime} {variable}: {result:?}"
            );
        }
    }
    server.stop();
}
