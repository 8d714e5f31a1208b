//! Programs that the server fetches.

use std::io::{Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Instant;

use futures::{SinkExt as _, StreamExt as _};
use isol8_client::{ClientError, ErrorCode, ExecutionRequest, ExecutionResult, Runtime};
use serde_json::json;
use tokio_tungstenite::connect_async;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::client::IntoClientRequest as _;

use crate::harness::{KEY, Kind, PATIENCE, Server};

/// Accepts what the tests' own servers have.
const ACCEPTED: &str = "\
    [network]\nallowedCidrs = [\"127.0.0.1\"]\nports = [\"*\"]\n\
    [remoteCode]\nenabled = true\nallowedSchemes = [\"https\", \"http\"]\nmaxCodeSize = \"64k\"\n\
    fetchTimeoutMs = 2000\nblockedHosts = [\"^blocked\"]\n";

const PROGRAM: &str = "print(6 * 7)";

/// `printf 'print(6 * 7)' | sha256sum`
const PROGRAM_HASH: &str = "6df79599d398b84cc3b5d2bc48aa32b3b92a031c852c3c679fc9308ef740f492";

/// A server of code, for as long as the test lives.
struct Origin {
    address: String,
    asked: Arc<AtomicUsize>,
}

impl Origin {
    fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let asked = Arc::new(AtomicUsize::new(0));
        let count = Arc::clone(&asked);
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                let count = Arc::clone(&count);
                std::thread::spawn(move || answer(stream.unwrap(), &count));
            }
        });
        Self { address, asked }
    }

    fn url(&self, path: &str) -> String {
        format!("http://{}/{path}", self.address)
    }

    fn asked(&self) -> usize {
        self.asked.load(Ordering::SeqCst)
    }
}

fn answer(mut stream: TcpStream, asked: &AtomicUsize) {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        let mut byte = [0];
        if stream.read(&mut byte).unwrap_or(0) == 0 {
            return;
        }
        head.push(byte[0]);
    }
    asked.fetch_add(1, Ordering::SeqCst);
    let head = String::from_utf8(head).unwrap();
    let whole = |status: &str, headers: &str, body: &[u8]| {
        let length = body.len();
        let head = format!(
            "HTTP/1.1 {status}\r\n{headers}Content-Length: {length}\r\nConnection: close\r\n\r\n"
        );
        [head.as_bytes(), body].concat()
    };
    let to = |location: &str| whole("302 Found", &format!("Location: {location}\r\n"), b"");
    let bytes = match head.split(' ').nth(1).unwrap() {
        "/program" => whole("200 OK", "", PROGRAM.as_bytes()),
        "/moved" => to("/program"),
        "/inward" => to("http://169.254.169.254/latest/meta-data"),
        "/to-file" => to("file:///etc/passwd"),
        "/round" => to("/round"),
        "/large" => whole("200 OK", "", &vec![b'#'; 65 << 10]),
        "/binary" => whole("200 OK", "", b"\xff\xfe"),
        "/broken" => whole("503 Service Unavailable", "", b""),
        "/silent" => {
            // Until the other side gives up.
            let _ = stream.read(&mut [0]);
            return;
        }
        _ => whole("404 Not Found", "", b""),
    };
    let _ = stream.write_all(&bytes);
}

fn fetched(url: String) -> ExecutionRequest {
    let mut request = ExecutionRequest::new(Runtime::Python);
    request.code_url = Some(url);
    request.allow_insecure_code_url = true;
    request
}

async fn run(server: &Server, request: ExecutionRequest) -> ExecutionResult {
    server.client().execute(request).await.unwrap()
}

/// The text and the code of a refusal.
async fn refused(server: &Server, request: ExecutionRequest) -> (String, ErrorCode) {
    match server.client().execute(request).await {
        Err(ClientError::Api {
            status: 400,
            code: Some(code),
            message,
            ..
        }) => (message, code),
        other => panic!("{other:?}"),
    }
}

async fn a_program_is_fetched_and_run_whichever_way_it_is_asked_for(kind: Kind) {
    let (server, origin) = (Server::configured(kind, ACCEPTED), Origin::start());
    let mut request = fetched(origin.url("moved"));
    request.code_hash = Some(PROGRAM_HASH.to_uppercase());
    assert_eq!(run(&server, request).await.stdout, "42");
    let session = server.session("fetched");
    let cell = session.execute(fetched(origin.url("program"))).await;
    assert_eq!(cell.unwrap().stdout, "42");

    let request = json!({"runtime": "python", "codeUrl": origin.url("program"),
        "allowInsecureCodeUrl": true});
    let url = format!("http://{}/execute/stream", server.address);
    let body = json!({"request": request}).to_string();
    let stream = reqwest::Client::new().post(url).bearer_auth(KEY).body(body);
    let events = stream.send().await.unwrap().text().await.unwrap();
    assert!(events.contains("\"42\\n\""), "{events}");

    let url = format!("ws://{}/execute/ws", server.address);
    let mut upgrade = url.into_client_request().unwrap();
    let key = format!("Bearer {KEY}").parse().unwrap();
    upgrade.headers_mut().insert("authorization", key);
    let (mut socket, _) = connect_async(upgrade).await.unwrap();
    let wrong =
        json!({"runtime": "python", "codeUrl": origin.url("none"), "allowInsecureCodeUrl": true});
    for request in [wrong, request] {
        let message = json!({"type": "execute", "request": request}).to_string();
        socket.send(Message::text(message)).await.unwrap();
    }
    let mut events = String::new();
    while let Some(Ok(message)) = socket.next().await {
        if let Message::Text(text) = message {
            events.push_str(&text);
        }
    }
    assert!(
        events.contains("request.codeUrl: 127.0.0.1 answered 404"),
        "{events}"
    );
    assert!(events.contains("\"42\\n\""), "{events}");
    server.stop();
}

async fn what_is_wrong_with_a_url_is_named_before_a_sandbox_is_touched(kind: Kind) {
    let config =
        format!("{ACCEPTED}[runtimes.python]\npoolSize = 0\n[runtimes.bash]\npoolSize = 0\n");
    let (server, origin) = (Server::configured(kind, &config), Origin::start());
    let untouched = server.traces();
    for (path, expected) in [
        ("none", "127.0.0.1 answered 404"),
        ("broken", "127.0.0.1 answered 503"),
        ("large", "larger than 65536 bytes"),
        ("binary", "the content is not UTF-8 text"),
        ("inward", "169.254.169.254 is not a public address"),
        ("to-file", "file: is not accepted"),
        ("round", "more than 5 redirects"),
        ("silent", "not there after 2000 ms"),
    ] {
        let (text, code) = refused(&server, fetched(origin.url(path))).await;
        assert_eq!(text, format!("request.codeUrl: {expected}"));
        assert_eq!(code, ErrorCode::InvalidRequest);
    }
    let asked = origin.asked();
    for (url, expected) in [
        ("http://127.0.0.2/", "127.0.0.2 is not a public address"),
        ("http://0x7f.2/", "127.0.0.2 is not a public address"),
        ("http://[::1]/", "::1 is not a public address"),
        (
            "http://blocked.example/",
            "blocked.example is on the server's blacklist",
        ),
        (
            "http://no-such-host.invalid/",
            "no-such-host.invalid has no public address, or cannot be resolved",
        ),
        (
            "ftp://127.0.0.1/",
            "\"ftp://127.0.0.1/\" is not a URL of the Web",
        ),
        ("/etc/passwd", "\"/etc/passwd\" is not a URL of the Web"),
        ("", "\"\" is not a URL of the Web"),
    ] {
        let (text, _) = refused(&server, fetched(url.to_owned())).await;
        assert_eq!(text, format!("request.codeUrl: {expected}"));
    }
    let mut insecure = fetched(origin.url("program"));
    insecure.allow_insecure_code_url = false;
    let (text, _) = refused(&server, insecure).await;
    assert_eq!(text, "request.codeUrl: http: needs allowInsecureCodeUrl");
    // Everything else is looked at before anything is fetched.
    let mut late = fetched(origin.url("program"));
    late.timeout_ms = Some(0);
    let (text, _) = refused(&server, late).await;
    assert!(text.starts_with("request.timeoutMs"), "{text}");
    let mut two = fetched(origin.url("program"));
    two.code = Some(String::new());
    let (text, _) = refused(&server, two).await;
    assert!(text.ends_with("found 2"), "{text}");
    let mut hashed = fetched(origin.url("program"));
    hashed.code_hash = Some("abc".to_owned());
    let (text, _) = refused(&server, hashed.clone()).await;
    assert!(text.starts_with("request.codeHash: \"abc\""), "{text}");
    assert_eq!(origin.asked(), asked);
    hashed.code_hash = Some("0".repeat(64));
    let (text, _) = refused(&server, hashed).await;
    let expected =
        format!("request.codeHash: the code at request.codeUrl has the SHA-256 {PROGRAM_HASH}");
    assert_eq!(text, expected);
    assert_eq!(server.traces(), untouched);
    server.stop();
}

async fn what_was_fetched_is_used_again_until_the_configuration_changes(kind: Kind) {
    let (server, origin) = (Server::configured(kind, ACCEPTED), Origin::start());
    let runs = (0..4).map(|_| run(&server, fetched(origin.url("program"))));
    for result in futures::future::join_all(runs).await {
        assert_eq!(result.stdout, "42");
    }
    assert_eq!(origin.asked(), 1);
    let config = format!("{ACCEPTED}requireHash = true\nenableCache = false\n");
    std::fs::write(server.state().join("config.toml"), config).unwrap();
    let deadline = Instant::now() + PATIENCE;
    let text = loop {
        assert!(Instant::now() < deadline, "the changed file does not apply");
        let answer = server
            .client()
            .execute(fetched(origin.url("program")))
            .await;
        if let Err(error) = answer {
            break error.to_string();
        }
    };
    assert!(
        text.starts_with("request.codeHash: required by this server"),
        "{text}"
    );
    let asked = origin.asked();
    for _ in 0..2 {
        let mut request = fetched(origin.url("program"));
        request.code_hash = Some(PROGRAM_HASH.to_owned());
        assert_eq!(run(&server, request).await.stdout, "42");
    }
    assert_eq!(origin.asked(), asked + 2);
    server.stop();
}

async fn nothing_is_fetched_unless_the_operator_says_so(kind: Kind) {
    let origin = Origin::start();
    let server = Server::start(kind);
    let (text, code) = refused(&server, fetched(origin.url("program"))).await;
    assert!(
        text.starts_with("request.codeUrl: this server fetches no code"),
        "{text}"
    );
    assert_eq!(code, ErrorCode::Unsupported);
    server.stop();
    let server = Server::configured(kind, "[remoteCode]\nenabled = true\n");
    let (text, _) = refused(&server, fetched(origin.url("program"))).await;
    assert_eq!(text, "request.codeUrl: this server does not accept http:");
    let url = origin.url("program").replace("http:", "https:");
    let (text, _) = refused(&server, fetched(url)).await;
    assert_eq!(text, "request.codeUrl: 127.0.0.1 is not a public address");
    assert_eq!(origin.asked(), 0);
    server.stop();
}

/// Each on both backends, with servers that it starts itself.
macro_rules! on_both {
    ($($test:ident),* $(,)?) => {
        mod native {
            $(#[tokio::test]
            async fn $test() {
                super::$test(super::Kind::Native).await;
            })*
        }
        mod docker {
            $(#[tokio::test]
            async fn $test() {
                super::$test(super::Kind::Docker).await;
            })*
        }
    };
}

on_both!(
    a_program_is_fetched_and_run_whichever_way_it_is_asked_for,
    what_is_wrong_with_a_url_is_named_before_a_sandbox_is_touched,
    what_was_fetched_is_used_again_until_the_configuration_changes,
    nothing_is_fetched_unless_the_operator_says_so,
);
