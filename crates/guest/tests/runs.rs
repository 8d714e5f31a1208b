//! Programs: output, input, ends.

#![allow(clippy::unwrap_used)] // a test that cannot go on should end at once

mod support;

use std::time::{Duration, Instant};

use isol8_backend::RunEvent;
use isol8_protocol::{ExitStatus, FailureKind, Signal, Stdin};
use support::{PATIENCE, Sandbox, command, finish, sh};

#[tokio::test]
async fn output_and_exit_code_arrive() {
    let sandbox = Sandbox::start().await;
    let outcome = sandbox.sh("echo out; echo err >&2; exit 3").await;
    assert_eq!((&*outcome.stdout, &*outcome.stderr), ("out\n", "err\n"));
    assert_eq!(outcome.exit.status, ExitStatus::Code(3));
    assert_eq!(
        (outcome.exit.stdout_bytes, outcome.exit.stderr_bytes),
        (4, 4)
    );
    assert!(outcome.exit.cpu_us.unwrap() < outcome.exit.wall_us + 100_000);
    let outcome = sandbox.sh("kill -SEGV $$").await;
    assert_eq!(outcome.exit.status, ExitStatus::Signal(11));
}

#[tokio::test]
async fn what_cannot_be_started_says_why() {
    let sandbox = Sandbox::start().await;
    let mut nowhere = command(&["true"]);
    nowhere.cwd = Some("/nowhere".into());
    for (spec, kind) in [
        (command(&["no-such-program"]), FailureKind::NotFound),
        (command(&["/etc/passwd"]), FailureKind::Refused),
        (command(&[]), FailureKind::Refused),
        (nowhere, FailureKind::NotFound),
    ] {
        let error = finish(sandbox.control.run(spec).unwrap())
            .await
            .unwrap_err();
        assert_eq!(error.failure_kind(), Some(kind), "{error}");
    }
}

#[tokio::test]
async fn a_timeout_ends_double_forked_children() {
    let mut sandbox = Sandbox::start().await;
    let mut spec = sh(
        "trap '' TERM INT; (setsid sh -c 'trap \"\" TERM; sleep 1000 & sleep 1000' &) ; kill -STOP $$",
    );
    spec.timeout_ms = Some(300);
    let begin = Instant::now();
    let outcome = sandbox.run(spec).await;
    assert!(begin.elapsed() >= Duration::from_millis(300));
    assert!(outcome.exit.timed_out);
    assert_eq!(outcome.exit.status, ExitStatus::Signal(9));
    assert!(
        (300_000..400_000).contains(&outcome.exit.wall_us),
        "{:?}",
        outcome.exit
    );
    assert_eq!(
        sandbox
            .sh("ps -e -o args= | grep -c '[s]leep 1000'")
            .await
            .stdout,
        "0\n"
    );
    assert!(sandbox.is_alive());
}

#[tokio::test]
async fn killing_everything_from_inside_leaves_the_guest() {
    let mut sandbox = Sandbox::start().await;
    sandbox
        .sh("kill -9 -1; kill -9 1; kill -TERM 1; kill -STOP 1")
        .await;
    assert_eq!(sandbox.sh("echo here").await.ok(), "here");
    assert!(sandbox.is_alive());
}

#[tokio::test]
async fn output_beyond_the_limit_is_counted_and_dropped() {
    let sandbox = Sandbox::start().await;
    let mut spec = sh("head -c 50000000 /dev/zero; echo end >&2");
    spec.output_limit = Some(1000);
    let outcome = sandbox.run(spec).await;
    assert_eq!(outcome.stdout.len(), 1000);
    assert_eq!(outcome.exit.stdout_bytes, 50_000_000);
    assert_eq!(outcome.stderr, "end\n");
}

#[tokio::test]
async fn output_that_nobody_is_eager_for_comes_before_the_end_of_a_long_run() {
    let sandbox = Sandbox::start().await;
    let mut spec = sh("echo first; head -c 300000 /dev/zero >&2; read -r line; echo $line");
    spec.stdin = Stdin::Piped;
    spec.eager = false;
    let mut run = sandbox.control.run(spec).unwrap();
    let mut seen = [0, 0];
    while seen != [6, 300_000] {
        match run.next().await.unwrap() {
            RunEvent::Output(stream, bytes) => seen[stream as usize] += bytes.len(),
            other => panic!("{other:?} before its input came"),
        }
    }
    run.write_stdin(b"last\n").await.unwrap();
    assert_eq!(finish(run).await.unwrap().ok(), "last");
}

#[tokio::test]
async fn every_form_of_input_is_read() {
    let sandbox = Sandbox::start().await;
    assert_eq!(
        sandbox.sh("cat; readlink /proc/self/fd/0").await.ok(),
        "/dev/null"
    );
    let mut spec = sh("wc -c");
    spec.stdin = Stdin::Bytes(vec![b'x'; 3_000_000]);
    assert_eq!(sandbox.run(spec).await.ok(), "3000000");

    let mut spec = sh("wc -c");
    spec.stdin = Stdin::Piped;
    let run = sandbox.control.run(spec).unwrap();
    for _ in 0..30 {
        run.write_stdin(&[b'x'; 100_000]).await.unwrap();
    }
    run.end_stdin().unwrap();
    assert_eq!(finish(run).await.unwrap().ok(), "3000000");

    let mut spec = sh("exec <&-; sleep 0.2");
    spec.stdin = Stdin::Piped;
    let run = sandbox.control.run(spec).unwrap();
    for _ in 0..30 {
        run.write_stdin(&[b'x'; 100_000]).await.unwrap();
    }
    finish(run).await.unwrap().ok();
}

#[tokio::test]
async fn a_program_whose_output_nobody_takes_waits_and_ends_with_its_run() {
    let sandbox = Sandbox::start().await;
    let loud = sh("echo $$ >/tmp/pid; exec yes");
    sandbox.waits_and_ends_with_its_run(loud).await;
}

#[tokio::test]
async fn two_thousand_instant_commands_lose_nothing() {
    let sandbox = Sandbox::start().await;
    let mut under_way = std::collections::VecDeque::new();
    for number in 0..2000 {
        if under_way.len() == 16 {
            let (number, run): (usize, _) = under_way.pop_front().unwrap();
            assert_eq!(finish(run).await.unwrap().ok(), number.to_string());
        }
        let spec = command(&["echo", &number.to_string()]);
        under_way.push_back((number, sandbox.control.run(spec).unwrap()));
    }
    for (number, run) in under_way {
        assert_eq!(finish(run).await.unwrap().ok(), number.to_string());
    }
}

#[tokio::test]
async fn what_a_run_leaves_behind_lives_on_unless_it_is_swept() {
    let sandbox = Sandbox::start().await;
    let script = "(sh -c 'while :; do echo x; done' &) ; echo end";
    assert!(sandbox.sh(script).await.stdout.contains("end"));
    assert_eq!(
        sandbox
            .sh("ps -e -o args= | grep -c '[e]cho x'")
            .await
            .stdout,
        "1\n"
    );
    let mut spec = sh(script);
    spec.sweep = true;
    sandbox.run(spec).await;
    assert_eq!(
        sandbox
            .sh("ps -e -o args= | grep -c '[e]cho x'")
            .await
            .stdout,
        "0\n"
    );
}

#[tokio::test]
async fn signals_reach_the_program() {
    let sandbox = Sandbox::start().await;
    for (signal, status) in [
        (Signal::Interrupt, ExitStatus::Signal(2)),
        (Signal::Terminate, ExitStatus::Signal(15)),
        (Signal::Kill, ExitStatus::Signal(9)),
    ] {
        let mut run = sandbox.control.run(sh("echo on; exec sleep 100")).unwrap();
        assert!(matches!(run.next().await.unwrap(), RunEvent::Output(..)));
        run.signal(signal).unwrap();
        let outcome = finish(run).await.unwrap();
        assert_eq!(outcome.exit.status, status);
        assert!(!outcome.exit.timed_out);
    }
}

#[tokio::test]
async fn more_runs_than_the_guest_serves_are_refused() {
    let sandbox = Sandbox::start().await;
    let runs: Vec<_> = (0..64)
        .map(|_| sandbox.control.run(sh("sleep 100")).unwrap())
        .collect();
    let error = finish(sandbox.control.run(sh("true")).unwrap())
        .await
        .unwrap_err();
    assert_eq!(error.failure_kind(), Some(FailureKind::Refused));
    drop(runs);
    let deadline = Instant::now() + PATIENCE;
    while finish(sandbox.control.run(sh("true")).unwrap())
        .await
        .is_err()
    {
        assert!(Instant::now() < deadline);
    }
}
