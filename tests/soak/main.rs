//! The soak: hours of bad luck in minutes, and nothing may be left of it.
//!
//! Four tenants with twice as many callers as there is capacity run programs with and without sessions,
//! and go away in the middle of some; one in a hundred calls of the backend fails; containers are killed
//! at random. Every request must have a right result or a proper error, every variable of a session its
//! value unless a loss was told, and at the end there is no sandbox, cgroup, mount, directory, file
//! descriptor or session more than before, and little more memory.
//!
//! `cargo test --test soak` takes a minute for each backend; `SOAK_SECONDS=3600` an hour.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)] // A failed expectation fails it.

mod faults;
#[allow(dead_code, unused_imports, unused_macros)] // The suite uses all of it.
#[path = "../suite/harness.rs"]
mod harness;
mod load;

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::{Duration, Instant};

use faults::FaultyBackend;
use harness::Kind;
use isol8_actors::Service;
use isol8_actors::service::ServiceState;
use isol8_config::{Config, Overrides};
use isol8_engine::backends::{self, Needs, Purpose};
use load::{Load, Tally};

/// Jobs that run at once; there are twice as many callers.
const CAPACITY: usize = 8;

/// Growth of the server's own memory that is allowed while it only repeats itself: allocators keep some of the memory
/// that they once needed.
const ROOM_TO_GROW: u64 = 24 << 20;

/// Between two kills.
const KILL_PAUSE: Duration = Duration::from_millis(700);

fn main() -> ExitCode {
    // Before any thread is started: the spawner forks.
    if backends::is_spawner() {
        return isol8_backend_native::run_spawner(None);
    }
    let filter = std::env::args().nth(1);
    if filter.is_some_and(|filter| !filter.starts_with('-') && !"soak".contains(&filter)) {
        println!("soak: not run, because other tests were asked for by name");
        return ExitCode::SUCCESS;
    }
    let seconds = std::env::var("SOAK_SECONDS").map_or(60, |text| text.parse().unwrap());
    for kind in [Kind::Native, Kind::Docker] {
        let length = Duration::from_secs(seconds);
        actix_web::rt::System::new().block_on(soak(kind, length));
    }
    ExitCode::SUCCESS
}

fn configuration(state: &Path, kind: Kind) -> Config {
    let file = state.join("config.toml");
    let text = format!(
        "maxConcurrent = {CAPACITY}\nmaxConcurrentPerTenant = 4\nmaxQueued = 6\n\
         [runtimes.python]\npoolSize = {{ clean = 4, dirty = 6 }}\n"
    );
    fs::write(&file, text).unwrap();
    let overrides = Overrides {
        config: Some(file),
        backend: Some(kind.name().parse().unwrap()),
        ..Overrides::default()
    };
    let state = state.to_str().unwrap().to_owned();
    let environment = |name: &str| (name == "ISOL8_STATE_DIR").then(|| state.clone());
    Config::load(&overrides, &environment).unwrap()
}

async fn soak(kind: Kind, length: Duration) {
    let state = harness::state_directory();
    let descriptors = open_descriptors();
    let config = configuration(state.path(), kind);
    let started = backends::start(&config, Purpose::Serve(None), &Needs::default()).await;
    let backend = started.unwrap().backend;
    let backend = Arc::new(FaultyBackend::new(backend, state.path(), kind));
    let service = Service::start(
        backend.clone(),
        isol8_engine::active::ActiveConfig::new(config)
            .unwrap()
            .service(),
    );
    let load = Load::new(service.clone());

    let start = Instant::now();
    let callers = load.start(2 * CAPACITY, start + length);
    // Memory that is kept from the first load is no leak.
    tokio::time::sleep(length / 4).await;
    let memory = resident_bytes();
    while start.elapsed() < length {
        tokio::time::sleep(KILL_PAUSE).await;
        backend.kill_one().await;
    }
    let mut tally = Tally::default();
    for caller in callers {
        tally.add(&caller.await.expect("a caller found something wrong"));
    }
    let grown = resident_bytes().saturating_sub(memory);

    let observed = idle(&service).await;
    assert_eq!(
        observed.restarts,
        isol8_actors::service::RestartCounts::default()
    );
    // A hundredth of the removals fails here too.
    let _ = service.shutdown().await;
    drop((service, load));
    let faults = backend.faults();
    drop(backend);

    settled(kind, state.path(), descriptors).await;
    println!(
        "{} for {} s: {tally}; {faults}; grew by {} kB",
        kind.name(),
        length.as_secs(),
        grown >> 10
    );
    assert!(tally.right > 0 && grown < ROOM_TO_GROW);
}

/// Waits until no job has a sandbox or a place in the queue, and returns what is observed then. A caller that goes away
/// does not wait for its run, which ends a moment later.
async fn idle(service: &Service) -> ServiceState {
    let deadline = Instant::now() + harness::PATIENCE;
    loop {
        let observed = service.observe().await.unwrap();
        let admission = observed.admission;
        if observed.pool.leased + admission.running + admission.waiting == 0 {
            return observed;
        }
        assert!(Instant::now() < deadline, "not released: {observed:?}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

/// Nothing is left, at the latest a while after the end.
async fn settled(kind: Kind, state: &Path, descriptors: usize) {
    let deadline = Instant::now() + harness::PATIENCE;
    loop {
        let traces = harness::traces(kind, state);
        let opened = open_descriptors();
        if traces.is_empty() && opened <= descriptors {
            return;
        }
        let left = (traces, opened);
        assert!(
            Instant::now() < deadline,
            "left: {left:#?}, descriptors before: {descriptors}, {:#?}",
            descriptor_targets()
        );
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

fn open_descriptors() -> usize {
    fs::read_dir("/proc/self/fd").unwrap().count()
}

fn descriptor_targets() -> BTreeSet<String> {
    let entries = fs::read_dir("/proc/self/fd").unwrap().flatten();
    let targets = entries.filter_map(|entry| fs::read_link(entry.path()).ok());
    targets.map(|path| path.display().to_string()).collect()
}

fn resident_bytes() -> u64 {
    let status = fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find(|line| line.starts_with("VmRSS:"));
    let kilobytes = line.and_then(|line| line.split_whitespace().nth(1));
    kilobytes.unwrap().parse::<u64>().unwrap() << 10
}
