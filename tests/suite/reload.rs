//! A configuration that changes while the server runs.

use std::time::{Duration, Instant};

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

/// Waits until the ceiling lies between two times, in milliseconds.
async fn until_the_ceiling_is_between(server: &Server, allowed: u64, refused: u64) {
    let deadline = Instant::now() + PATIENCE;
    while !may_ask_for(server, allowed).await || may_ask_for(server, refused).await {
        assert!(
            Instant::now() < deadline,
            "the ceiling does not come to lie between {allowed} and {refused} ms"
        );
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

async fn a_changed_file_applies_and_a_wrong_one_does_not(server: Server) {
    let session = server.session("kept");
    session.execute(python("x = 41")).await.unwrap();
    let running = {
        let session = server.session("running");
        let code = "import os, time\nopen('/sandbox/started', 'w').close()\n\
                    while not os.path.exists('/sandbox/go'): time.sleep(0.01)\nprint('whole')";
        let mut request = python(code);
        request.timeout_ms = Some(300_000);
        tokio::spawn(async move { session.execute(request).await })
    };
    server.until_file("/sandbox/started").await;
    write(&server, &ceiling(20_000));
    hang_up(&server);
    until_the_ceiling_is_between(&server, 15_000, 30_000).await;

    write(&server, "[ceilings]\ntimeoutMs = \"soon\"\n");
    hang_up(&server);
    server.until_logged("configuration refused").await;
    assert!(may_ask_for(&server, 15_000).await && !may_ask_for(&server, 30_000).await);

    // Without a signal: the server looks at the file every two seconds.
    write(&server, &ceiling(40_000));
    until_the_ceiling_is_between(&server, 30_000, 50_000).await;

    let beside = server.session("running");
    beside.put_file("/sandbox/go", "").await.unwrap();
    assert_eq!(running.await.unwrap().unwrap().stdout, "whole");
    let kept = session.execute(python("print(x + 1)")).await.unwrap();
    assert_eq!(kept.stdout, "42");
    server.stop();
}
