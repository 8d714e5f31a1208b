//! Every global semaphore of the server: one run at its own limit does not delay another.

use std::collections::BTreeMap;
use std::fs;
use std::io::{Read as _, Write as _};
use std::net::{TcpListener, TcpStream, UdpSocket};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use isol8_api::{NetworkMode, Options};
use isol8_client::{ExecutionRequest, Runtime};

use crate::harness::{Kind, PATIENCE, Server, python};

/// The users that share the places of a semaphore, or the threads for blocking work.
#[derive(Clone, Copy, Debug)]
enum Places {
    /// All runs; the test shows that one run at its limits keeps no other waiting.
    Shared {
        file: &'static str,
        test: &'static str,
    },
    /// A single run, sandbox or command, so that no other waits for them.
    Own,
    /// All runs, each for no longer than a small piece of work takes the disk or a processor: milliseconds.
    Brief,
}

const HERE: &str = "tests/suite/hostile/semaphores.rs";
const CACHE: &str = "crates/registry-cache/tests/cache.rs";
const NAMES: Places = Places::Shared {
    file: HERE,
    test: "names_and_addresses_without_an_answer_keep_no_other_run_waiting",
};
const INSTALLATIONS: Places = Places::Shared {
    file: CACHE,
    test: "an_installation_at_its_own_limits_keeps_no_other_waiting",
};

const BODIES: Places = Places::Shared {
    file: "tests/suite/hostile/members.rs",
    test: "bodies_that_are_withheld_share_a_bounded_memory_for_a_bounded_time",
};

/// Each source file with what it has of semaphores and of threads for work that blocks, and how often.
const TABLE: &[(&str, &str, usize, Places)] = &[
    ("actors/src/run/events.rs", "Semaphore::new", 2, Places::Own),
    (
        "actors/src/run/secrets.rs",
        "spawn_blocking",
        3,
        Places::Brief,
    ),
    (
        "crates/backend-docker/src/sandbox.rs",
        "spawn_blocking",
        1,
        Places::Brief,
    ),
    (
        "crates/backend-native/src/spawner/client.rs",
        "spawn_blocking",
        1,
        Places::Brief,
    ),
    (
        "crates/engine/src/backends/start.rs",
        "spawn_blocking",
        1,
        Places::Brief,
    ),
    ("src/memory.rs", "spawn_blocking", 2, Places::Brief),
    ("src/server/bodies.rs", "Semaphore::new", 2, BODIES),
    ("src/server/bodies.rs", "web::block", 1, BODIES),
    (
        "actors/src/session/status.rs",
        "Semaphore::new",
        1,
        Places::Own,
    ),
    (
        "crates/backend/src/adoption.rs",
        "spawn_blocking",
        1,
        Places::Brief,
    ),
    (
        "crates/backend/src/control/connection.rs",
        "Semaphore::new",
        1,
        Places::Own,
    ),
    (
        "crates/backend/src/control/tunnels.rs",
        "Semaphore::new",
        2,
        Places::Own,
    ),
    (
        "crates/backend/src/fake/guest.rs",
        "Semaphore::new",
        2,
        Places::Own,
    ),
    (
        "crates/backend/src/instance.rs",
        "spawn_blocking",
        2,
        Places::Brief,
    ),
    (
        "crates/backend-native/src/backend.rs",
        "spawn_blocking",
        2,
        Places::Brief,
    ),
    ("crates/egress/src/context.rs", "Semaphore::new", 2, NAMES),
    (
        "crates/registry-cache/src/download.rs",
        "Semaphore::new",
        1,
        INSTALLATIONS,
    ),
    (
        "crates/registry-cache/src/download.rs",
        "spawn_blocking",
        3,
        INSTALLATIONS,
    ),
    (
        "crates/registry-cache/src/index.rs",
        "Semaphore::new",
        1,
        INSTALLATIONS,
    ),
    (
        "crates/registry-cache/src/index.rs",
        "spawn_blocking",
        1,
        INSTALLATIONS,
    ),
    (
        "crates/registry-cache/src/share.rs",
        "Semaphore::new",
        3,
        Places::Own,
    ),
    (
        "src/commands/follow/output.rs",
        "Semaphore::new",
        1,
        Places::Own,
    ),
    (
        "src/commands/run/remote.rs",
        "spawn_blocking",
        1,
        Places::Own,
    ),
    (
        "src/commands/setup/native.rs",
        "spawn_blocking",
        3,
        Places::Own,
    ),
    ("src/reload.rs", "spawn_blocking", 1, Places::Brief),
    (
        "crates/engine/src/remote_code.rs",
        "Semaphore::new",
        1,
        NAMES,
    ),
];

/// The calls that make places which others may wait for.
const KINDS: [&str; 4] = [
    "Semaphore::new",
    "spawn_blocking",
    "web::block",
    "lookup_host",
];

#[test]
fn every_semaphore_and_every_blocking_thread_has_an_entry() {
    let top = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut found = BTreeMap::new();
    let crates = fs::read_dir(top.join("crates")).unwrap();
    let crates = crates.map(|entry| entry.unwrap().path().join("src"));
    for directory in crates.chain([top.join("src"), top.join("actors/src")]) {
        count(top, &directory, &mut found);
    }
    let expected = TABLE
        .iter()
        .map(|(file, kind, count, _)| ((*file).to_owned(), *kind, *count));
    let found = found
        .into_iter()
        .map(|((file, kind), count)| (file, kind, count));
    let (found, mut expected) = (found.collect::<Vec<_>>(), expected.collect::<Vec<_>>());
    expected.sort();
    assert_eq!(
        found, expected,
        "give each an entry in the table, and each shared one a test"
    );
    for (file, kind, _, places) in TABLE {
        if let Places::Shared { file: at, test } = places {
            let text = fs::read_to_string(top.join(at)).unwrap();
            let function = format!("fn {test}(");
            assert!(
                text.contains(&function),
                "{file}: {kind}: there is no test {test} in {at}"
            );
        }
    }
}

fn count(top: &Path, directory: &Path, found: &mut BTreeMap<(String, &'static str), usize>) {
    let Ok(entries) = fs::read_dir(directory) else {
        return;
    };
    for path in entries.map(|entry| entry.unwrap().path()) {
        if path.is_dir() {
            count(top, &path, found);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            let text = fs::read_to_string(&path).unwrap();
            let name = path.strip_prefix(top).unwrap().display().to_string();
            let product = text.split("#[cfg(test)]\nmod tests").next().unwrap();
            let lines = product
                .lines()
                .filter(|line| !line.trim_start().starts_with("//"));
            let lines: Vec<&str> = lines.collect();
            for kind in KINDS {
                let calls = lines.iter().filter(|line| is_call(line, kind)).count();
                if calls > 0 {
                    found.insert((name.clone(), kind), calls);
                }
            }
        }
    }
}

/// A `PollSemaphore` has the places of another one.
fn is_call(line: &str, kind: &str) -> bool {
    line.replace("PollSemaphore", "").contains(kind)
}

/// A name server of the test's own that never answers, and the file that names it.
struct Silence {
    asked: Arc<AtomicUsize>,
    file: tempfile::NamedTempFile,
}

impl Silence {
    fn start() -> Self {
        // Name servers are asked on port 53; other tests have other addresses of loopback.
        let (socket, address) = (0..50)
            .find_map(|_| {
                let [a, b] = [fastrand::u8(1..=254), fastrand::u8(1..=254)];
                let address = format!("127.53.{a}.{b}");
                let socket = UdpSocket::bind((address.as_str(), 53)).ok()?;
                Some((socket, address))
            })
            .expect("no address of loopback has port 53 free");
        let asked = Arc::new(AtomicUsize::new(0));
        let count = Arc::clone(&asked);
        std::thread::spawn(move || {
            while socket.recv_from(&mut [0; 512]).is_ok() {
                count.fetch_add(1, Ordering::SeqCst);
            }
        });
        let mut file = tempfile::NamedTempFile::new().unwrap();
        writeln!(file, "nameserver {address}").unwrap();
        Self { asked, file }
    }
}

/// Answers every connection with a program, but those for `/silent`, which wait for ever. Its port.
fn origin() -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            std::thread::spawn(move || answer(stream.unwrap()));
        }
    });
    port
}

fn answer(mut stream: TcpStream) {
    let mut head = [0; 4096];
    let length = stream.read(&mut head).unwrap_or(0);
    if String::from_utf8_lossy(&head[..length]).contains("/silent") {
        let _ = stream.read(&mut head);
        return;
    }
    let text = "HTTP/1.1 200 OK\r\nContent-Length: 9\r\nConnection: close\r\n\r\nprint(42)";
    let _ = stream.write_all(text.as_bytes());
}

fn filtered() -> Options {
    Options {
        network: Some(NetworkMode::Filtered),
        ..Options::default()
    }
}

fn fetched(url: String) -> ExecutionRequest {
    let mut request = ExecutionRequest::new(Runtime::Python);
    request.code_url = Some(url);
    request.allow_insecure_code_url = true;
    request
}

/// How long a run takes that reaches a host by a name of `/etc/hosts`, and one whose code is fetched from there;
/// the best of a few.
async fn usual(server: &Server, port: u16) -> [Duration; 2] {
    // `NO_PROXY` keeps clients from asking the proxy for this machine's own name.
    let code = format!(
        "import http.client, os
proxy = http.client.HTTPConnection(os.environ['http_proxy'].split('//')[1].rstrip('/'))
proxy.request('GET', 'http://localhost:{port}/')
print(proxy.getresponse().read())"
    );
    let mut best = [Duration::MAX; 2];
    for _ in 0..3 {
        let begun = Instant::now();
        let result = server
            .client()
            .execute_with(python(&code), filtered())
            .await
            .unwrap();
        assert_eq!(result.stdout, "b'print(42)'", "{}", result.stderr);
        best[0] = best[0].min(begun.elapsed());
        let begun = Instant::now();
        let result = server
            .client()
            .execute(fetched(format!("http://localhost:{port}/")))
            .await;
        assert_eq!(result.unwrap().stdout, "42");
        best[1] = best[1].min(begun.elapsed());
    }
    best
}

async fn names_and_addresses_without_an_answer_keep_no_other_run_waiting(kind: Kind) {
    let (silence, port) = (Silence::start(), origin());
    let config = "[network]\nallowedCidrs = [\"127.0.0.0/8\", \"::1\"]\nports = [\"*\"]\n\
                  [remoteCode]\nenabled = true\nallowedSchemes = [\"http\"]\nenableCache = false\n";
    let server = Server::resolving_by(kind, silence.file.path(), config);
    let before = usual(&server, port).await;
    let hostile = "import threading, urllib.request
def ask(n):
    try: urllib.request.urlopen(f'http://n{n}.silent.example/', timeout=60)
    except OSError: pass
for n in range(64): threading.Thread(target=ask, args=(n,)).start()";
    let mut hostile = python(hostile);
    hostile.timeout_ms = Some(60_000);
    let options = Options {
        pids_limit: Some(100),
        ..filtered()
    };
    let client = server.client();
    let run = tokio::spawn(async move { client.execute_with(hostile, options).await });
    let client = server.client();
    let silent = fetched(format!("http://localhost:{port}/silent"));
    let fetching = tokio::spawn(async move { client.execute(silent).await });
    let deadline = Instant::now() + PATIENCE;
    while silence.asked.load(Ordering::SeqCst) < 8 {
        assert!(Instant::now() < deadline, "no name is asked for");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    let meanwhile = usual(&server, port).await;
    for (before, meanwhile) in before.into_iter().zip(meanwhile) {
        // With a slack for other tests; a lookup without an answer takes ten seconds.
        let most = 2 * before + Duration::from_secs(1);
        assert!(meanwhile < most, "{meanwhile:?} in place of {before:?}");
    }
    run.abort();
    fetching.abort();
    // The clients close their connections meanwhile.
    tokio::task::spawn_blocking(|| server.stop()).await.unwrap();
}

mod native {
    #[tokio::test]
    async fn names_and_addresses_without_an_answer_keep_no_other_run_waiting() {
        super::names_and_addresses_without_an_answer_keep_no_other_run_waiting(super::Kind::Native)
            .await;
    }
}

mod docker {
    #[tokio::test]
    async fn names_and_addresses_without_an_answer_keep_no_other_run_waiting() {
        super::names_and_addresses_without_an_answer_keep_no_other_run_waiting(super::Kind::Docker)
            .await;
    }
}
