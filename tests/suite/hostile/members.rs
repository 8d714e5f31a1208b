//! Every member of every request body, filled with what is most expensive: the server's memory stays in
//! proportion to what was sent, and others do not wait.
//!
//! The table is the server's own description. A member of a type for which there is no rule, and a list or map
//! without an entry for its limit, fail the test.

mod fill;
mod probe;
mod schema;

use std::collections::BTreeSet;
use std::fs;
use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::time::{Duration, Instant};

use futures::{SinkExt as _, StreamExt as _};
use serde_json::{Value, json};
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::client::IntoClientRequest as _;

use crate::harness::{KEY, Kind as Backend, PATIENCE, Server, bash, until};
use fill::{Fills, SIZE, at_limit};
use probe::Probe;
use schema::{Kind, Member, PLACE, members};

/// Memory that a server may take beside what bodies take: of sandboxes that are made meanwhile, of
/// connections, and of an allocator that gives nothing back.
const BESIDE: u64 = 12 << 20;

/// The least bodies: what a body of each type must have.
fn least(schema: &str) -> Value {
    match schema {
        "ExecuteBody" => json!({"request": {"runtime": "bash", "code": ":"}}),
        "WriteFile" => json!({"sessionId": "s", "path": "/sandbox/x", "content": ""}),
        // The first of these makes it, and the others are refused.
        "CreateSession" => json!({"id": "s", "runtime": "bash"}),
        _ => json!({}),
    }
}

/// A server that is under attack, and who else uses it.
struct Scene {
    // The probes end before the server does.
    health: Probe,
    runs: Probe,
    server: Server,
    http: reqwest::Client,
    /// How long each may take.
    patience: [Duration; 2],
    faults: Vec<String>,
}

impl Scene {
    async fn new(server: Server) -> Self {
        // A sandbox's own use of its processor is not the server's fault, so the usual waits are measured beside one.
        let mut busy = bash("while :; do :; done");
        busy.timeout_ms = Some(2_000);
        let client = server.client();
        let busy = tokio::spawn(async move { client.execute(busy).await });
        let (health, runs) = (Probe::of_health(&server), Probe::of_runs(&server));
        // Usual waits on this machine, with whatever else it does.
        let usual = tokio::task::block_in_place(|| {
            [&health, &runs].map(|probe| {
                probe.wait_for(25);
                probe.longest()
            })
        });
        busy.await.unwrap().unwrap();
        if std::env::var_os("SUITE_LOG").is_some() {
            eprintln!("usual: {usual:?}");
        }
        let least = [Duration::from_millis(200), Duration::from_millis(250)];
        let patience = [0, 1].map(|i: usize| least[i].max(usual[i] * 8));
        Self {
            server,
            http: reqwest::Client::new(),
            health,
            runs,
            patience,
            faults: Vec::new(),
        }
    }

    /// Sends a body and notes what it does to the server and to others. Returns the status.
    ///
    /// Others may have to wait for something else on this machine: a body is at fault if they wait for it each
    /// time.
    async fn send(&mut self, target: &Target, body: String, what: &str) -> u16 {
        const TRIES: usize = 4;
        for _ in 1..TRIES {
            let (status, slow) = self.try_once(target, &body, what).await;
            if slow.is_empty() {
                return status;
            }
        }
        let (status, slow) = self.try_once(target, &body, what).await;
        self.faults.extend(slow);
        status
    }

    /// Returns the status, and who had to wait.
    async fn try_once(&mut self, target: &Target, body: &str, what: &str) -> (u16, Vec<String>) {
        let most = 4 * body.len() as u64 + BESIDE;
        let pid = self.server.pid();
        for probe in [&self.health, &self.runs] {
            probe.longest();
        }
        fs::write(format!("/proc/{pid}/clear_refs"), "5").unwrap();
        let before = self.server.memory("VmRSS");
        let begun = Instant::now();
        let (status, answered) = match target {
            Target::Http(path) => self.post(path, body.to_owned()).await,
            Target::WebSocket => self.say(body.to_owned()).await,
        };
        let took = begun.elapsed();
        let grown = self.server.memory("VmHWM").saturating_sub(before);
        if std::env::var_os("SUITE_LOG").is_some() {
            eprintln!("{what}: {status} after {took:?}, {} kB", grown >> 10);
        }
        let mut fault = |fault: String| self.faults.push(format!("{what}: {fault}"));
        if grown > most {
            fault(format!("{grown} bytes, expected at most {most}"));
        }
        // The error of a setup script is what it wrote.
        if status >= 400 && answered > 10_000 && !what.contains("setupScript: ") {
            fault(format!("{answered} bytes of an error"));
        }
        if status >= 500 {
            fault(format!("status {status}"));
        }
        let probes = [&self.health, &self.runs].into_iter().zip(self.patience);
        let waits = probes.map(|(probe, patience)| (probe.name, probe.longest(), patience));
        let slow = waits.filter(|(_, longest, patience)| longest > patience);
        let slow = slow.map(|(name, longest, patience)| {
            format!("{what}: {name} took {longest:?} of {patience:?}")
        });
        (status, slow.collect())
    }

    /// Returns the status and the length of the answer.
    async fn post(&self, path: &str, body: String) -> (u16, usize) {
        let url = format!("http://{}{path}", self.server.address);
        let request = self.http.post(url).bearer_auth(KEY).body(body);
        let Ok(answer) = request.timeout(PATIENCE).send().await else {
            // As good as an error of the server.
            return (599, 0);
        };
        let status = answer.status().as_u16();
        (status, answer.bytes().await.unwrap().len())
    }

    /// Sends one message to a WebSocket, and waits for the answer, which counts as a refusal in any case.
    async fn say(&self, message: String) -> (u16, usize) {
        let url = format!("ws://{}/execute/ws", self.server.address);
        let mut request = url.into_client_request().unwrap();
        let key = format!("Bearer {KEY}").parse().unwrap();
        request.headers_mut().insert("authorization", key);
        let (mut socket, _) = tokio_tungstenite::connect_async(request).await.unwrap();
        // A server that has heard enough closes before all is said.
        let _ = socket.send(Message::text(message)).await;
        let answer = tokio::time::timeout(PATIENCE, socket.next()).await;
        let answer = answer.expect("a WebSocket answers");
        let length = answer.and_then(Result::ok).map(|answer| answer.len());
        (400, length.unwrap_or_default())
    }
}

enum Target {
    Http(String),
    WebSocket,
}

/// The members of every operation, and where its bodies go. A member that two operations have in one type
/// comes once.
fn table(document: &Value) -> Vec<(Target, Vec<Member>)> {
    let mut table = Vec::new();
    let mut seen = BTreeSet::new();
    for (path, item) in document["paths"].as_object().unwrap() {
        for (method, operation) in item.as_object().unwrap() {
            let (target, schema) = match operation["requestBody"]["content"].as_object() {
                Some(content) if content.contains_key("application/json") => {
                    assert_eq!(method, "post", "{path}: no rule for the method of a body");
                    let schema = content["application/json"]["schema"].clone();
                    (Target::Http(path.clone()), schema)
                }
                // A file's bytes are passed on as they come: tests/suite/files.rs.
                Some(content) => {
                    let types: Vec<_> = content.keys().collect();
                    assert_eq!(types, ["application/octet-stream"], "{path}: no rule");
                    continue;
                }
                None => match operation.get("x-client-message") {
                    Some(schema) => (Target::WebSocket, schema.clone()),
                    None => continue,
                },
            };
            let name = schema["$ref"].as_str().unwrap();
            let least = least(name.rsplit('/').next().unwrap());
            let found = members(document, &schema, &least).into_iter();
            // Each type of messages by itself, and what is in an `execute` was there.
            let found =
                found.filter(|member| seen.insert((member.path.clone(), member.kind as u8)));
            table.push((target, found.collect()));
        }
    }
    table
}

fn body_with(member: &Member, fill: &str) -> String {
    let mut body = member.body.clone();
    // Some members exclude each other, or do nothing alone.
    match member.path.as_str() {
        "request.cmd" | "request.codeUrl" => {
            body["request"].as_object_mut().unwrap().remove("code");
        }
        path if path.starts_with("options.networkFilter.") => {
            body["options"]["network"] = json!("filtered");
        }
        _ => {}
    }
    let place = format!("\"{PLACE}\"");
    body.to_string().replacen(&place, fill, 1)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_member_of_a_request_costs_more_than_its_size() {
    let config = format!(
        "[server]\nmaxBodySize = {SIZE}\n[runtimes.bash]\npoolSize = {{ clean = 2, dirty = 4 }}\n"
    );
    let server = Server::configured(Backend::Native, &config);
    let url = format!("http://{}/openapi.json", server.address);
    let _ = server.client();
    let document: Value = reqwest::get(url).await.unwrap().json().await.unwrap();
    let fills = Fills::new();
    let mut scene = Scene::new(server).await;
    let mut paths = BTreeSet::new();
    for (target, members) in table(&document) {
        for member in members {
            let name = match &target {
                Target::Http(path) => format!("{path} {}", member.path),
                Target::WebSocket => format!("WebSocket {}", member.path),
            };
            paths.insert(member.path.clone());
            for fill in fills.of(member.kind) {
                let what = format!("{name}: {}", fill.name);
                let body = body_with(&member, &fill.json);
                let status = scene.send(&target, body, &what).await;
                let is_list = matches!(member.kind, Kind::Texts | Kind::Map);
                if is_list && fill.is_too_many && status != 400 {
                    scene.faults.push(format!("{what}: not refused, {status}"));
                }
            }
            if matches!(member.kind, Kind::Texts | Kind::Numbers | Kind::Map) {
                let entries = at_limit(&member.path);
                let entries = entries.unwrap_or_else(|| panic!("no entry for {name} at its limit"));
                for (index, entries) in entries.iter().enumerate() {
                    let body = body_with(&member, &entries.to_string());
                    let what = format!("{name}: at its limit, {index}");
                    scene.send(&target, body, &what).await;
                }
            }
        }
    }
    for path in [
        "request.files.*.data",
        "options.memoryLimit",
        "content",
        "data",
    ] {
        assert!(paths.contains(path), "{path} was not found: {paths:?}");
    }
    assert!(scene.faults.is_empty(), "{:#?}", scene.faults);
    let Scene {
        server,
        health,
        runs,
        ..
    } = scene;
    drop((health, runs));
    server.stop();
}

/// Sends all of a body but for its last byte, as far as the server takes it, until it answers.
fn withhold(address: &str, size: usize) -> String {
    let mut stream = TcpStream::connect(address).unwrap();
    stream.set_write_timeout(Some(PATIENCE)).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    let head = format!(
        "POST /execute HTTP/1.1\r\nHost: isol8\r\nAuthorization: Bearer {KEY}\r\n\
         Content-Length: {size}\r\n\r\n"
    );
    stream.write_all(head.as_bytes()).unwrap();
    let mut sending = stream.try_clone().unwrap();
    let sender = std::thread::spawn(move || {
        // The body may be refused before it is all there.
        let _ = sending.write_all(&vec![b' '; size - 1]);
    });
    let mut answer = [0; 12];
    let status = stream.read_exact(&mut answer);
    // Whichever way the server ends it, the sender shall end too.
    let _ = stream.shutdown(std::net::Shutdown::Both);
    sender.join().unwrap();
    match status {
        Ok(()) => String::from_utf8_lossy(&answer[9..]).into_owned(),
        Err(error) => error.to_string(),
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn bodies_that_are_withheld_share_a_bounded_memory_for_a_bounded_time() {
    const WITHHELD: usize = 12;
    let most = 2 * SIZE;
    let config =
        format!("[server]\nmaxBodySize = {SIZE}\nmaxBodiesSize = {most}\nbodyTimeoutMs = 3000\n");
    let server = Server::configured(Backend::Native, &config);
    server.python("1").await;
    let before = server.memory("VmRSS");
    let held: Vec<_> = (0..WITHHELD)
        .map(|_| {
            let address = server.address.clone();
            std::thread::spawn(move || withhold(&address, SIZE))
        })
        .collect();
    until("bodies arrive", || {
        server.memory("VmRSS") > before + most as u64 / 2
    });
    // Small ones do not wait for them.
    assert_eq!(server.python("print(6 * 7)").await.stdout, "42");
    for held in held {
        let status = held.join().unwrap();
        assert!(["408", "503"].contains(&status.as_str()), "{status}");
    }
    let grown = server.memory("VmHWM").saturating_sub(before);
    let most = most as u64 + BESIDE;
    assert!(grown < most, "{grown} bytes, expected at most {most}");
    // Their memory is there again.
    let mut large = crate::harness::python("import sys; print(len(sys.stdin.read()))");
    large.stdin = Some("x".repeat(SIZE - 1024));
    let result = server.client().execute(large).await.unwrap();
    assert_eq!(result.stdout, (SIZE - 1024).to_string());
    server.stop();
}
