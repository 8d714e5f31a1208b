//! The cache with a registry of the test's own.

#![allow(clippy::unwrap_used)] // A failed expectation is the test failing.

use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use http_body_util::BodyExt as _;
use hyper::Request;
use isol8_egress::{Egress, EgressConfig, Filter, LocalAnswer, LocalHost};
use isol8_registry_cache::{PackageManager, RegistryCache, Settings};
use tokio::io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;

/// Hashes of `abc`, and of the empty text.
const ABC: &str = "sha512-3a81oZNherrMQXNJriBBMRLm+k6JqX6iCp7u5ktV05ohkpkqJ0/BqDa6PCOj/uu9RU1EI2Q86A4qmslPpUyknw==";
const NOTHING: &str = "sha512-z4PhNX7vuL3xVChQ1m2AB9Yg5AULVxXcg/SpIdNs6c5H0NE8XYXysP+DGNKHfuwvY7kxvUdBeoGlODJ6+SfaPg==";

/// Longest time that a request of an installation may wait for the others'.
const TIMEOUT: Duration = Duration::from_secs(10);

/// More requests than an installation's connections allow at once.
const MANY: usize = 130;

#[derive(Clone)]
struct Registry {
    port: u16,
    requests: Arc<AtomicUsize>,
    heads: Arc<Mutex<String>>,
    /// Files that may come to their end.
    open: Arc<Semaphore>,
    /// Files and pages that were begun and never come to their end.
    slow: Arc<AtomicUsize>,
}

impl Registry {
    async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let registry = Self {
            port: listener.local_addr().unwrap().port(),
            requests: Arc::default(),
            heads: Arc::default(),
            open: Arc::new(Semaphore::new(1000)),
            slow: Arc::default(),
        };
        let serving = registry.clone();
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let serving = serving.clone();
                tokio::spawn(async move { serving.answer(stream).await.ok() });
            }
        });
        registry
    }

    async fn answer(&self, stream: TcpStream) -> std::io::Result<()> {
        let mut stream = BufReader::new(stream);
        let mut head = String::new();
        while !head.ends_with("\r\n\r\n") {
            stream.read_line(&mut head).await?;
        }
        let path = head.split(' ').nth(1).unwrap().to_owned();
        self.heads.lock().unwrap().push_str(&head);
        let name = path.rsplit('/').next().unwrap();
        let body = match name {
            "x" => self.page(),
            "good-1.tgz" | "weak-1.tgz" | "wrong-1.tgz" => "abc".to_owned(),
            "nothing-1.tgz" => String::new(),
            "large-1.tgz" => "l".repeat(5 << 20),
            "moved-1.tgz" => {
                let answer = b"HTTP/1.1 302 Found\r\nLocation: /x/-/good-1.tgz\r\nContent-Length: 0\r\nConnection: close\r\n\r\n";
                return stream.write_all(answer).await;
            }
            slow if slow.starts_with("slow") => {
                let head = b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\na";
                stream.write_all(head).await?;
                self.slow.fetch_add(1, Ordering::SeqCst);
                return std::future::pending().await;
            }
            _ => {
                let answer =
                    b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\nConnection: close\r\n\r\n";
                return stream.write_all(answer).await;
            }
        };
        if name != "x" {
            self.requests.fetch_add(1, Ordering::SeqCst);
        }
        let length = body.len();
        let head =
            format!("HTTP/1.1 200 OK\r\nContent-Length: {length}\r\nConnection: close\r\n\r\n");
        stream.write_all(head.as_bytes()).await?;
        let begin = body.len() / 2;
        stream.write_all(&body.as_bytes()[..begin]).await?;
        stream.flush().await?;
        let permit = self.open.acquire().await.unwrap();
        stream.write_all(&body.as_bytes()[begin..]).await?;
        drop(permit);
        stream.flush().await
    }

    fn page(&self) -> String {
        let files = [
            ("good", ABC),
            ("weak", "sha1-qZk+NkcGgWq6PiVxeFDCbJzQ2J0="),
            ("wrong", NOTHING),
            ("nothing", NOTHING),
            ("large", ABC),
        ];
        let files = files.map(|(name, integrity)| (name.to_owned(), integrity));
        let slow = (0..MANY).map(|n| (format!("slow{n}"), ABC));
        let files: Vec<_> = files.into_iter().chain(slow).collect();
        let versions = files.iter().enumerate().map(|(n, (name, integrity))| {
            let url = format!("http://127.0.0.1:{}/x/-/{name}-1.tgz", self.port);
            format!(r#""{n}.0.0": {{"dist": {{"tarball": "{url}", "integrity": "{integrity}"}}}}"#)
        });
        let versions: Vec<_> = versions.collect();
        format!(
            r#"{{"name": "x", "versions": {{{}}}}}"#,
            versions.join(", ")
        )
    }

    fn handler(&self, directory: &Path) -> Arc<dyn LocalHost> {
        let [handler] = self.handlers(directory);
        handler
    }

    /// The handlers of several installations that use one cache.
    fn handlers<const N: usize>(&self, directory: &Path) -> [Arc<dyn LocalHost>; N] {
        let egress = Egress::new(EgressConfig {
            allowed_cidrs: vec!["127.0.0.0/8".to_owned()],
            ports: isol8_egress::Ports::any(),
            ..EgressConfig::default()
        });
        let egress = egress.unwrap();
        let cache = RegistryCache::new(Settings {
            directory: directory.to_owned(),
            max_bytes: 16 << 20,
            page_ttl: Duration::from_secs(60),
            python: "https://pypi.invalid/simple/".parse().unwrap(),
            npm: format!("http://127.0.0.1:{}/", self.port).parse().unwrap(),
        });
        let filter = Filter {
            whitelist: vec![r"^127\.0\.0\.1$".to_owned()],
            blacklist: Vec::new(),
        };
        let policy = egress.policy(&filter).unwrap();
        std::array::from_fn(|_| cache.handler(PackageManager::Npm, &egress, policy.clone()))
    }

    fn requests(&self) -> usize {
        self.requests.load(Ordering::SeqCst)
    }
}

/// Asks for a path, and returns as soon as the answer begins.
async fn begin(
    handler: &Arc<dyn LocalHost>,
    method: &str,
    path: &str,
    headers: &[(&str, &str)],
) -> LocalAnswer {
    let mut request = Request::builder()
        .method(method)
        .uri(format!("http://registry.isol8.internal{path}"));
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    handler
        .answer(request.body(()).unwrap().into_parts().0)
        .await
}

/// Reads an answer to its end. Returns its status, and its body if that was whole.
async fn finish(answer: LocalAnswer) -> (u16, Option<Bytes>) {
    let status = answer.status().as_u16();
    let body = answer.into_body().collect().await.ok();
    (status, body.map(|body| body.to_bytes()))
}

async fn ask(
    handler: &Arc<dyn LocalHost>,
    method: &str,
    path: &str,
    headers: &[(&str, &str)],
) -> (u16, Option<Bytes>) {
    finish(begin(handler, method, path, headers).await).await
}

async fn get(handler: &Arc<dyn LocalHost>, path: &str) -> (u16, Option<Bytes>) {
    ask(handler, "GET", path, &[]).await
}

/// Files that are there, whole or not.
fn kept(directory: &Path) -> usize {
    let count = |directory: &Path| {
        let entries = std::fs::read_dir(directory).ok()?;
        let files = entries.filter(|entry| entry.as_ref().unwrap().path().is_file());
        Some(files.count())
    };
    let partial = directory.join("partial");
    count(directory).unwrap_or(0) + count(&partial).unwrap_or(0)
}

const GOOD: &str = "/x/-/good-1.tgz";

#[tokio::test]
async fn a_file_is_fetched_once_and_only_where_its_page_lists_it() {
    let (registry, directory) = (Registry::start().await, tempfile::tempdir().unwrap());
    let handler = registry.handler(directory.path());
    for _ in 0..2 {
        assert_eq!(get(&handler, GOOD).await, (200, Some("abc".into())));
        assert_eq!(
            get(&handler, "/x/-/nothing-1.tgz").await,
            (200, Some(Bytes::new()))
        );
    }
    assert_eq!(
        ask(&handler, "HEAD", GOOD, &[]).await,
        (200, Some(Bytes::new()))
    );
    assert_eq!(registry.requests(), 2);
    for path in ["/x/-/other-1.tgz", "/y", "/y/-/good-1.tgz", "/-/whoami"] {
        assert_eq!(get(&handler, path).await.0, 404, "{path}");
    }
    // Another server, with the same directory.
    let other = registry.handler(directory.path());
    assert_eq!(get(&other, GOOD).await, (200, Some("abc".into())));
    assert_eq!((registry.requests(), kept(directory.path())), (2, 2));
}

#[tokio::test]
async fn nothing_is_taken_from_who_asks() {
    let (registry, directory) = (Registry::start().await, tempfile::tempdir().unwrap());
    let handler = registry.handler(directory.path());
    for method in ["PUT", "POST", "DELETE", "PATCH"] {
        for path in [GOOD, "/x"] {
            assert_eq!(ask(&handler, method, path, &[]).await.0, 405, "{method}");
        }
    }
    for header in [("authorization", "Bearer mine"), ("cookie", "a=mine")] {
        for _ in 0..2 {
            assert_eq!(
                ask(&handler, "GET", GOOD, &[header]).await,
                (200, Some("abc".into()))
            );
        }
    }
    assert_eq!((registry.requests(), kept(directory.path())), (4, 0));
    assert_eq!(registry.heads.lock().unwrap().matches("mine").count(), 4);
    registry.heads.lock().unwrap().clear();
    for header in [("authorization", "Bearer mine"), ("cookie", "a=mine")] {
        assert_ne!(
            ask(&handler, "GET", "/x/-/moved-1.tgz", &[header]).await.0,
            200
        );
    }
    let sent = registry.heads.lock().unwrap().matches("mine").count();
    assert_eq!(sent, 2, "a redirect gets no credentials");
    registry.heads.lock().unwrap().clear();
    assert_eq!(
        ask(
            &handler,
            "GET",
            GOOD,
            &[("x-mine", "mine"), ("accept", "mine")]
        )
        .await
        .0,
        200
    );
    assert!(!registry.heads.lock().unwrap().contains("mine"));
}

#[tokio::test]
async fn what_has_not_the_hash_that_is_listed_comes_to_no_end_and_is_not_kept() {
    let (registry, directory) = (Registry::start().await, tempfile::tempdir().unwrap());
    let handler = registry.handler(directory.path());
    for _ in 0..2 {
        let (status, body) = get(&handler, "/x/-/wrong-1.tgz").await;
        assert!(status == 502 || body.is_none(), "{status} {body:?}");
    }
    assert_eq!((registry.requests(), kept(directory.path())), (2, 0));
}

#[tokio::test]
async fn what_is_too_large_or_has_no_good_hash_is_passed_on() {
    let (registry, directory) = (Registry::start().await, tempfile::tempdir().unwrap());
    let handler = registry.handler(directory.path());
    for _ in 0..2 {
        assert_eq!(
            get(&handler, "/x/-/weak-1.tgz").await,
            (200, Some("abc".into()))
        );
        assert_eq!(
            get(&handler, "/x/-/large-1.tgz").await.1.unwrap().len(),
            5 << 20
        );
    }
    assert_eq!(kept(directory.path()), 0);
}

#[tokio::test]
async fn without_a_disk_packages_are_passed_on() {
    let (registry, directory) = (Registry::start().await, tempfile::tempdir().unwrap());
    let file = directory.path().join("file");
    std::fs::write(&file, "").unwrap();
    let handler = registry.handler(&file);
    assert_eq!(get(&handler, GOOD).await, (200, Some("abc".into())));
}

#[tokio::test]
async fn a_download_is_shared_and_ends_with_the_last_who_waits() {
    let (registry, directory) = (Registry::start().await, tempfile::tempdir().unwrap());
    let handler = registry.handler(directory.path());
    let closed = registry.open.acquire_many(1000).await.unwrap();
    // Its page is let through, and the file is not.
    registry.open.add_permits(1);
    assert_eq!(get(&handler, "/x").await.0, 200);
    let hold = registry.open.acquire().await.unwrap();
    let first = tokio::spawn({
        let handler = handler.clone();
        async move { get(&handler, GOOD).await }
    });
    while registry.requests() == 0 {
        tokio::task::yield_now().await;
    }
    // The answer begins with the download that the first request started: half of the file has come in.
    let second = begin(&handler, "GET", GOOD, &[]).await;
    first.abort();
    drop((hold, closed));
    assert_eq!(finish(second).await, (200, Some("abc".into())));
    assert_eq!((registry.requests(), kept(directory.path())), (1, 1));

    let hold = registry.open.acquire_many(1001).await.unwrap();
    let alone = tokio::spawn({
        let handler = handler.clone();
        async move { get(&handler, "/x/-/nothing-1.tgz").await }
    });
    while registry.requests() == 1 {
        tokio::task::yield_now().await;
    }
    alone.abort();
    let mut waited = 0;
    while kept(directory.path()) > 1 {
        waited += 1;
        assert!(waited < 1000, "the download outlives who waited for it");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    drop(hold);
}

/// Asks for each path without waiting for the answers, until the registry has had so many of the requests. Returns how
/// many it has had once a later request of another installation was served: the requests go through the same queues.
async fn ask_for_many(
    handler: &Arc<dyn LocalHost>,
    other: &Arc<dyn LocalHost>,
    registry: &Registry,
    begun: usize,
    path: impl Fn(usize) -> String,
) -> usize {
    for path in (0..MANY).map(path) {
        let handler = handler.clone();
        tokio::spawn(async move { get(&handler, &path).await });
    }
    let mut waited = 0;
    while registry.slow.load(Ordering::SeqCst) < begun {
        waited += 1;
        assert!(waited < 1000, "too few are begun");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let passed_on = tokio::time::timeout(TIMEOUT, get(other, "/x/-/weak-1.tgz")).await;
    assert_eq!(passed_on.unwrap(), (200, Some("abc".into())));
    registry.slow.load(Ordering::SeqCst)
}

#[tokio::test]
async fn an_installation_at_its_own_limits_keeps_no_other_waiting() {
    let (registry, directory) = (Registry::start().await, tempfile::tempdir().unwrap());
    let [hostile, other] = registry.handlers(directory.path());
    assert_eq!(get(&hostile, "/x").await.0, 200);
    let files = ask_for_many(&hostile, &other, &registry, 16, |n| {
        format!("/x/-/slow{n}-1.tgz")
    })
    .await;
    assert_eq!(files, 16);
    let pages = ask_for_many(&hostile, &other, &registry, 32, |n| format!("/slow{n}")).await;
    assert_eq!(pages, 32);
    let fetching = async { (get(&other, GOOD).await, get(&other, "/y").await.0) };
    let fetched = tokio::time::timeout(TIMEOUT, fetching).await;
    assert_eq!(fetched.unwrap(), ((200, Some("abc".into())), 404));
}
