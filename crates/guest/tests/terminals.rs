//! Runs at a terminal.

#![allow(clippy::unwrap_used)] // a test that cannot go on should end at once

mod support;

use std::time::{Duration, Instant};

use isol8_backend::{RunEvent, RunHandle};
use isol8_protocol::{
    ExitStatus, FailureKind, OutputStream, Program, RunSpec, Runtime, Signal, Stdin, TerminalSize,
};
use support::{Sandbox, TIMEOUT, cell, command, finish, python, sh};

const SIZE: TerminalSize = TerminalSize {
    columns: 80,
    rows: 24,
};

fn at_terminal(mut spec: RunSpec) -> RunSpec {
    spec.terminal = Some(SIZE);
    spec.stdin = Stdin::Piped;
    spec
}

/// Takes output until it ends in `end`, and returns all of it.
async fn until(run: &mut RunHandle, end: &str) -> String {
    let mut shown = String::new();
    while !shown.ends_with(end) {
        match tokio::time::timeout(TIMEOUT, run.next()).await {
            Ok(Ok(RunEvent::Output(OutputStream::Stdout, bytes))) => {
                shown.push_str(std::str::from_utf8(&bytes).unwrap());
            }
            other => panic!("{other:?} after {shown:?}, expected {end:?}"),
        }
    }
    shown
}

async fn type_in(run: &RunHandle, text: &str) {
    run.write_stdin(text.as_bytes()).await.unwrap();
}

#[tokio::test]
async fn a_program_has_a_terminal_of_its_own() {
    let sandbox = Sandbox::start().await;
    let source = "import os, sys
print([os.isatty(fd) for fd in range(3)], *os.get_terminal_size(), os.environ['TERM'])
print(os.ttyname(0), os.fstat(0).st_uid, os.getsid(0) == os.getpid() == os.tcgetpgrp(0))
print('err', file=sys.stderr)
print(open('/dev/tty', 'w').isatty(), sorted(os.listdir('/proc/self/fd')), os.isatty(3))";
    let expected = "[True, True, True] 80 24 xterm-256color\r\n/dev/pts/0 64800 True\r\nerr\r\n\
                    True ['0', '1', '2', '3'] False\r\n";
    sandbox.prepare(Runtime::Python).await;
    for _ in 0..2 {
        let outcome = sandbox.run(at_terminal(python(source))).await;
        assert_eq!(outcome.stdout, expected);
        assert_eq!((outcome.code(), outcome.exit.stderr_bytes), (0, 0));
    }
    let mut dumb = at_terminal(sh("echo $TERM; stty size; tty"));
    dumb.env = vec![("TERM".into(), "dumb".into())];
    assert_eq!(sandbox.run(dumb).await.ok(), "dumb\r\n24 80\r\n/dev/pts/0");
    // The spare still waits for a script without a terminal.
    assert_eq!(
        sandbox.python("print(open(0).isatty())").await.ok(),
        "False"
    );
}

#[tokio::test]
async fn scripts_of_every_interpreter_find_it() {
    let sandbox = Sandbox::start().await;
    let javascript = "console.log(process.stdin.isTTY, process.stdout.columns)";
    for (runtime, name, source, expected) in [
        (
            Runtime::Bash,
            "main.sh",
            "[ -t 0 ] && echo true $(stty size)",
            "true 24 80\r\n",
        ),
        (Runtime::Node, "main.mjs", javascript, "true 80\r\n"),
        (Runtime::Bun, "main.ts", javascript, "true 80\r\n"),
        (Runtime::Deno, "main.mts", javascript, "true 80\r\n"),
    ] {
        let interpreter = &name_of(runtime);
        if sandbox
            .sh(&format!("command -v {interpreter}"))
            .await
            .code()
            != 0
        {
            eprintln!("{interpreter} is not installed: nothing to show");
            continue;
        }
        let mut spec = support::spec(Program::Script {
            runtime,
            path: format!("/sandbox/{name}"),
            source: source.as_bytes().to_vec(),
        });
        spec.env = vec![("NO_COLOR".into(), "1".into())];
        let outcome = sandbox.run(at_terminal(spec)).await;
        // Deno clears its progress from the line first.
        let shown = outcome.stdout.rsplit("\u{1b}[J").next();
        assert_eq!(
            (shown, outcome.code()),
            (Some(expected), 0),
            "{interpreter}"
        );
    }
}

fn name_of(runtime: Runtime) -> String {
    format!("{runtime:?}").to_lowercase()
}

#[tokio::test]
async fn a_change_of_the_size_is_told() {
    let sandbox = Sandbox::start().await;
    let source = "import os, signal, time
signal.signal(signal.SIGWINCH, lambda *_: os.write(1, '{} {}\\n'.format(*os.get_terminal_size()).encode()))
print('ready', flush=True)
while os.get_terminal_size().columns > 1: time.sleep(0.05)";
    let mut run = sandbox.control.run(at_terminal(python(source))).unwrap();
    until(&mut run, "ready\r\n").await;
    for (columns, rows) in [(100, 30), (1, 1000)] {
        run.input().resize(TerminalSize { columns, rows }).unwrap();
        assert_eq!(
            until(&mut run, "\r\n").await,
            format!("{columns} {rows}\r\n")
        );
    }
    assert_eq!(finish(run).await.unwrap().code(), 0);

    // The size may also change while the program starts, and for a run without a terminal.
    let run = sandbox.control.run(at_terminal(sh("stty size"))).unwrap();
    run.input()
        .resize(TerminalSize {
            columns: 7,
            rows: 3,
        })
        .unwrap();
    assert_eq!(finish(run).await.unwrap().ok(), "3 7");
    let run = sandbox.control.run(sh("stty size")).unwrap();
    run.input().resize(SIZE).unwrap();
    assert_ne!(finish(run).await.unwrap().code(), 0);
}

#[tokio::test]
async fn keys_and_signals_reach_what_is_in_the_foreground() {
    let sandbox = Sandbox::start().await;
    let shell = || command(&["bash", "--norc", "--noprofile", "-i"]);
    let mut spec = at_terminal(shell());
    spec.env = vec![("PS1".into(), "$ ".into()), ("TERM".into(), "dumb".into())];
    let mut run = sandbox.control.run(spec).unwrap();
    until(&mut run, "$ ").await;
    for interrupt in [true, false] {
        type_in(&run, "sleep 100\n").await;
        sandbox.wait_until("pgrep -x sleep").await;
        if interrupt {
            type_in(&run, "\u{3}").await;
        } else {
            run.signal(Signal::Interrupt).unwrap();
        }
        until(&mut run, "\r\n$ ").await;
        type_in(&run, "echo $?\n").await;
        assert_eq!(until(&mut run, "$ ").await, "echo $?\r\n130\r\n$ ");
    }
    type_in(&run, "sleep 100\n").await;
    sandbox.wait_until("pgrep -x sleep").await;
    type_in(&run, "\u{1a}").await;
    assert!(until(&mut run, "$ ").await.contains("Stopped"));
    type_in(&run, "fg\n").await;
    until(&mut run, "\r\nsleep 100\r\n").await;
    type_in(&run, "\u{3}").await;
    until(&mut run, "$ ").await;
    type_in(&run, "exit 3\n").await;
    assert_eq!(finish(run).await.unwrap().code(), 3);

    let mut run = sandbox
        .control
        .run(at_terminal(sh("echo on; exec sleep 100")))
        .unwrap();
    until(&mut run, "on\r\n").await;
    run.signal(Signal::Terminate).unwrap();
    let outcome = finish(run).await.unwrap();
    assert_eq!(outcome.exit.status, ExitStatus::Signal(15));
}

#[tokio::test]
async fn the_end_of_the_input_is_typed() {
    let sandbox = Sandbox::start().await;
    for typed in ["", "one\n", "one\ntwo"] {
        let run = sandbox
            .control
            .run(at_terminal(sh("stty -echo; echo; wc -c")))
            .unwrap();
        type_in(&run, typed).await;
        run.end_stdin().unwrap();
        let shown = finish(run).await.unwrap().stdout;
        let counted = shown.trim_end().rsplit("\r\n").next().unwrap();
        assert_eq!(counted, typed.len().to_string(), "{shown:?}");
    }
    for (stdin, length) in [(Stdin::Empty, "0"), (Stdin::Bytes(b"abc".to_vec()), "3")] {
        let mut spec = at_terminal(sh("wc -c"));
        spec.stdin = stdin;
        let shown = sandbox.run(spec).await.stdout;
        assert!(shown.trim_end().ends_with(length), "{shown:?}");
    }
}

#[tokio::test]
async fn what_is_printed_last_is_whole_and_in_order() {
    let sandbox = Sandbox::start().await;
    let outcome = sandbox.run(at_terminal(sh("seq 200000"))).await;
    assert_eq!(outcome.stdout.len(), 1_288_895 + 200_000);
    let mut lines = outcome.stdout.split_terminator("\r\n");
    assert!((1..=200_000).all(|n: u32| lines.next() == Some(&n.to_string())));
    assert_eq!(lines.next(), None);
}

#[tokio::test]
async fn a_program_whose_output_is_not_taken_waits_and_ends_with_its_run() {
    let sandbox = Sandbox::start().await;
    let loud = sh("echo $$ >/tmp/pid; exec yes");
    sandbox.waits_and_ends_with_its_run(at_terminal(loud)).await;
}

#[tokio::test]
async fn input_that_is_not_read_waits() {
    let sandbox = Sandbox::start().await;
    // In raw mode the terminal passes input on by characters, in cooked mode by lines.
    for (mode, typed) in [
        ("raw", "xxxxx".repeat(60_000)),
        ("cooked", "four\n".repeat(60_000)),
    ] {
        let script = format!(
            "stty {mode} -echo; echo on; until [ -e /tmp/go ]; do sleep 0.05; done; rm -f /tmp/go; head -c 300000 | wc -c"
        );
        let mut run = sandbox.control.run(at_terminal(sh(&script))).unwrap();
        until(&mut run, "\n").await;
        let worked = processor_time(&sandbox);
        {
            let mut typing = std::pin::pin!(type_in(&run, &typed));
            let waits = tokio::time::timeout(Duration::from_millis(500), &mut typing).await;
            assert!(waits.is_err(), "{mode}: the input was taken");
            let go = sandbox.control.write_file("/tmp/go", 0o644, b"");
            let ((), written) = tokio::join!(typing, go);
            written.unwrap();
        }
        let worked = processor_time(&sandbox) - worked;
        assert!(worked < 30, "{mode}: the guest worked for {worked} / 100 s");
        assert_eq!(until(&mut run, "\n").await.trim_end(), "300000");
        finish(run).await.unwrap();
    }
}

/// Returns the processor time of the guest, in hundredths of a second.
fn processor_time(sandbox: &Sandbox) -> u64 {
    let stat = std::fs::read_to_string(format!("/proc/{}/stat", sandbox.guest())).unwrap();
    let (_, fields) = stat.rsplit_once(") ").unwrap();
    let times = fields.split(' ').skip(11).take(2);
    times.map(|time| time.parse::<u64>().unwrap()).sum()
}

#[tokio::test]
async fn a_process_that_holds_the_terminal_afterwards_delays_nothing() {
    let sandbox = Sandbox::start().await;
    for left in [
        "sleep 100 &",
        "(trap '' HUP; while :; do echo more; done) &",
    ] {
        let begun = Instant::now();
        let outcome = sandbox
            .run(at_terminal(sh(&format!("{left} echo mine; exit 4"))))
            .await;
        assert!(outcome.stdout.contains("mine\r\n"), "{}", outcome.stdout);
        assert_eq!(outcome.code(), 4);
        assert!(begun.elapsed() < Duration::from_secs(10));
    }
    // The program writes on to a terminal that is no longer read, and does not wait for that.
    sandbox.wait_until("pgrep -x sh").await;
    sandbox.control.reset().await.unwrap();
    assert_eq!(sandbox.sh("ls /dev/pts").await.ok(), "ptmx");
}

#[tokio::test]
async fn a_terminal_that_was_closed_can_be_opened_again() {
    let sandbox = Sandbox::start().await;
    let closing = "exec 3<&- </dev/null >/dev/null 2>&1; sleep 0.3; echo again >/dev/tty";
    assert_eq!(sandbox.run(at_terminal(sh(closing))).await.ok(), "again");
}

#[tokio::test]
async fn a_timeout_ends_what_holds_the_terminal() {
    let sandbox = Sandbox::start().await;
    let mut spec = at_terminal(sh("trap '' HUP INT TERM; echo early; sleep 1000"));
    spec.timeout_ms = Some(300);
    let outcome = sandbox.run(spec).await;
    assert_eq!(outcome.stdout, "early\r\n");
    assert!(outcome.exit.timed_out);
    assert_eq!(sandbox.sh("ls /dev/pts").await.ok(), "ptmx");
}

#[tokio::test]
async fn a_terminal_that_is_hung_up_leaves_the_interpreter_its_state() {
    let sandbox = Sandbox::start().await;
    sandbox.cell("x = 41").await.ok();
    let left = "(setsid sleep 1000 &) ; echo on; sleep 1000";
    for timeout_ms in [None, Some(200)] {
        let mut spec = at_terminal(sh(left));
        spec.timeout_ms = timeout_ms;
        let mut run = sandbox.control.run(spec).unwrap();
        until(&mut run, "on\r\n").await;
        if timeout_ms.is_none() {
            run.signal(Signal::Kill).unwrap();
        }
        let exit = finish(run).await.unwrap().exit;
        assert_eq!(exit.status, ExitStatus::Signal(9));
        assert_eq!(
            (exit.timed_out, exit.state_lost),
            (timeout_ms.is_some(), false)
        );
        sandbox.wait_until("! pgrep -x sleep").await;
    }
    assert_eq!(sandbox.cell("print(x + 1)").await.ok(), "42");

    let mut run = sandbox
        .control
        .run(at_terminal(sh("trap '' HUP; echo on; sleep 1000")))
        .unwrap();
    until(&mut run, "on\r\n").await;
    run.signal(Signal::Kill).unwrap();
    assert!(finish(run).await.unwrap().exit.state_lost);
}

#[tokio::test]
async fn nothing_can_be_typed_for_another() {
    let sandbox = Sandbox::start().await;
    let source = "import errno, fcntl
for request in 0x5412, 0x541C, 0x5423:
    try: fcntl.ioctl(0, request, b'\\x02')
    except OSError as error: print(errno.errorcode[error.errno])";
    let outcome = sandbox.run(at_terminal(python(source))).await;
    assert_eq!(outcome.ok(), "EPERM\r\nEPERM\r\nEPERM");
}

#[tokio::test]
async fn what_has_no_terminal_is_refused() {
    let sandbox = Sandbox::start().await;
    let refused = finish(sandbox.control.run(at_terminal(cell("1"))).unwrap()).await;
    assert_eq!(
        refused.unwrap_err().failure_kind(),
        Some(FailureKind::Refused)
    );

    let hog = "import os, time\nfor _ in range(8): os.open('/dev/ptmx', os.O_RDWR)\nprint('full', flush=True); time.sleep(100)";
    let mut hogging = sandbox.control.run(python(hog)).unwrap();
    until(&mut hogging, "full\n").await;
    let refused = finish(sandbox.control.run(at_terminal(sh("true"))).unwrap()).await;
    let refused = refused.unwrap_err();
    assert_eq!(
        refused.failure_kind(),
        Some(FailureKind::Exhausted),
        "{refused}"
    );
    drop(hogging);
    sandbox.wait_until("[ $(ls /dev/pts | wc -l) = 1 ]").await;
    sandbox.run(at_terminal(sh("true"))).await.ok();
}

#[tokio::test]
async fn a_shared_user_id_has_terminals_too() {
    let sandbox = Sandbox::start_with(&["--shared-uid"]).await;
    let outcome = sandbox
        .run(at_terminal(sh("stty size; echo x >/dev/tty")))
        .await;
    assert_eq!(outcome.ok(), "24 80\r\nx");
}
