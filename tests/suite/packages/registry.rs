//! A package registry inside the test, which counts its requests.

use std::collections::HashMap;
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use sha2::{Digest as _, Sha256};
use tokio::io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::{TcpListener, TcpStream};

/// The path of the wheel.
pub(super) const WHEEL: &str = "/files/suite_made-1.0-py3-none-any.whl";

/// Makes a wheel with one module, and prints it in hex.
const MAKE: &str = "import io, zipfile
made = io.BytesIO()
with zipfile.ZipFile(made, 'w') as wheel:
    wheel.writestr('suite_made.py', 'value = 42\\n' + '#' * 300000)
    info = 'suite_made-1.0.dist-info/'
    wheel.writestr(info + 'METADATA', 'Metadata-Version: 2.1\\nName: suite-made\\nVersion: 1.0\\n')
    wheel.writestr(info + 'WHEEL', 'Wheel-Version: 1.0\\nRoot-Is-Purelib: true\\nTag: py3-none-any\\n')
    wheel.writestr(info + 'RECORD', '')
print(made.getvalue().hex())";

/// Serves the index of one project, and its wheel.
pub(super) struct Registry {
    port: u16,
    shared: Arc<Shared>,
}

struct Shared {
    wheel: Vec<u8>,
    /// Whether it sends another wheel than the one that it lists.
    altered: AtomicBool,
    requests: Mutex<HashMap<String, usize>>,
}

impl Registry {
    pub(super) async fn start() -> Self {
        let made = Command::new("python3").args(["-c", MAKE]).output().unwrap();
        let hex = String::from_utf8(made.stdout).unwrap();
        let hex = hex.trim();
        let bytes = (0..hex.len()).step_by(2);
        let wheel = bytes.map(|at| u8::from_str_radix(&hex[at..at + 2], 16).unwrap());
        let shared = Arc::new(Shared {
            wheel: wheel.collect(),
            altered: AtomicBool::new(false),
            requests: Mutex::default(),
        });
        let listener = TcpListener::bind("127.0.0.2:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let serving = Arc::clone(&shared);
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let shared = Arc::clone(&serving);
                // A client may go away at any time.
                tokio::spawn(async move { shared.answer(stream).await.ok() });
            }
        });
        Self { port, shared }
    }

    /// A configuration that takes Python's packages from here.
    pub(super) fn config(&self) -> String {
        format!(
            "[network]\nallowedCidrs = [\"127.0.0.0/8\"]\n[runtimes.python]\nregistries = [\"127.0.0.2\"]\n\
             [packages]\npythonIndex = \"http://127.0.0.2:{}/simple\"\n",
            self.port
        )
    }

    pub(super) fn wheel(&self) -> &[u8] {
        &self.shared.wheel
    }

    /// How often the wheel was fetched.
    pub(super) fn fetched(&self) -> usize {
        let requests = self.shared.requests.lock().unwrap();
        requests.get(WHEEL).copied().unwrap_or_default()
    }

    pub(super) fn alter(&self, altered: bool) {
        self.shared.altered.store(altered, Ordering::SeqCst);
    }
}

impl Shared {
    async fn answer(&self, stream: TcpStream) -> std::io::Result<()> {
        let mut stream = BufReader::new(stream);
        let mut first = String::new();
        stream.read_line(&mut first).await?;
        loop {
            let mut line = String::new();
            stream.read_line(&mut line).await?;
            if line.trim().is_empty() {
                break;
            }
        }
        let path = first.split(' ').nth(1).unwrap().to_owned();
        *self
            .requests
            .lock()
            .unwrap()
            .entry(path.clone())
            .or_default() += 1;
        let (status, body) = match path.as_str() {
            "/simple/suite-made/" => ("200 OK", self.page()),
            WHEEL => {
                // So that others ask meanwhile.
                tokio::time::sleep(Duration::from_millis(500)).await;
                let mut wheel = self.wheel.clone();
                wheel[2000] ^= u8::from(self.altered.load(Ordering::SeqCst));
                ("200 OK", wheel)
            }
            _ => ("404 Not Found", Vec::new()),
        };
        let length = body.len();
        let head =
            format!("HTTP/1.1 {status}\r\nContent-Length: {length}\r\nConnection: close\r\n\r\n");
        stream.write_all(head.as_bytes()).await?;
        stream.write_all(&body).await?;
        stream.flush().await
    }

    fn page(&self) -> Vec<u8> {
        let hash = Sha256::digest(&self.wheel);
        let hash: String = hash.iter().map(|byte| format!("{byte:02x}")).collect();
        let name = WHEEL.rsplit('/').next().unwrap();
        format!(
            "{{\"meta\": {{\"api-version\": \"1.0\"}}, \"name\": \"suite-made\", \"files\": [{{\"filename\": \"{name}\", \
             \"url\": \"../..{WHEEL}\", \"hashes\": {{\"sha256\": \"{hash}\"}}, \"yanked\": false}}]}}"
        )
        .into_bytes()
    }
}
