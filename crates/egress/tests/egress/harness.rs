//! Servers, resolvers and clients of the tests.

use std::collections::HashMap;
use std::io;
use std::net::IpAddr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use isol8_egress::{Egress, EgressConfig, EgressLimits, Filter, Ports, Resolve, RunEgress};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, DuplexStream, duplex};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinHandle;

/// Nothing takes longer, unless something is wrong.
pub(crate) const PATIENCE: Duration = Duration::from_secs(20);

/// Answers with these addresses in turn, the last one again and again; a name without any is unknown, and
/// one with `None` is never answered.
#[derive(Debug, Default)]
pub(crate) struct Scripted {
    answers: HashMap<String, Vec<Option<Vec<IpAddr>>>>,
    pub(crate) asked: AtomicUsize,
}

impl Scripted {
    pub(crate) fn name(mut self, name: &str, answers: &[&[&str]]) -> Self {
        let parsed = answers.iter().map(|addresses| {
            let addresses = addresses.iter().map(|address| address.parse().unwrap());
            Some(addresses.collect())
        });
        self.answers.insert(name.to_owned(), parsed.collect());
        self
    }

    pub(crate) fn silent(mut self, name: &str) -> Self {
        self.answers.insert(name.to_owned(), vec![None]);
        self
    }
}

#[async_trait]
impl Resolve for Scripted {
    async fn resolve(&self, name: &str) -> io::Result<Vec<IpAddr>> {
        let asked = self.asked.fetch_add(1, Ordering::SeqCst);
        match self.answers.get(name) {
            None => Err(io::ErrorKind::NotFound.into()),
            Some(answers) => match &answers[asked.min(answers.len() - 1)] {
                Some(addresses) => Ok(addresses.clone()),
                None => std::future::pending().await,
            },
        }
    }
}

/// A configuration that admits the tests' servers only.
pub(crate) fn config() -> EgressConfig {
    EgressConfig {
        allowed_cidrs: vec!["127.0.0.1".to_owned()],
        ports: Ports::any(),
        limits: EgressLimits {
            connect_timeout: Duration::from_secs(5),
            ..EgressLimits::default()
        },
        ..EgressConfig::default()
    }
}

pub(crate) fn resolver() -> Scripted {
    let here: &[&str] = &["127.0.0.1"];
    Scripted::default()
        .name("origin.example", &[here])
        .name("other.example", &[here])
}

pub(crate) fn egress(config: EgressConfig, resolver: Scripted) -> Egress {
    Egress::with_resolver(config, Arc::new(resolver)).unwrap()
}

pub(crate) fn run_of(egress: &Egress) -> RunEgress {
    let policy = egress.policy(&Filter::default()).unwrap();
    egress.run(policy, true)
}

/// A run that reaches the tests' servers.
pub(crate) fn run() -> RunEgress {
    run_of(&egress(config(), resolver()))
}

/// The same with other limits.
pub(crate) fn limited(change: impl FnOnce(&mut EgressLimits)) -> RunEgress {
    let mut config = config();
    change(&mut config.limits);
    run_of(&egress(config, resolver()))
}

/// A connection of a sandbox, and the task that serves it.
pub(crate) fn connect(run: &RunEgress) -> (DuplexStream, JoinHandle<()>) {
    let (client, server) = duplex(256 << 10);
    let run = run.clone();
    (client, tokio::spawn(async move { run.serve(server).await }))
}

/// Everything that is answered to these bytes on a connection of their own.
pub(crate) async fn exchange(run: &RunEgress, bytes: impl AsRef<[u8]>) -> String {
    let (mut client, _) = connect(run);
    // The connection may have been closed already, if the first bytes were too much.
    let _ = client.write_all(bytes.as_ref()).await;
    read_to_end(&mut client).await
}

pub(crate) async fn read_to_end(client: &mut DuplexStream) -> String {
    let mut answer = Vec::new();
    let reading = client.read_to_end(&mut answer);
    let read = tokio::time::timeout(PATIENCE, reading).await;
    read.expect("connection stays open").unwrap();
    String::from_utf8_lossy(&answer).into_owned()
}

/// Reads until this is there.
pub(crate) async fn read_until(client: &mut DuplexStream, end: &str) -> String {
    let mut answer = Vec::new();
    while !String::from_utf8_lossy(&answer).contains(end) {
        let byte = tokio::time::timeout(PATIENCE, client.read_u8()).await;
        answer.push(byte.expect("nothing comes").expect("connection ended"));
    }
    String::from_utf8_lossy(&answer).into_owned()
}

/// The request for a URL, after which the connection ends.
pub(crate) fn get(url: &str) -> String {
    format!("GET {url} HTTP/1.1\r\nHost: ignored\r\nConnection: close\r\n\r\n")
}

pub(crate) async fn status(run: &RunEgress, url: &str) -> u16 {
    status_of(&exchange(run, get(url)).await)
}

pub(crate) fn status_of(answer: &str) -> u16 {
    let code = answer.split(' ').nth(1);
    code.and_then(|code| code.parse().ok())
        .unwrap_or_else(|| panic!("no status: {answer:?}"))
}

/// A server that answers each connection with the same bytes once a head has come, and keeps what it
/// was sent.
pub(crate) struct Origin {
    pub(crate) port: u16,
    seen: Arc<Mutex<Vec<u8>>>,
}

impl Origin {
    pub(crate) async fn start(answer: impl Into<Vec<u8>>) -> Self {
        Self::until("\r\n\r\n", answer).await
    }

    /// Answers once this has come.
    pub(crate) async fn until(end: &'static str, answer: impl Into<Vec<u8>>) -> Self {
        let answer: Arc<[u8]> = answer.into().into();
        let seen = Arc::new(Mutex::new(Vec::new()));
        let all = Arc::clone(&seen);
        let port = serve(move |mut stream| {
            let (answer, seen) = (Arc::clone(&answer), Arc::clone(&all));
            async move {
                let mut head = Vec::new();
                while !String::from_utf8_lossy(&head).ends_with(end) {
                    let Ok(byte) = stream.read_u8().await else {
                        break;
                    };
                    head.push(byte);
                    seen.lock().unwrap().push(byte);
                }
                let _ = stream.write_all(&answer).await;
            }
        })
        .await;
        Self { port, seen }
    }

    /// A server that says "hello".
    pub(crate) async fn hello() -> Self {
        Self::start("HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello").await
    }

    pub(crate) fn seen(&self) -> String {
        String::from_utf8_lossy(&self.seen.lock().unwrap()).into_owned()
    }

    pub(crate) fn url(&self) -> String {
        format!("http://origin.example:{}/", self.port)
    }
}

/// Serves every connection to a port of its own.
pub(crate) async fn serve<F>(handle: impl Fn(TcpStream) -> F + Send + 'static) -> u16
where
    F: Future<Output = ()> + Send + 'static,
{
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            tokio::spawn(handle(stream));
        }
    });
    port
}

/// Reads a request without a body.
pub(crate) async fn read_head(stream: &mut TcpStream) {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        match stream.read_u8().await {
            Ok(byte) => head.push(byte),
            Err(_) => return,
        }
    }
}

/// A server that sends back what comes.
pub(crate) async fn echo() -> u16 {
    serve(|mut stream| async move {
        let (mut from, mut to) = stream.split();
        let _ = tokio::io::copy(&mut from, &mut to).await;
    })
    .await
}
