//! Binary data through the command line: here and on a server, over each transport, in each way to print.

use std::fs;
use std::io::{Read as _, Write as _};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::process::{Command, Output, Stdio};
use std::thread;

use isol8_client::Encoding;
use serde_json::Value;

use crate::cli_remote::user::{User, fed, stderr, stdout, succeeded};
use crate::harness::{ISOL8, KEY, Kind, Server, on_each_backend};

on_each_backend!(
    bytes_pass_unchanged_on_every_transport,
    a_result_in_json_holds_all_bytes,
);

/// Bytes of each run.
const SIZE: usize = 1_000_000;

/// Standard input to standard output, and its first bytes to standard error.
const COPY: &str = "tee copy; head -c 1000 copy >&2";

/// Random bytes, with all that text changes: every byte, newlines of each kind at the end, no UTF-8.
fn random() -> Vec<u8> {
    let mut bytes: Vec<u8> = (0..SIZE - 259).map(|_| fastrand::u8(..)).collect();
    bytes.extend(0..=255);
    bytes.extend(b"\r\n\n");
    bytes
}

fn copies(command: Command, input: &[u8], what: &str) -> Output {
    let output = fed(command, input);
    let said =
        String::from_utf8_lossy(&output.stderr[..output.stderr.len().min(2000)]).into_owned();
    assert!(output.status.success(), "{what}: {said}");
    assert!(
        output.stdout == input,
        "{what}: {} bytes of {} came back: {said}",
        output.stdout.len(),
        input.len()
    );
    output
}

/// A proxy that lets no WebSocket pass.
fn without_websockets(server: &str) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = format!("http://{}", listener.local_addr().unwrap());
    let server = server.to_owned();
    thread::spawn(move || {
        for client in listener.incoming() {
            let (client, server) = (client.unwrap(), server.clone());
            thread::spawn(move || relay(client, &server));
        }
    });
    address
}

fn relay(mut client: TcpStream, server: &str) {
    let mut head = vec![0; 16 * 1024];
    let length = client.read(&mut head).unwrap_or_default();
    let head = &head[..length];
    if head
        .to_ascii_lowercase()
        .windows(9)
        .any(|text| text == b"websocket")
    {
        let refusal = b"HTTP/1.1 502 Bad Gateway\r\nConnection: close\r\nContent-Length: 0\r\n\r\n";
        let _ = client.write_all(refusal);
        return;
    }
    let mut upstream = TcpStream::connect(server).unwrap();
    upstream.write_all(head).unwrap();
    let (mut from, mut to) = (client.try_clone().unwrap(), upstream.try_clone().unwrap());
    thread::spawn(move || {
        let _ = std::io::copy(&mut from, &mut to);
        let _ = to.shutdown(Shutdown::Write);
    });
    let _ = std::io::copy(&mut upstream, &mut client);
    let _ = client.shutdown(Shutdown::Write);
}

async fn bytes_pass_unchanged_on_every_transport(server: Server) {
    let user = User::of(&server);
    let bytes = random();
    let plain = without_websockets(&server.address);
    let out = user.path("out");
    let run = [
        "run",
        "-r",
        "bash",
        "-e",
        COPY,
        "--max-output",
        "4194304",
        "--out",
        &out,
    ];
    let most = ["--no-stream"];
    let kind = server.kind.name();
    for (what, host, more) in [
        ("here", None, &[][..]),
        ("here, at the end", None, &most),
        ("over a WebSocket", Some(&user.url), &[]),
        ("over a WebSocket, at the end", Some(&user.url), &most),
        ("over server-sent events", Some(&plain), &[]),
        ("as a result", Some(&user.url), &["--log-network"]),
    ] {
        let mut command = user.keyless(&[&run[..], more].concat());
        match host {
            Some(host) => command.args(["--host", host]).env("ISOL8_API_KEY", KEY),
            None => command.args(["--backend", kind]),
        };
        let output = copies(command, &bytes, what);
        // The proxy, and nothing else, has something to say.
        assert!(
            output.stderr.ends_with(&bytes[..1000]) || what.contains("events"),
            "{what}"
        );
        assert!(fs::read(&out).unwrap() == bytes, "{what}: --out differs");
        fs::remove_file(&out).unwrap();
    }
    // Output without white space at its end gets none.
    for more in [&[][..], &["--log-network"]] {
        let arguments = [&["run", "-r", "bash", "-e", "printf x"], more].concat();
        assert_eq!(user.prints(&arguments), "x", "{more:?}");
    }
    server.stop();
}

async fn a_result_in_json_holds_all_bytes(server: Server) {
    let user = User::of(&server);
    let bytes = [&[0xff, 0xfe][..], &random()[..1000]].concat();
    let run = ["run", "-r", "bash", "-e", "cat", "--json"];
    let here = ["--backend", server.kind.name()];
    for (what, command) in [
        ("here", user.keyless(&[&run[..], &here].concat())),
        ("on a server", user.command(&run)),
    ] {
        let output = fed(command, &bytes);
        let result: Value = serde_json::from_str(&succeeded(&[what], &output)).unwrap();
        assert_eq!(result["stdoutEncoding"], "base64", "{what}: {result}");
        let text = result["stdout"].as_str().unwrap();
        assert!(*Encoding::Base64.decode(text).unwrap() == bytes, "{what}");
    }
    for command in [
        user.keyless(&[&run[..], &here].concat()),
        user.command(&run),
    ] {
        let output = fed(command, b"text\n");
        let result: Value = serde_json::from_slice(&output.stdout).unwrap();
        assert_eq!(
            (&result["stdout"], result.get("stdoutEncoding")),
            (&"text".into(), None)
        );
    }
    server.stop();
}

#[test]
fn a_dash_is_the_script_on_standard_input_and_n_leaves_the_input_of_a_loop() {
    let server = Server::start(Kind::Native);
    let user = User::of(&server);
    let host = ["--host", &user.url];
    for more in [&["--backend", "native"][..], &host] {
        let run = |arguments: &[&str], input: &str| {
            let mut command = user.keyless(&[arguments, more].concat());
            command.env("ISOL8_API_KEY", KEY);
            fed(command, input.as_bytes())
        };
        let output = run(&["run", "-r", "bash", "-"], "echo $((6 * 7)); cat");
        assert_eq!(stdout(&output), "42\n", "{}", stderr(&output));
        let output = run(
            &["run", "-n", "-r", "bash", "-e", "cat; echo end"],
            "not for it\n",
        );
        assert_eq!(stdout(&output), "end\n", "{}", stderr(&output));
        let output = run(&["run", "-n", "-"], "print(1)");
        assert_eq!(output.status.code(), Some(1));
        assert!(
            stderr(&output).contains("--no-stdin"),
            "{}",
            stderr(&output)
        );
    }
    server.stop();
    let script = "while read -r line; do \"$0\" run -n --backend native -r bash -e \"cat; echo $line\"; done";
    let mut shell = Command::new("bash");
    shell
        .args(["-c", script, ISOL8])
        .env("ISOL8_STATE_DIR", user.home.path().join("state"))
        .current_dir(user.home.path())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    let output = fed(shell, b"1\n2\n3\n");
    assert_eq!(stdout(&output), "1\n2\n3\n", "{}", stderr(&output));
}
