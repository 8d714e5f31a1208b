//! The contract, checked by a client in another language.

use std::process::Command;

use crate::harness::{KEY, Server, on_each_backend};

on_each_backend!(a_client_that_shares_no_code_finds_every_promise_kept);

const SCRIPT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/compat/contract.py");

async fn a_client_that_shares_no_code_finds_every_promise_kept(server: Server) {
    let mut client = Command::new("/usr/bin/python3");
    client.args([SCRIPT, &format!("http://{}", server.address), KEY]);
    let client = tokio::task::spawn_blocking(move || client.output().unwrap());
    let output = client.await.unwrap();
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    server.stop();
}
