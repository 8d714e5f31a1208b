//! Tables of programs and cells, one test per case, so that a case can be run by its name:
//!
//! ```sh
//! just suite cells::native::node::signals_are_heard_in_later_cells
//! ```
//!
//! The cases of a backend share a server, because starting a server takes longer than a case. The first case starts the
//! server; after the last case the server is ended, and must leave nothing behind.

#![allow(clippy::unwrap_used, clippy::expect_used)] // A failed expectation is the test failing.

mod cells;
mod compare;
#[path = "../suite/harness.rs"]
#[allow(dead_code, unused_imports, unused_macros)] // The suite uses all of it.
mod harness;
mod shared_server;

use std::collections::BTreeSet;
use std::process::ExitCode;

use isol8_client::Runtime;
use libtest_mimic::{Arguments, Trial};

use crate::harness::Server;
use crate::shared_server::SharedServer;

static SERVERS: [SharedServer; 2] = [
    SharedServer::new(harness::Kind::Native),
    SharedServer::new(harness::Kind::Docker),
];

fn main() -> ExitCode {
    let arguments = Arguments::from_args();
    let mut tests: Vec<Trial> = SERVERS
        .iter()
        .flat_map(|server| {
            let tables = cells::tests(server).into_iter();
            tables.chain(compare::tests(server))
        })
        .collect();
    tests.sort_by(|one, other| one.name().cmp(other.name()));
    let names: BTreeSet<&str> = tests.iter().map(Trial::name).collect();
    assert_eq!(names.len(), tests.len(), "two cases have the same name");
    let conclusion = libtest_mimic::run(&arguments, tests);
    for server in &SERVERS {
        server.stop();
    }
    conclusion.exit_code()
}

/// Returns the test of a case: `check` returns the differences from what the case expects, one per line.
fn test<F>(
    server: &'static SharedServer,
    table: &str,
    runtime: Runtime,
    case: &str,
    check: F,
) -> Trial
where
    F: AsyncFnOnce(&Server) -> String + Send + 'static,
{
    let name = format!(
        "{table}::{}::{runtime}::{}",
        server.kind().name(),
        identifier(case)
    );
    Trial::test(name, move || {
        let executor = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()?;
        let differences = server.with(|server| executor.block_on(check(server)));
        match differences.is_empty() {
            true => Ok(()),
            false => Err(differences.into()),
        }
    })
}

/// Returns the name of a case as one word, which a shell takes without quotation marks.
fn identifier(case: &str) -> String {
    let words = case.split(|letter: char| !letter.is_alphanumeric());
    let words: Vec<&str> = words.filter(|word| !word.is_empty()).collect();
    words.join("_")
}
