//! The zygote, from which interpreters are forked: the state that its children do not share, and its end.

#![allow(clippy::unwrap_used)] // a test that cannot go on should end at once

mod support;

use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::os::unix::process::CommandExt as _;
use std::process::Command;
use std::time::{Duration, Instant};

use isol8_protocol::{FailureKind, PrewarmSettings, Runtime, ZYGOTE_UID};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use support::{Sandbox, TIMEOUT};

async fn start_prewarmed(settings: PrewarmSettings) -> Sandbox {
    let sandbox = Sandbox::start().await;
    let prepared = sandbox.control.prepare(Runtime::Python, settings);
    prepared.await.unwrap();
    sandbox
}

/// Returns the process ids of a sandbox's zygotes in the namespace of the tests.
fn zygotes(sandbox: &Sandbox) -> Vec<Pid> {
    let guest = sandbox.guest();
    let children = fs::read_to_string(format!("/proc/{guest}/task/{guest}/children")).unwrap();
    let children = children.split_whitespace();
    let children = children.filter(|pid| {
        let process = fs::metadata(format!("/proc/{pid}"));
        process.is_ok_and(|process| process.uid() == ZYGOTE_UID)
    });
    children
        .map(|pid| Pid::from_raw(pid.parse().unwrap()))
        .collect()
}

/// Waits until there is one zygote, and returns its process id. A process that it forks counts as a second one for a
/// moment.
async fn zygote(sandbox: &Sandbox) -> Pid {
    let deadline = Instant::now() + TIMEOUT;
    loop {
        if let [zygote] = zygotes(sandbox)[..] {
            return zygote;
        }
        assert!(Instant::now() < deadline, "there is not one zygote");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

/// Makes every fork of a zygote fail.
fn forbid_forks(zygote: Pid) {
    // The limit is set as the zygote's own user: root may lack the capability that another user needs.
    let limited = Command::new("prlimit")
        .args(["--pid", &zygote.to_string(), "--nproc=0:0"])
        .uid(ZYGOTE_UID)
        .gid(ZYGOTE_UID)
        .status();
    assert!(limited.unwrap().success());
}

async fn reset_and_prepare(sandbox: &Sandbox) {
    sandbox.control.reset().await.unwrap();
    sandbox.prepare(Runtime::Python).await;
}

#[tokio::test]
async fn children_of_one_zygote_differ_in_what_is_random() {
    let preload = ["random", "ssl", "tempfile", "uuid"].map(str::to_owned);
    let sandbox = start_prewarmed(PrewarmSettings {
        preload: preload.into(),
        ..PrewarmSettings::default()
    })
    .await;
    let source = "import random, secrets, ssl, tempfile, uuid\n\
                  print(random.random(), uuid.uuid4(), secrets.token_hex(8), tempfile.mktemp(), \
                  ssl.RAND_bytes(8).hex())";
    let first = sandbox.python(source).await;
    let before = zygote(&sandbox).await;
    sandbox.control.reset().await.unwrap();
    let second = sandbox.python(source).await;
    assert_eq!(zygote(&sandbox).await, before, "forked from the same one");
    let words = first.ok().split(' ').zip(second.ok().split(' '));
    assert_eq!(words.clone().count(), 5);
    for (one, other) in words {
        assert_ne!(one, other);
    }
}

#[tokio::test]
async fn a_module_that_cannot_be_imported_ahead_is_refused_with_the_reason() {
    let sandbox = Sandbox::start().await;
    let settings = PrewarmSettings {
        preload: vec!["json".to_owned(), "no_such_module".to_owned()],
        ..PrewarmSettings::default()
    };
    let prepared = sandbox.control.prepare(Runtime::Python, settings).await;
    let error = prepared.unwrap_err();
    assert_eq!(error.failure_kind(), Some(FailureKind::Refused));
    let text = error.to_string();
    assert!(text.contains("no_such_module cannot be imported"), "{text}");
    assert_eq!(sandbox.python("print(1)").await.ok(), "1");
}

#[tokio::test]
async fn a_module_that_leaves_a_thread_running_is_refused_with_the_reason() {
    let sandbox = Sandbox::start().await;
    let settings = PrewarmSettings {
        preload: vec!["lingering".to_owned()],
        ..PrewarmSettings::default()
    };
    let prepared = sandbox.control.prepare(Runtime::Python, settings).await;
    let error = prepared.unwrap_err();
    assert_eq!(error.failure_kind(), Some(FailureKind::Refused));
    let text = error.to_string();
    assert!(
        text.contains("lingering leaves threads running after its import"),
        "{text}"
    );
    assert_eq!(sandbox.python("print(1)").await.ok(), "1");
}

#[tokio::test]
async fn a_zygote_that_is_killed_or_hangs_costs_no_run() {
    let sandbox = start_prewarmed(PrewarmSettings::default()).await;
    for signal in [Signal::SIGKILL, Signal::SIGSTOP] {
        let before = zygote(&sandbox).await;
        kill(before, signal).unwrap();
        for _ in 0..3 {
            assert_eq!(sandbox.python("print(1)").await.ok(), "1");
            sandbox.control.reset().await.unwrap();
        }
        reset_and_prepare(&sandbox).await;
        assert_ne!(zygote(&sandbox).await, before, "after {signal}");
    }
}

#[tokio::test]
async fn a_zygote_is_replaced_after_its_share_of_runs() {
    let sandbox = start_prewarmed(PrewarmSettings {
        max_runs: 2,
        ..PrewarmSettings::default()
    })
    .await;
    let first = [zygote(&sandbox).await];
    for _ in 0..200 {
        assert_eq!(sandbox.python("print(1)").await.ok(), "1");
        sandbox.control.reset().await.unwrap();
        let now = zygotes(&sandbox);
        if now.len() == 1 && now != first {
            return;
        }
    }
    panic!("it is the first one still");
}

#[tokio::test]
async fn no_zygote_is_made_for_a_single_run() {
    let settings = PrewarmSettings {
        max_runs: 1,
        ..PrewarmSettings::default()
    };
    let sandbox = start_prewarmed(settings.clone()).await;
    assert_eq!(zygotes(&sandbox), []);
    // The spare was booted without a zygote.
    tokio::time::sleep(Duration::from_millis(300)).await;
    let age = "start = int(open('/proc/self/stat').read().split()[21]) / 100\n\
               print(float(open('/proc/uptime').read().split()[0]) - start > 0.25)";
    assert_eq!(sandbox.python(age).await.ok(), "True");

    let sandbox = start_prewarmed(settings).await;
    assert_eq!(sandbox.cell("x = 41").await.ok(), "");
    assert_eq!(sandbox.cell("print(x + 1)").await.ok(), "42");
    assert_eq!(zygotes(&sandbox), []);
}

#[tokio::test]
async fn a_zygote_that_cannot_fork_runs_nothing_itself() {
    let sandbox = start_prewarmed(PrewarmSettings::default()).await;
    let before = zygote(&sandbox).await;
    forbid_forks(before);
    // The zygote was started with the path of this script, and must never run it.
    let trap = "import os\nwith open('/sandbox/main.py', 'w') as script:\n  \
                script.write(\"import os; open(f'/tmp/proof-{os.getuid()}', 'w')\")\nos._exit(0)";
    assert!(sandbox.cell(trap).await.exit.state_lost);
    assert_eq!(sandbox.cell("print(1)").await.ok(), "1");
    assert_eq!(sandbox.sh("ls /tmp").await.ok(), "");
    assert!(!zygotes(&sandbox).contains(&before));
}
