//! The documentation is run as it stands there.

use std::process::Command;

use crate::harness::ISOL8;

#[test]
fn every_block_of_the_documentation_does_what_it_says() {
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/scripts/readme");
    for backend in ["native", "docker"] {
        let output = Command::new(script)
            .env("ISOL8", ISOL8)
            .env("ISOL8_BACKEND", backend)
            .output()
            .unwrap();
        let told = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{backend}: {told}");
    }
}
