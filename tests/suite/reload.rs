//! A configuration that changes while the server runs.

use std::time::Duration;

use isol8_client::Options;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::harness::{PATIENCE, Server, on_each_backend, python};

on_each_backend!(a_changed_file_applies_and_a_wrong_one_does_not);

/// Milliseconds that a request may ask for at most.
fn ceiling(milliseconds: u32) -> String {
    format!("[defaults]\ntimeoutMs = 10000\n[ceilings]\ntimeoutMs = {milliseconds}\n")
}

fn write(server: &Server, text: &str) {
    std::fs::write(server.state().join("config.toml"), text).unwrap();
}

fn hang_up(server: &Server) {
    let pid = i32::try_from(server.pid()).unwrap();
    kill(Pid::from_raw(pid), Signal::SIGHUP).unwrap();
}

async fn may_ask_for(server: &Server, milliseconds: u64) -> bool {
    let options = Options {
        timeout_ms: Some(milliseconds),
        ..Options::default()
    };
    let answer = server.client().execute_with(python("pass"), options).await;
    answer.is_ok()
}

async fn until_it_may(server: &Server, milliseconds: u64) {
    let tries = PATIENCE.as_millis() / 50;
    for _ in 0..tries {
        if may_ask_for(server, milliseconds).await {
            return;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    panic!("the ceiling was not raised to {milliseconds} ms");
}

async fn a_changed_file_applies_and_a_wrong_one_does_not(server: Server) {
    let session = server.session("kept");
    session.execute(python("x = 41")).await.unwrap();
    let running = {
        let client = server.client();
        let code = "import time\ntime.sleep(5)\nprint('whole')";
        tokio::spawn(async move { client.execute(python(code)).await })
    };
    tokio::time::sleep(Duration::from_millis(300)).await;
    write(&server, &ceiling(20_000));
    hang_up(&server);
    tokio::time::sleep(Duration::from_millis(200)).await;
    until_it_may(&server, 15_000).await;
    assert!(!may_ask_for(&server, 30_000).await);

    write(&server, "[ceilings]\ntimeoutMs = \"soon\"\n");
    hang_up(&server);
    tokio::time::sleep(Duration::from_millis(300)).await;
    assert!(may_ask_for(&server, 15_000).await && !may_ask_for(&server, 30_000).await);

    // Without a signal: the file is looked at now and then.
    write(&server, &ceiling(40_000));
    until_it_may(&server, 30_000).await;

    assert_eq!(running.await.unwrap().unwrap().stdout, "whole");
    let kept = session.execute(python("print(x + 1)")).await.unwrap();
    assert_eq!(kept.stdout, "42");
    server.stop();
}
