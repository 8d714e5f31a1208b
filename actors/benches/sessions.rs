//! Measures how long it takes to list many sessions: `cargo bench --package isol8-actors --bench sessions`.
//!
//! Makes 10,000 sessions over the fake backend and prints the median of 50 listings.

#![allow(clippy::unwrap_used)] // A benchmark that cannot measure stops.

use std::sync::Arc;
use std::time::Instant;

use futures::stream::{self, StreamExt as _};
use isol8_actors::pool::{PoolSize, SandboxDefaults};
use isol8_actors::{Job, Program, Service, ServiceConfig};
use isol8_api::Runtime;
use isol8_backend::fake::FakeBackend;

const SESSIONS: usize = 10_000;
const LISTINGS: usize = 50;

fn main() {
    actix::System::new().block_on(async {
        let mut config = ServiceConfig::default();
        config.sessions.max_sessions = SESSIONS;
        config.pool.size = PoolSize::fixed(0, 0);
        let service = Service::start(Arc::new(FakeBackend::new()), config);
        stream::iter(0..SESSIONS)
            .for_each_concurrent(10, |number| make(&service, number))
            .await;
        let mut times = Vec::new();
        for _ in 0..LISTINGS {
            let begun = Instant::now();
            let listed = service.sessions(None).await.unwrap();
            times.push(begun.elapsed());
            assert_eq!(listed.len(), SESSIONS);
        }
        times.sort();
        println!("listing {SESSIONS} sessions: p50 {:?}", times[LISTINGS / 2]);
    });
}

async fn make(service: &Service, number: usize) {
    let id = format!("session-{number}").parse().unwrap();
    let tenant = format!("tenant-{}", number % 4).parse().unwrap();
    let spec = SandboxDefaults::default().spec(Runtime::Python);
    let job = Job::new(Program::source("print 1", Runtime::Python), spec).unwrap();
    service.execute(tenant, Some(id), job).await.unwrap();
}
