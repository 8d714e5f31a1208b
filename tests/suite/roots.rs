//! Roots of the native backend: pinned programs in place of the host's.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::process::Command;

use tempfile::TempDir;

use crate::harness::{ISOL8, Kind, Server, python, source, state_directory};
use crate::hostile::filesystems::{NATIVE, leaks};
use isol8_client::Runtime;

/// The installation scripts that pin a version, the name of the version in each, and a program that prints the version it
/// runs in.
const PINNED: [(Runtime, &str, &str, &str); 3] = [
    (
        Runtime::Node,
        include_str!("../../images/install/node"),
        "NODE_VERSION=",
        "console.log(process.versions.node)",
    ),
    (
        Runtime::Bun,
        include_str!("../../images/install/bun"),
        "BUN_VERSION=",
        "console.log(Bun.version)",
    ),
    (
        Runtime::Deno,
        include_str!("../../images/install/deno"),
        "DENO_VERSION=",
        "console.log(Deno.version.deno)",
    ),
];

fn pinned(script: &'static str, name: &str) -> &'static str {
    let mut lines = script.lines();
    lines.find_map(|line| line.strip_prefix(name)).unwrap()
}

/// A directory that roots are in, and the configuration that says so. An engine that does not answer has
/// them bootstrapped.
struct Roots {
    directory: TempDir,
    engine: &'static str,
}

impl Roots {
    fn new(engine: &'static str) -> Self {
        let directory = state_directory();
        Self { directory, engine }
    }

    fn config(&self) -> String {
        let bundle = std::env::var("SSL_CERT_FILE").unwrap_or_default();
        let root = self.directory.path().display();
        let engine = self.engine;
        format!(
            "[docker]\nhost = \"{engine}\"\n[images]\nroot = \"{root}\"\ncaBundle = \"{bundle}\"\n"
        )
    }

    /// Returns the output of `isol8 setup`.
    fn set_up(&self, more: &[&str]) -> String {
        let file = self.directory.path().join("config.toml");
        fs::write(&file, self.config()).unwrap();
        let mut command = Command::new(ISOL8);
        command
            .args(["setup", "--backend", "native", "--config"])
            .arg(&file);
        let output = command.args(more).env_remove("RUST_LOG").output().unwrap();
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{said}");
        String::from_utf8(output.stdout).unwrap()
    }
}

async fn the_pinned_versions_run(server: &Server) {
    for (runtime, script, name, code) in PINNED {
        let result = server
            .client()
            .execute(source(runtime, code))
            .await
            .unwrap();
        assert_eq!(
            result.stdout,
            pinned(script, name),
            "{runtime}: {}",
            result.stderr
        );
    }
    // The host's own programs are not there.
    assert!(Path::new("/usr/sbin/dockerd").exists());
    let code = "import os; print(os.path.exists('/usr/sbin/dockerd'))";
    assert_eq!(server.python(code).await.stdout, "False");
}

#[tokio::test]
async fn images_are_unpacked_once_and_sandboxes_keep_the_root_that_they_have() {
    let roots = Roots::new("");
    let said = roots.set_up(&[]);
    assert!(said.contains("unpacking the image for node"), "{said}");
    let server = Server::configured(Kind::Native, &roots.config());
    the_pinned_versions_run(&server).await;
    assert_eq!(leaks(&server, &NATIVE).await, BTreeSet::new());
    let session = server.session("s");
    session.execute(python("x = 41")).await.unwrap();

    let said = roots.set_up(&[]);
    assert_eq!(
        said.matches("is up to date").count(),
        Runtime::ALL.len(),
        "{said}"
    );
    let link = roots.directory.path().join("python");
    let before = fs::read_link(&link).unwrap();
    let said = roots.set_up(&["--force"]);
    assert!(!said.contains("is up to date"), "{said}");
    assert_ne!(fs::read_link(&link).unwrap(), before);
    // A module that it has not loaded yet comes from the root that it was made on.
    let result = session
        .execute(python("import colorsys; print(x + 1)"))
        .await;
    assert_eq!(result.unwrap().stdout, "42");
    assert_eq!(server.python("print(6 * 7)").await.stdout, "42");
    server.stop();
}

#[tokio::test]
async fn without_an_engine_they_are_made_of_packages() {
    let roots = Roots::new("unix:///nowhere/docker.sock");
    let said = roots.set_up(&[]);
    assert!(
        said.contains("bootstrapping a root for bash, python"),
        "{said}"
    );
    let server = Server::configured(Kind::Native, &roots.config());
    the_pinned_versions_run(&server).await;
    server.stop();
}

#[tokio::test]
async fn a_root_that_is_missing_is_named_with_the_fix() {
    let roots = Roots::new("");
    let server = Server::configured(Kind::Native, &roots.config());
    let error = server
        .client()
        .execute(python("print(1)"))
        .await
        .unwrap_err();
    let text = error.to_string();
    for part in ["images.root", "isol8 setup --backend native"] {
        assert!(text.contains(part), "{text}");
    }
    server.stop();
}
