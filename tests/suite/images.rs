//! Images with packages in them. Images that are built here have names of this process's own.

use std::fs;
use std::process::{Command, Output};
use std::sync::atomic::{AtomicUsize, Ordering};

use isol8_client::{
    ClientError, ErrorCode, ExecutionRequest, ExecutionResult, Options, RemoteIsol8, Runtime,
};
use serde_json::json;
use tempfile::TempDir;

use crate::harness::{ISOL8, KEY, Kind, Server, bash, python, source, state_directory, until};

/// Names of images, removed in the end with what they name.
struct Images(Vec<String>);

impl Images {
    fn new<const N: usize>(names: [&str; N]) -> Self {
        static NEXT: AtomicUsize = AtomicUsize::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let unique = format!("isol8-test:prebuilt-{}-{number}", std::process::id());
        Self(names.map(|name| format!("{unique}-{name}")).into())
    }
}

impl Drop for Images {
    fn drop(&mut self) {
        // An image that was not built is as good as removed.
        let _ = docker(&["rmi", "--force"], &self.0);
    }
}

fn docker(arguments: &[&str], more: &[String]) -> Output {
    let mut docker = Command::new("docker");
    docker.args(arguments).args(more).output().unwrap()
}

/// Settings that builds need on this machine: its certificates, if a proxy inspects TLS.
fn build_config() -> String {
    let bundle = std::env::var("SSL_CERT_FILE").unwrap_or_default();
    format!("[images]\ncaBundle = \"{bundle}\"\n")
}

/// Runs a command of ours with a configuration.
fn isol8(config: &str, arguments: &[&str]) -> (bool, String) {
    let state: TempDir = state_directory();
    let file = state.path().join("config.toml");
    fs::write(&file, config).unwrap();
    let mut command = Command::new(ISOL8);
    command.args(arguments).arg("--config").arg(&file);
    command.env("ISOL8_STATE_DIR", state.path());
    let output = command.env_remove("RUST_LOG").output().unwrap();
    let text = [output.stdout, output.stderr].concat();
    (
        output.status.success(),
        String::from_utf8_lossy(&text).into(),
    )
}

fn set_up(config: &str) -> String {
    let (done, text) = isol8(config, &["setup"]);
    assert!(done, "{text}");
    text
}

fn with(packages: &[&str], mut request: ExecutionRequest) -> ExecutionRequest {
    request.install_packages = packages.iter().map(|name| (*name).to_owned()).collect();
    request.timeout_ms = Some(180_000);
    request
}

/// A run in an image that is named.
async fn run_in(
    client: &RemoteIsol8,
    image: &str,
    request: ExecutionRequest,
) -> Result<ExecutionResult, ClientError> {
    let options = Options {
        image: Some(image.to_owned()),
        ..Options::default()
    };
    client.execute_with(request, options).await
}

/// A table of `prebuiltImages`.
fn table(tag: &str, runtime: Runtime, more: &str) -> String {
    format!("[[prebuiltImages]]\ntag = \"{tag}\"\nruntime = \"{runtime}\"\n{more}\n")
}

const SIX: &str = "import six; print(six.__version__)";

/// Nothing can be installed for these.
const NO_REGISTRIES: &str =
    "[runtimes.python]\nregistries = []\n[runtimes.node]\nregistries = []\n";

#[tokio::test]
async fn a_request_gets_the_image_that_holds_its_packages() {
    let images = Images::new(["python", "node"]);
    let [python_image, node_image] = &images.0[..] else {
        unreachable!("two were named")
    };
    let packages = "installPackages = [\"six==1.16.0\", \"Toposort\"]\n\
                    setupScript = \"id -u > /opt/made && touch /sandbox/gone\"";
    let config = build_config()
        + NO_REGISTRIES
        + &table(python_image, Runtime::Python, packages)
        + &table(
            node_image,
            Runtime::Node,
            "installPackages = [\"left-pad@1.3.0\"]",
        );
    let text = set_up(&config);
    assert!(text.contains(&format!("{python_image} is built")), "{text}");
    let text = set_up(&config);
    assert!(
        text.contains(&format!("{python_image} is up to date")),
        "{text}"
    );

    let server = Server::configured(Kind::Docker, &config);
    let client = server.client();
    for packages in [
        &["six"][..],
        &["six==1.16.0"],
        &["toposort", "six"],
        &["six"],
    ] {
        let result = client.execute(with(packages, python(SIX))).await.unwrap();
        assert_eq!(result.stdout, "1.16.0", "{packages:?} {}", result.stderr);
    }
    let code = "import os; print(open('/opt/made').read().strip(), os.listdir('/sandbox'))";
    let made = client.execute(with(&["six"], python(code))).await.unwrap();
    assert_eq!(made.stdout, "0 ['main.py']", "{}", made.stderr);
    let error = client.execute(with(&["six==1.15.0"], python(SIX))).await;
    assert_eq!(error.unwrap_err().code(), Some(ErrorCode::Unsupported));
    let plain = client.execute(python(SIX)).await.unwrap();
    assert_eq!(plain.exit_code, 1, "{}", plain.stdout);

    let import = "import pad from 'left-pad'; console.log(pad('x', 3, '-'))";
    let mut require = source(
        Runtime::Node,
        "console.log(require('left-pad')('x', 3, '-'))",
    );
    require.file_extension = Some(".cjs".to_owned());
    for request in [source(Runtime::Node, import), require] {
        let result = client.execute(with(&["left-pad"], request)).await.unwrap();
        assert_eq!(
            (result.stdout.as_str(), result.stderr.as_str()),
            ("--x", "")
        );
    }

    let cleanup = reqwest::Client::new()
        .post(format!("http://{}/cleanup", server.address))
        .bearer_auth(KEY);
    let answer = cleanup.json(&json!({"images": true})).send().await.unwrap();
    assert!(answer.status().is_success());
    let there = docker(&["image", "inspect"], &images.0);
    assert!(there.status.success(), "images of the configuration went");

    a_session_stays_in_its_image(server, &config, python_image, node_image).await;
}

async fn a_session_stays_in_its_image(server: Server, config: &str, image: &str, other: &str) {
    let session = server.session("s");
    let first = with(&["six"], python("import six; x = 41"));
    session.execute(first).await.unwrap();
    let node = run_in(&server.client(), image, source(Runtime::Node, "")).await;
    let text = node.unwrap_err().to_string();
    assert!(text.contains("is an image for python"), "{text}");

    let server = Server::start_in(Kind::Docker, server.kill(), config);
    let session = server.session("s");
    let next = with(&["toposort"], python("import toposort; print(x + 1)"));
    let result = session.execute(next).await.unwrap();
    assert_eq!(result.stdout, "42", "{}", result.stderr);
    let same = run_in(&session, image, python("print(x)"));
    assert_eq!(same.await.unwrap().stdout, "41");
    let error = run_in(&session, "isol8:python", python("print(x)"));
    let error = error.await.unwrap_err();
    assert_eq!(error.code(), Some(ErrorCode::InvalidRequest), "{error}");
    assert!(error.to_string().contains(image), "{error}");
    session.stop().await.unwrap();

    let plain = server.session("plain");
    plain.execute(python("x = 1")).await.unwrap();
    let late = plain.execute(with(&["six"], python(SIX))).await;
    let text = late.unwrap_err().to_string();
    assert!(
        text.contains("the image of this session lacks six"),
        "{text}"
    );
    plain.stop().await.unwrap();

    let cell = server.session("node");
    for (code, expected) in [
        ("import pad from 'left-pad'; let x = pad('x', 3, '-')", ""),
        ("console.log(x)", "--x"),
    ] {
        let request = with(&["left-pad"], source(Runtime::Node, code));
        let result = cell.execute(request).await.unwrap();
        assert_eq!(result.stdout, expected, "{other}: {}", result.stderr);
    }
    cell.stop().await.unwrap();
    server.stop();
}

#[tokio::test]
async fn what_an_image_lacks_is_installed() {
    let images = Images::new(["python"]);
    let image = &images.0[0];
    let packages = "installPackages = [\"six==1.16.0\"]";
    let config = format!(
        "{}[network]\nallowedCidrs = [\"203.0.113.0/24\"]\n{}",
        build_config(),
        table(image, Runtime::Python, packages)
    );
    let arguments = [
        "build",
        "--base",
        "python",
        "--install",
        "six==1.16.0",
        "--tag",
        image,
    ];
    let (done, text) = isol8(&config, &arguments);
    assert!(done && text.contains("is built"), "{text}");
    let server = Server::configured(Kind::Docker, &config);
    let code = "import six, toposort; print(six.__file__.startswith('/sandbox'))";
    let request = || with(&["six", "toposort"], python(code));
    // No image holds both, so the runtime's own gets both; one that is named gets what it lacks.
    let client = server.client();
    let result = client.execute(request()).await.unwrap();
    assert_eq!(result.stdout, "True", "{}", result.stderr);
    let result = run_in(&client, image, request()).await.unwrap();
    assert_eq!(result.stdout, "False", "{}", result.stderr);
    server.stop();
}

#[tokio::test]
async fn packages_of_every_runtime_are_found() {
    let names = ["bun", "deno", "bash"];
    let images = Images::new(names);
    let pad = "import pad from 'left-pad'; console.log(pad('x', 3, '-'))";
    for ((runtime, package, code), image) in [
        (Runtime::Bun, "left-pad@1.3.0", pad),
        (Runtime::Deno, "npm:left-pad@1.3.0", pad),
        (Runtime::Bash, "jq", "echo '{\"x\": \"--x\"}' | jq -r .x"),
    ]
    .into_iter()
    .zip(&images.0)
    {
        let base = runtime.to_string();
        let arguments = [
            "build",
            "--base",
            &base,
            "--install",
            package,
            "--tag",
            image,
        ];
        let (done, text) = isol8(&build_config(), &arguments);
        assert!(done, "{text}");
        let server = Server::configured(Kind::Docker, "");
        for client in [server.client(), server.session("s")] {
            let result = run_in(&client, image, source(runtime, code)).await.unwrap();
            assert_eq!(result.stdout, "--x", "{runtime}: {}", result.stderr);
        }
        server.session("s").stop().await.unwrap();
        server.stop();
    }
}

#[tokio::test]
async fn a_server_builds_what_is_missing_while_it_serves() {
    let images = Images::new(["broken", "good"]);
    let [broken, good] = &images.0[..] else {
        unreachable!("two were named")
    };
    let script = "setupScript = \"echo it is broken; exit 3\"";
    let whole = "setupScript = \"echo made > /opt/made\"\npoolSize = 1";
    let config =
        build_config() + &table(broken, Runtime::Bash, script) + &table(good, Runtime::Bash, whole);
    let server = Server::configured(Kind::Docker, &config);
    let answer = server.client().execute(bash("echo here")).await.unwrap();
    assert_eq!(answer.stdout, "here");
    until("the good image is there, and one waits", || {
        let filter = format!("ancestor={good}");
        let waiting = docker(&["ps", "--quiet", "--filter", &filter], &[]);
        !waiting.stdout.is_empty()
    });
    let log = server.log();
    assert!(
        log.contains(&format!("image {broken} for bash cannot be built")),
        "{log}"
    );
    assert!(log.contains("it is broken"), "the log's end: {log}");
    let made = run_in(&server.client(), good, bash("cat /opt/made")).await;
    assert_eq!(made.unwrap().stdout, "made");
    server.stop();
}

#[test]
fn a_build_says_what_it_does_and_why_it_failed() {
    let images = Images::new(["bash"]);
    let tag = &images.0[0];
    let build = |arguments: &[&str]| {
        let words = ["build", "--base", "bash", "--tag", tag];
        isol8(&build_config(), &[&words[..], arguments].concat())
    };
    let (done, text) = build(&["--setup", "echo it is broken", "--setup", "exit 3"]);
    assert!(!done);
    assert!(
        text.contains(&format!("image {tag} for bash cannot be built")),
        "{text}"
    );
    assert!(text.contains("it is broken"), "{text}");
    for (arguments, expected) in [
        (&["--setup", "true"][..], "is built"),
        (&["--setup", "true"], "is up to date"),
        (&["--setup", "true", "--force"], "is built"),
        (&["--setup", "true #"], "is built"),
        (
            &["--install", "no package"],
            "--install: \"no package\" is no",
        ),
    ] {
        let (_, text) = build(arguments);
        assert!(text.contains(expected), "{arguments:?}: {text}");
    }
    let (done, text) = isol8("", &["build", "--base", "bash", "--tag", "isol8:bash"]);
    assert!(
        !done && text.contains("is the image of a runtime"),
        "{text}"
    );
}

#[tokio::test]
async fn dependencies_are_in_the_runtimes_own_image() {
    let images = Images::new(["own", "own-plain"]);
    let own = &images.0[0];
    let config = format!(
        "{}[runtimes.python]\nregistries = []\nimage = \"{own}\"\n[dependencies]\npython = [\"six==1.16.0\"]\n",
        build_config()
    );
    let without = Server::configured(Kind::Native, &config);
    let log = without.log();
    assert!(
        log.contains("ignoring prebuiltImages and dependencies"),
        "{log}"
    );
    without.stop();

    let text = set_up(&config);
    assert!(text.contains(&format!("{own} is built")), "{text}");
    let text = set_up(&config);
    assert!(!text.contains("is built"), "{text}");
    let server = Server::configured(Kind::Docker, &config);
    for request in [python(SIX), with(&["six"], python(SIX))] {
        let result = server.client().execute(request).await.unwrap();
        assert_eq!(result.stdout, "1.16.0", "{}", result.stderr);
    }
    server.stop();
}

#[tokio::test]
async fn the_native_backend_says_that_it_has_no_images() {
    let config = table("isol8-test:prebuilt-never", Runtime::Python, "");
    let server = Server::configured(Kind::Native, &config);
    let log = server.log();
    assert!(
        log.contains("ignoring prebuiltImages and dependencies"),
        "{log}"
    );
    let image = "isol8-test:prebuilt-never";
    let error = run_in(&server.client(), image, python("print('not run')")).await;
    let error = error.unwrap_err();
    assert_eq!(error.code(), Some(ErrorCode::RuntimeUnavailable), "{error}");
    let text = error.to_string();
    assert!(
        text.contains("custom images need the docker backend"),
        "{text}"
    );
    server.stop();
    let (_, doctor) = isol8(&config, &["doctor"]);
    let line = "note prebuiltImages and dependencies need the docker backend";
    assert!(doctor.contains(line), "{doctor}");
    let missing = "python no: isol8-test:prebuilt-never is missing or not up to date";
    assert!(doctor.contains(missing), "{doctor}");
}
