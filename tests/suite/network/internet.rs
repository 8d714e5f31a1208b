//! A stand-in for the internet: a web server of the test's own, on addresses of loopback that are not this machine's
//! name for itself.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use rcgen::{CertifiedKey, generate_simple_self_signed};
use tokio::io::{
    AsyncBufReadExt as _, AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _, BufReader,
};
use tokio::net::TcpListener;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::ServerConfig;
use tokio_rustls::rustls::pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};

/// A web server. `GET /hello` answers with a text, `/large/N` with N bytes, `/to/URL` redirects there; a
/// `POST` is answered with the sum of its bytes.
pub(crate) struct Internet {
    pub(crate) port: u16,
    requests: Arc<AtomicUsize>,
}

impl Internet {
    pub(crate) async fn start() -> Self {
        Self::serve(None).await
    }

    /// A server that speaks TLS, as 127.0.0.2, and the certificate to trust for it.
    pub(crate) async fn over_tls() -> (Self, String) {
        let names = vec!["127.0.0.2".to_owned()];
        let CertifiedKey { cert, signing_key } = generate_simple_self_signed(names).unwrap();
        let key = PrivateKeyDer::from(PrivatePkcs8KeyDer::from(signing_key.serialize_der()));
        let ring = tokio_rustls::rustls::crypto::ring::default_provider();
        let config = ServerConfig::builder_with_provider(Arc::new(ring))
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(vec![cert.der().clone()], key)
            .unwrap();
        let acceptor = TlsAcceptor::from(Arc::new(config));
        (Self::serve(Some(acceptor)).await, cert.pem())
    }

    async fn serve(tls: Option<TlsAcceptor>) -> Self {
        let listener = TcpListener::bind("0.0.0.0:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let requests = Arc::<AtomicUsize>::default();
        let counted = Arc::clone(&requests);
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                counted.fetch_add(1, Ordering::SeqCst);
                let tls = tls.clone();
                // A client may go away at any time, and one that trusts no certificate here does.
                tokio::spawn(async move {
                    match tls {
                        None => answer(stream).await.ok(),
                        Some(tls) => answer(tls.accept(stream).await.ok()?).await.ok(),
                    }
                });
            }
        });
        Self { port, requests }
    }

    /// Connections so far.
    pub(crate) fn requests(&self) -> usize {
        self.requests.load(Ordering::SeqCst)
    }

    pub(crate) fn url(&self, path: &str) -> String {
        format!("http://127.0.0.2:{}{path}", self.port)
    }
}

/// The bytes of `/large/N`, in pieces.
fn pattern() -> Vec<u8> {
    (0..=250).cycle().take(251 * 256).collect()
}

async fn answer(stream: impl AsyncRead + AsyncWrite + Unpin) -> std::io::Result<()> {
    let mut stream = BufReader::new(stream);
    let mut head = Vec::new();
    loop {
        let mut line = String::new();
        stream.read_line(&mut line).await?;
        if line.trim().is_empty() {
            break;
        }
        head.push(line.trim().to_owned());
    }
    let Some(first) = head.first() else {
        return Ok(()); // the client does not trust this server
    };
    let mut words = first.split(' ');
    let (method, path) = (words.next().unwrap(), words.next().unwrap());
    if method == "POST" {
        return take(stream, &head).await;
    }
    if let Some(target) = path.strip_prefix("/to/") {
        let head = format!(
            "HTTP/1.1 302 Found\r\nLocation: {target}\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
        );
        return stream.write_all(head.as_bytes()).await;
    }
    let Some(size) = path.strip_prefix("/large/") else {
        return respond(stream, "hello from outside").await;
    };
    let mut left: usize = size.parse().unwrap();
    let head = format!("HTTP/1.1 200 OK\r\nContent-Length: {left}\r\nConnection: close\r\n\r\n");
    stream.write_all(head.as_bytes()).await?;
    let piece = pattern();
    while left > 0 {
        let size = left.min(piece.len());
        stream.write_all(&piece[..size]).await?;
        left -= size;
    }
    stream.flush().await
}

async fn take<S>(mut stream: BufReader<S>, head: &[String]) -> std::io::Result<()>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let length = head.iter().find_map(|line| {
        let (name, value) = line.split_once(':')?;
        name.eq_ignore_ascii_case("content-length")
            .then(|| value.trim().parse::<u64>().unwrap())
    });
    let mut body = (&mut stream).take(length.unwrap());
    let mut sum = 0_u64;
    let mut piece = vec![0; 1 << 16];
    loop {
        let size = body.read(&mut piece).await?;
        if size == 0 {
            break;
        }
        sum += piece[..size]
            .iter()
            .map(|byte| u64::from(*byte))
            .sum::<u64>();
    }
    respond(stream, &sum.to_string()).await
}

async fn respond<S>(mut stream: BufReader<S>, text: &str) -> std::io::Result<()>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let length = text.len();
    let answer =
        format!("HTTP/1.1 200 OK\r\nContent-Length: {length}\r\nConnection: close\r\n\r\n{text}");
    stream.write_all(answer.as_bytes()).await?;
    stream.flush().await
}
