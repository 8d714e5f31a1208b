//! Fetches over TLS. A process of its own: what it trusts is chosen by its environment.

#![allow(clippy::unwrap_used)] // A failed expectation is the test failing.

use std::io;
use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use isol8_egress::{Egress, EgressConfig, FetchError, FetchLimits, Filter, Policy, Resolve};
use rcgen::{CertifiedKey, generate_simple_self_signed};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpListener;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::ServerConfig;
use tokio_rustls::rustls::pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};

/// Every name is here.
#[derive(Debug)]
struct Here;

#[async_trait]
impl Resolve for Here {
    async fn resolve(&self, _: &str) -> io::Result<Vec<IpAddr>> {
        Ok(vec![Ipv4Addr::LOCALHOST.into()])
    }
}

/// Says "hello" over TLS, as origin.example. Returns its port and its certificate.
async fn origin() -> (u16, String) {
    let names = vec!["origin.example".to_owned()];
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
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let Ok(mut stream) = acceptor.accept(stream).await else {
                continue; // The client trusts nothing of it.
            };
            let mut head = Vec::new();
            while !head.ends_with(b"\r\n\r\n") {
                head.push(stream.read_u8().await.unwrap());
            }
            let answer = b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello";
            stream.write_all(answer).await.unwrap();
            stream.shutdown().await.unwrap();
        }
    });
    (port, cert.pem())
}

async fn fetch(url: String) -> Result<Vec<u8>, FetchError> {
    let config = EgressConfig {
        allowed_cidrs: vec!["127.0.0.1".to_owned()],
        ports: isol8_egress::Ports::any(),
        ..EgressConfig::default()
    };
    let egress = Egress::with_resolver(config, Arc::new(Here)).unwrap();
    let limits = FetchLimits {
        max_bytes: 1000,
        timeout: Duration::from_secs(20),
        redirects: 0,
        allow_http: false,
        hosts: Policy::new(&Filter::default()).unwrap(),
    };
    egress.fetch(&url, &limits).await.map(Vec::from)
}

#[test]
fn a_text_is_fetched_over_tls_from_whom_its_certificate_is_for() {
    let runtime = tokio::runtime::Builder::new_current_thread();
    let runtime = { runtime }.enable_all().build().unwrap();
    let (port, certificate) = runtime.block_on(origin());
    let trusted = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(trusted.path(), certificate).unwrap();
    // SAFETY: this is the only test of its process, and no thread of the runtime reads the environment.
    unsafe { std::env::set_var("SSL_CERT_FILE", trusted.path()) };
    runtime.block_on(async {
        let fetched = fetch(format!("https://origin.example:{port}/")).await;
        assert_eq!(fetched.unwrap(), b"hello");
        let error = fetch(format!("https://other.example:{port}/")).await;
        let text = "other.example has a certificate that is not trusted";
        assert_eq!(error.unwrap_err().to_string(), text);
    });
}
