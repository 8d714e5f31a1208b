//! The backend that `auto` takes, the places that report it, and the findings of `isol8 doctor`.

use std::fs;
use std::os::unix::process::CommandExt as _;
use std::process::{Command, Stdio};

use serde_json::Value;

use crate::cli_remote::user::{User, stderr, stdout, succeeded};
use crate::harness::{ISOL8, KEY, Kind, Server};

const IMAGES: &str = "[[prebuiltImages]]\ntag = \"isol8-test:never\"\nruntime = \"bash\"\n";

/// The backend that a run of Python was on: Docker's sandboxes have the host name that the engine gives them.
fn taken(user: &User, arguments: &[&str]) -> String {
    let arguments = [&["run", "--debug", "-e", "print(42)"], arguments].concat();
    let output = user.keyless(&arguments).output().unwrap();
    assert_eq!(succeeded(&arguments, &output), "42\n");
    let log = stderr(&output);
    let line = log.lines().find(|line| line.contains("backend taken"));
    line.unwrap_or_else(|| panic!("{log}")).to_owned()
}

#[test]
fn a_command_takes_native_unless_images_are_configured_or_named() {
    let user = User::here();
    let line = taken(&user, &[]);
    assert!(line.contains("backend=native"), "{line}");
    fs::write(user.path("images.toml"), IMAGES).unwrap();
    let line = taken(&user, &["--config", &user.path("images.toml")]);
    assert!(
        line.contains("backend=docker") && line.contains("prebuiltImages"),
        "{line}"
    );
    let line = taken(&user, &["--image", "isol8:python"]);
    assert!(
        line.contains("backend=docker") && line.contains("--image isol8:python"),
        "{line}"
    );
    // An engine that is not there keeps nothing from working.
    fs::write(
        user.path("nowhere.toml"),
        format!("{IMAGES}[docker]\nhost = \"unix:///no/such/engine\"\n"),
    )
    .unwrap();
    let line = taken(&user, &["--config", &user.path("nowhere.toml")]);
    assert!(
        line.contains("backend=native") && line.contains("docker is no alternative"),
        "{line}"
    );
}

#[test]
fn docker_is_taken_where_the_host_has_no_such_runtime() {
    let user = User::here();
    let script = "for program in {/usr/local/bin,/usr/bin,/bin}/python3; do
        if [ -e $program ]; then mount --bind /dev/null $program || exit 1; fi
    done
    exec \"$0\" run --debug -e 'print(42)'";
    let mut command = Command::new("unshare");
    command
        .args(["--mount", "bash", "-c", script, ISOL8])
        .env("HOME", user.home.path())
        .env("ISOL8_STATE_DIR", user.home.path().join("state"))
        .current_dir(user.home.path())
        .stdin(Stdio::null());
    let output = command.output().unwrap();
    assert_eq!(stdout(&output), "42\n", "{}", stderr(&output));
    assert!(
        stderr(&output).contains("native has no python here"),
        "{}",
        stderr(&output)
    );
}

#[tokio::test]
async fn a_server_says_in_health_which_backend_it_uses_and_why() {
    let server = Server::start(Kind::Native);
    let told = server.client().health().await.unwrap();
    let reason = told.backend_reason.as_deref();
    assert_eq!(reason, Some("backend = \"native\" is set"));
    server.stop();

    for (text, kind, reason) in [
        ("", Kind::Native, "native offers all"),
        (
            "[runtimes.bash]\nimage = \"isol8:bash\"\n",
            Kind::Docker,
            "runtimes.bash.image is configured",
        ),
    ] {
        let server = Server::choosing(kind, text);
        let told = server.client().health().await.unwrap();
        assert_eq!(told.backend, kind.name(), "{told:?}");
        let why = told.backend_reason.unwrap();
        assert!(why.contains(reason), "{why}");
        server.stop();
    }
}

#[test]
fn doctor_tells_what_can_run_what_is_taken_and_how_to_mend_the_rest() {
    let user = User::here();
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = taken.local_addr().unwrap().port();
    let text =
        format!("[server]\nport = {port}\n[packages]\npythonIndex = \"https://127.0.0.1:1/\"\n");
    fs::write(user.path("own.toml"), text).unwrap();
    let arguments = ["doctor", "--config", &user.path("own.toml")];
    let output = user
        .keyless(&arguments)
        .env("ISOL8_API_KEY", KEY)
        .output()
        .unwrap();
    let text = succeeded(&arguments, &output);
    for expected in [
        "cgroups   ok: version",
        "GiB are free for ",
        &format!("another process already listens on 127.0.0.1:{port}"),
        "127.0.0.1 no: ",
        "network.allowedCidrs",
        "registry.npmjs.org ",
        "native: ready",
        "docker: ready",
        "python    ok: ",
        "deno      ok: ",
        "isol8 serve takes native: native offers all",
    ] {
        assert!(text.contains(expected), "no {expected:?} in:\n{text}");
    }
}

#[test]
fn doctor_names_images_that_another_version_has_built() {
    let user = User::here();
    let tag = format!("isol8-test:outdated-{}", std::process::id());
    let build = format!(
        "printf 'FROM isol8:bash\\nLABEL isol8.hash=older\\n' | docker build --quiet --tag {tag} -"
    );
    let mut shell = Command::new("bash");
    let built = shell.args(["-c", &build]).output().unwrap();
    assert!(built.status.success(), "{}", stderr(&built));
    let text = format!("[runtimes.bash]\nimage = \"{tag}\"\n");
    fs::write(user.path("own.toml"), text).unwrap();
    let arguments = ["doctor", "--config", &user.path("own.toml")];
    let output = user.keyless(&arguments).output().unwrap();
    let _ = Command::new("docker")
        .args(["rmi", "--force", &tag])
        .output();
    let text = succeeded(&arguments, &output);
    assert!(text.contains(&format!("{tag} is outdated")), "{text}");
    assert!(text.contains("run `isol8 setup`"), "{text}");
}

#[test]
fn cleanup_looks_at_every_backend_that_there_is() {
    let user = User::here();
    let arguments = ["cleanup", "--force", "--images", "--json"];
    let output = user.keyless(&arguments).output().unwrap();
    let told: Value = serde_json::from_str(&succeeded(&arguments, &output)).unwrap();
    assert_eq!(told["ok"], true, "{told}");
    assert!(told["images"]["removed"].is_number(), "{told}");
    // Also where one of them is not there.
    let config = "[docker]\nhost = \"unix:///no/such/engine\"\n";
    fs::write(user.path("own.toml"), config).unwrap();
    let own = user.path("own.toml");
    let arguments = [&arguments[..], &["--config", &own]].concat();
    let output = user.keyless(&arguments).output().unwrap();
    succeeded(&arguments, &output);
}

#[test]
fn an_ordinary_user_has_native_where_there_is_no_engine_for_him() {
    let (uid, gid) = (65_534, 65_534);
    let state = tempfile::tempdir_in("/var/tmp").unwrap();
    std::os::unix::fs::chown(state.path(), Some(uid), Some(gid)).unwrap();
    let executable = state.path().join("isol8");
    fs::copy(ISOL8, &executable).unwrap();
    let output = Command::new(&executable)
        .args(["run", "--debug", "-e", "print(42)"])
        .env_clear()
        .env("ISOL8_STATE_DIR", state.path().join("state"))
        .current_dir("/")
        .uid(uid)
        .gid(gid)
        .output()
        .unwrap();
    assert_eq!(stdout(&output), "42\n", "{}", stderr(&output));
    assert!(
        stderr(&output).contains("native falls short"),
        "{}",
        stderr(&output)
    );
}
