//! Directories and names that user code has filled or occupied: neither the session nor the guest is lost by that.

#![allow(clippy::unwrap_used)] // a test that cannot go on should end at once

mod support;

use isol8_protocol::{FailureKind, Program, RunSpec, Runtime, Stdin};
use support::{Outcome, Sandbox, cell, finish};

const FILL: &str = r#"
for place; do
    dd if=/dev/zero of="$place/filler" bs=1M status=none
    dd if=/dev/zero of="$place/rest" bs=1 status=none
done 2>/dev/null
for place; do ! echo x 2>/dev/null >"$place/more" || exit 1; done
"#;

async fn fill(sandbox: &Sandbox, places: &[&str]) {
    let argv = [&["sh", "-c", FILL, "fill"], places].concat();
    sandbox.run(support::command(&argv)).await.ok();
}

fn bash(source: &str) -> RunSpec {
    cell_of(Runtime::Bash, source)
}

fn cell_of(runtime: Runtime, source: &str) -> RunSpec {
    support::spec(Program::Cell {
        runtime,
        source: source.as_bytes().to_vec(),
    })
}

/// Returns a cell that prints 42 for every interpreter that is installed.
async fn cells(sandbox: &Sandbox) -> Vec<RunSpec> {
    let mut specs = Vec::new();
    for (runtime, program, source) in [
        (Runtime::Bash, "bash", "echo $((6 * 7))"),
        (Runtime::Python, "python3", "print(6 * 7)"),
        (Runtime::Node, "node", "console.log(6 * 7)"),
        (Runtime::Bun, "bun", "console.log(6 * 7)"),
        (Runtime::Deno, "deno", "console.log(6 * 7)"),
    ] {
        let found = sandbox.sh(&format!("command -v {program}")).await;
        if found.code() == 0 {
            specs.push(cell_of(runtime, source));
        }
    }
    specs
}

async fn failure_of(sandbox: &Sandbox, spec: RunSpec) -> (FailureKind, String) {
    let error = finish(sandbox.control.run(spec).unwrap())
        .await
        .unwrap_err();
    (error.failure_kind().unwrap(), error.to_string())
}

/// Runs a cell whose input the host sends while the cell runs.
async fn piped(sandbox: &Sandbox, mut spec: RunSpec, input: &[u8]) -> Outcome {
    spec.stdin = Stdin::Piped;
    let run = sandbox.control.run(spec).unwrap();
    run.write_stdin(input).await.unwrap();
    run.end_stdin().unwrap();
    finish(run).await.unwrap()
}

#[tokio::test]
async fn interpreters_boot_where_shared_memory_and_the_sandbox_are_full() {
    let sandbox = Sandbox::start().await;
    for spec in cells(&sandbox).await {
        fill(&sandbox, &["/dev/shm", "/sandbox"]).await;
        assert_eq!(sandbox.run(spec).await.ok(), "42");
        assert_eq!(sandbox.sh("ls -A /tmp").await.ok(), "");
        sandbox.control.reset().await.unwrap();
    }
}

#[tokio::test]
async fn interpreters_boot_where_names_like_the_guest_s_were_taken() {
    let sandbox = Sandbox::start().await;
    let take = "import os\nfor n in range(1000):\n  os.mkdir(f'/dev/shm/.isol8-{n:08x}')\n  \
                for place in ('/dev/shm', '/tmp', '/sandbox'): os.mkdir(f'{place}/.isol8-{n:016x}')";
    for mut spec in cells(&sandbox).await {
        sandbox.python(take).await.ok();
        spec.stdin = Stdin::Bytes(b"in".to_vec());
        assert_eq!(sandbox.run(spec).await.ok(), "42");
        let path = "/sandbox/file";
        sandbox.control.write_file(path, 0o644, b"x").await.unwrap();
        sandbox.control.reset().await.unwrap();
    }
}

#[tokio::test]
async fn an_interpreter_without_room_for_its_files_fails_its_cell_at_once_and_the_next_one_boots() {
    let sandbox = Sandbox::start().await;
    fill(&sandbox, &["/dev/shm", "/tmp"]).await;
    let (kind, text) = failure_of(&sandbox, bash("echo 1")).await;
    assert_eq!(kind, FailureKind::NoSpace, "{text}");
    assert!(text.contains("/dev/shm"), "{text}");
    sandbox.sh("rm /tmp/* /dev/shm/*").await.ok();
    assert_eq!(sandbox.run(bash("echo 2")).await.ok(), "2");

    // The same holds for an interpreter that boots because the one before died, while no run waits.
    sandbox.run(bash("x=1")).await.ok();
    fill(&sandbox, &["/dev/shm", "/tmp"]).await;
    assert!(sandbox.run(bash("kill -9 $$")).await.exit.state_lost);
    sandbox.sh("rm /tmp/* /dev/shm/*").await.ok();
    assert_eq!(sandbox.run(bash("echo ${x-3}")).await.ok(), "3");
}

#[tokio::test]
async fn a_cell_gets_its_input_and_keeps_its_state_where_places_are_full() {
    let sandbox = Sandbox::start().await;
    sandbox.prepare(Runtime::Python).await;
    sandbox.cell("x = 41\nimport sys").await.ok();
    for places in [&["/tmp"][..], &["/dev/shm", "/sandbox"]] {
        fill(&sandbox, places).await;
        let read = "print(x + 1, sys.stdin.read())";
        let mut spec = cell(read);
        spec.stdin = Stdin::Bytes(b"bytes".to_vec());
        assert_eq!(sandbox.run(spec).await.ok(), "42 bytes");
        let outcome = piped(&sandbox, cell(read), b"piped").await;
        assert_eq!(outcome.ok(), "42 piped");
        assert!(!outcome.exit.state_lost);
    }
    let left = "ls -A /tmp /dev/shm /sandbox | grep isol8";
    assert_eq!(sandbox.sh(left).await.stdout, "");
}

#[tokio::test]
async fn more_input_than_a_pipe_holds_comes_where_places_are_full() {
    let sandbox = Sandbox::start().await;
    fill(&sandbox, &["/tmp", "/dev/shm", "/sandbox"]).await;
    let mut spec = cell("import sys; print(len(sys.stdin.read()))");
    spec.stdin = Stdin::Bytes(vec![b'x'; 1_000_000]);
    assert_eq!(sandbox.run(spec).await.ok(), "1000000");
}

#[tokio::test]
async fn input_that_user_code_removes_does_not_end_the_interpreter() {
    let sandbox = Sandbox::start().await;
    for mut spec in cells(&sandbox).await {
        let Program::Cell { runtime, .. } = spec.program else {
            continue;
        };
        let first = match runtime {
            Runtime::Bash => "x=1; sleep 0.5; rm -f /tmp/.isol8*",
            Runtime::Python => {
                "x = 1\nimport glob, os, time\ntime.sleep(0.5)\n\
                 for path in glob.glob('/tmp/.isol8*'): os.unlink(path)"
            }
            _ => {
                "var x = 1; await new Promise((r) => setTimeout(r, 500)); \
                 const fs = await import('node:fs'); \
                 for (const n of fs.readdirSync('/tmp')) \
                 if (n.startsWith('.isol8')) fs.unlinkSync('/tmp/' + n); undefined"
            }
        };
        let first = sandbox.control.run(cell_of(runtime, first)).unwrap();
        spec.stdin = Stdin::Bytes(b"in".to_vec());
        let second = sandbox.control.run(spec).unwrap();
        finish(first).await.unwrap().ok();
        assert!(
            !finish(second).await.unwrap().exit.state_lost,
            "{runtime:?}"
        );
        let state = match runtime {
            Runtime::Bash => "echo $x",
            Runtime::Python => "print(x)",
            _ => "console.log(x)",
        };
        let third = sandbox.run(cell_of(runtime, state)).await;
        assert_eq!(third.ok(), "1", "{runtime:?}");
        sandbox.control.reset().await.unwrap();
    }
}

#[tokio::test]
async fn user_code_cannot_lease_a_file_that_the_guest_reads() {
    let sandbox = Sandbox::start().await;
    sandbox.prepare(Runtime::Python).await;
    let source = r#"
import errno, fcntl, os
x = 1
for path in ("/tmp/leased", "/sandbox/leased"):
    with open(path, "w") as file: file.write("content")
    file = os.open(path, os.O_RDONLY)
    for kind in (fcntl.F_RDLCK, fcntl.F_WRLCK):
        try: fcntl.fcntl(file, fcntl.F_SETLEASE, kind)
        except OSError as error: print(error.errno == errno.EPERM)
"#;
    let outcome = sandbox.cell(source).await;
    for path in ["/tmp/leased", "/sandbox/leased"] {
        let content = sandbox.control.read_file(path, 100).await.unwrap();
        assert_eq!(content, b"content");
        sandbox
            .control
            .write_file(path, 0o644, b"new")
            .await
            .unwrap();
    }
    assert_eq!(outcome.ok(), "True\nTrue\nTrue\nTrue");
    assert_eq!(sandbox.cell("print(x)").await.ok(), "1");
}

#[tokio::test]
async fn files_in_the_place_of_scripts_delay_no_interpreter() {
    let sandbox = Sandbox::start().await;
    for spec in cells(&sandbox).await {
        for make in [
            "mkfifo",
            "mkdir",
            "ln -s /nowhere",
            "install -m 0 /dev/null",
        ] {
            let occupy = format!("for end in py mjs ts mts; do {make} /sandbox/main.$end; done");
            sandbox.sh(&occupy).await.ok();
            let outcome = finish(sandbox.control.run(spec.clone()).unwrap()).await;
            match outcome {
                Ok(outcome) => assert_eq!(outcome.ok(), "42"),
                // Bun cannot start without the file, and reports that.
                Err(error) => {
                    assert_eq!(error.failure_kind(), Some(FailureKind::Refused), "{error}");
                    assert!(error.to_string().contains("/sandbox/main.ts"), "{error}");
                    sandbox.sh("rm -rf /sandbox/*").await.ok();
                    assert_eq!(sandbox.run(spec.clone()).await.ok(), "42");
                }
            }
            sandbox.control.reset().await.unwrap();
        }
    }
}

#[tokio::test]
async fn a_cell_without_room_for_its_input_fails_alone() {
    // If user code has the guest's user id, it owns all directories. `r-x` still lets it enter /sandbox.
    let sandbox = Sandbox::start_with(&["--shared-uid"]).await;
    let close = "import os, sys\nx = 1\ndef change(mode):\n  \
                 for place in ('/tmp', '/dev/shm', '/sandbox'): os.chmod(place, mode)\nchange(0o555)";
    sandbox.cell(close).await.ok();
    for stdin in [Stdin::Bytes(b"in".to_vec()), Stdin::Piped] {
        let mut spec = cell("pass");
        spec.stdin = stdin;
        let (kind, text) = failure_of(&sandbox, spec).await;
        assert_eq!(kind, FailureKind::Refused, "{text}");
    }
    sandbox.cell("change(0o777)").await.ok();
    let mut spec = cell("print(x, sys.stdin.read())");
    spec.stdin = Stdin::Bytes(b"in".to_vec());
    assert_eq!(sandbox.run(spec).await.ok(), "1 in");
}
