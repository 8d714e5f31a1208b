//! Output is seen while the program runs, and is kept however the program ends.

use futures::future::join_all;
use isol8_client::{EventKind, ExecutionRequest, RemoteIsol8, Runtime};

use super::programs;
use crate::harness::{PATIENCE, Server, command, on_each_backend, python};

on_each_backend!(
    a_line_is_seen_while_its_program_waits,
    nothing_printed_is_lost_at_a_timeout,
    nothing_printed_is_lost_with_a_killed_process,
    nothing_printed_is_lost_out_of_memory,
);

/// Programs that print two lines, one of them long after the other is seen.
const WAITING: [(Runtime, &str); 6] = [
    (Runtime::Bash, "echo one; sleep 600; echo two"),
    (
        Runtime::Python,
        "import time; print('one'); time.sleep(600); print('two')",
    ),
    (
        Runtime::Python,
        "import subprocess, sys\nsubprocess.run([sys.executable, '-c', 'import time; print(\"one\"); time.sleep(600)'])",
    ),
    (
        Runtime::Node,
        "console.log('one'); await new Promise((go) => setTimeout(go, 600e3)); console.log('two')",
    ),
    (
        Runtime::Bun,
        "console.log('one'); await new Promise((go) => setTimeout(go, 600e3)); console.log('two')",
    ),
    (
        Runtime::Deno,
        "console.log('one'); await new Promise((go) => setTimeout(go, 600e3)); console.log('two')",
    ),
];

/// Programs that print lines and are killed with their interpreter.
const KILLED: [(Runtime, &str); 7] = [
    (
        Runtime::Bash,
        "for i in {1..20}; do echo $i; done; kill -9 $$",
    ),
    (
        Runtime::Python,
        "import os\nfor i in range(1, 21): print(i)\nos.kill(os.getpid(), 9)",
    ),
    (
        Runtime::Python,
        "import os\nfor i in range(1, 21): print(i)\nos._exit(3)",
    ),
    (
        Runtime::Python,
        "import ctypes\nfor i in range(1, 21): print(i)\nctypes.string_at(0)",
    ),
    (
        Runtime::Node,
        "for (let i = 1; i < 21; i++) console.log(i); process.kill(process.pid, 'SIGKILL')",
    ),
    (
        Runtime::Bun,
        "for (let i = 1; i < 21; i++) console.log(i); process.kill(process.pid, 'SIGKILL')",
    ),
    (
        Runtime::Deno,
        "for (let i = 1; i < 21; i++) console.log(i); Deno.kill(Deno.pid, 'SIGKILL')",
    ),
];

/// A request without a session and one in a session of its own, for each program.
fn cases(server: &Server, table: &[(Runtime, &str)]) -> Vec<(RemoteIsol8, ExecutionRequest)> {
    let numbered = programs(table).into_iter().enumerate();
    let both = numbered.flat_map(|(number, request)| {
        let session = server.session(&format!("s{number}"));
        [(server.client(), request.clone()), (session, request)]
    });
    both.collect()
}

/// The programs of [`WAITING`], and a Python that a command line starts.
fn waiting(server: &Server) -> Vec<(RemoteIsol8, ExecutionRequest)> {
    let request = command("python3 -c 'import time; print(\"one\"); time.sleep(600)'");
    let mut all = cases(server, &WAITING);
    all.push((server.session("command"), request.clone()));
    all.push((server.client(), request));
    all
}

async fn a_line_is_seen_while_its_program_waits(server: Server) {
    for (client, request) in waiting(&server) {
        let mut run = client.execute_stream(request.clone()).await.unwrap();
        let event = tokio::time::timeout(PATIENCE, run.next()).await;
        let event = event.unwrap_or_else(|_| panic!("nothing is seen of {request:?}"));
        let event = event.unwrap().unwrap();
        // An unbuffered Python writes the end of a line on its own.
        let seen = (event.kind, event.data.trim_end());
        assert_eq!(seen, (EventKind::Stdout, "one"), "{request:?}");
    }
    server.stop();
}

async fn nothing_printed_is_lost_at_a_timeout(server: Server) {
    // How long an interpreter takes to print is the machine's affair.
    const TIMEOUTS: [u64; 4] = [1_000, 5_000, 15_000, 45_000];
    let runs = waiting(&server).into_iter();
    let runs = runs.map(async |(client, mut request)| {
        for timeout in TIMEOUTS {
            request.timeout_ms = Some(timeout);
            let result = client.execute(request.clone()).await.unwrap();
            assert!(result.timed_out, "{request:?}: {result:?}");
            if result.stdout == "one" {
                return;
            }
        }
        panic!("what it printed is lost: {request:?}");
    });
    join_all(runs).await;
    server.stop();
}

async fn nothing_printed_is_lost_with_a_killed_process(server: Server) {
    let expected: String = (1..21).map(|i| format!("{i}\n")).collect();
    for (client, request) in cases(&server, &KILLED) {
        let result = client.execute(request.clone()).await.unwrap();
        assert_eq!(
            result.stdout,
            expected.trim_end(),
            "{request:?}: {result:?}"
        );
    }
    server.stop();
}

async fn nothing_printed_is_lost_out_of_memory(server: Server) {
    let code = "print('before')\ndata = bytearray(1 << 31)\nfor i in range(0, len(data), 4096): data[i] = 1";
    for client in [server.client(), server.session("s")] {
        let result = client.execute(python(code)).await.unwrap();
        assert!(result.oom_killed, "{result:?}");
        assert_eq!(result.stdout, "before");
    }
    server.stop();
}
