//! Requests to the egress proxy. No bytes make it panic, hang, or answer with success where no host may be
//! reached: every name resolves to a private address, which the rules refuse, and so are addresses in a request,
//! which may be public ones.
#![no_main]

use std::io;
use std::net::IpAddr;
use std::sync::{Arc, LazyLock};
use std::time::Duration;

use isol8_egress::{Egress, EgressConfig, EgressLimits, Filter, Resolve, RunEgress};
use libfuzzer_sys::fuzz_target;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::runtime::Runtime;

/// Longest time of one input. A connection whose request is incomplete ends with the client's end.
const DEADLINE: Duration = Duration::from_secs(5);

/// Resolves every name to a private address.
#[derive(Debug)]
struct Private;

#[async_trait::async_trait]
impl Resolve for Private {
    async fn resolve(&self, _name: &str) -> io::Result<Vec<IpAddr>> {
        Ok(vec![IpAddr::from([10, 0, 0, 1])])
    }
}

static RUNTIME: LazyLock<Runtime> = LazyLock::new(|| {
    let mut builder = tokio::runtime::Builder::new_current_thread();
    // Time passes only where everything waits for it: refusals are put off by up to 100 ms.
    builder.enable_time().start_paused(true);
    builder.build().expect("a runtime starts")
});

static EGRESS: LazyLock<Egress> = LazyLock::new(|| {
    let config = EgressConfig {
        blacklist: vec![r"^[0-9.]+$".to_owned(), ":".to_owned()],
        limits: EgressLimits {
            header_bytes: 8192,
            ..EgressLimits::default()
        },
        ..EgressConfig::default()
    };
    Egress::with_resolver(config, Arc::new(Private)).expect("the configuration is valid")
});

fn run() -> RunEgress {
    let policy = EGRESS.policy(&Filter::default()).expect("no patterns");
    EGRESS.run(policy, true)
}

fuzz_target!(|input: &[u8]| {
    RUNTIME.block_on(async {
        let run = run();
        let (mut client, server) = tokio::io::duplex(input.len() + 1);
        let serving = run.serve(server);
        let asking = async {
            // The proxy may close the connection at the first faulty request.
            let _ = client.write_all(input).await;
            let _ = client.shutdown().await;
            let mut answer = Vec::new();
            let _ = client.read_to_end(&mut answer).await;
            answer
        };
        let both = async { tokio::join!(serving, asking).1 };
        let answer = tokio::time::timeout(DEADLINE, both).await;
        let answer = answer.expect("the connection ends with its client");
        for line in answer.split(|byte| *byte == b'\n') {
            assert!(
                !line.starts_with(b"HTTP/1.1 2"),
                "{}",
                String::from_utf8_lossy(&answer)
            );
        }
    });
});
