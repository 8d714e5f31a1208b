//! Packages that a request brings with it. The packages come from the real registries.

mod by_code;
mod cache;
mod registry;

use std::path::Path;

use isol8_api::{EventKind, Options};
use isol8_client::{ErrorCode, ExecutionRequest, Runtime};

use crate::harness::{Kind, Server, on_each_backend, python, source};

on_each_backend!(
    with super::CONFIG;
    what_a_request_installs_is_there_for_it_alone,
    a_session_keeps_its_packages_over_a_restart,
    every_package_manager_does_its_part,
    user_code_reaches_no_registry,
    what_cannot_be_installed_says_why_and_harms_nothing,
    only_names_of_packages_are_taken,
    without_registries_nothing_is_installed,
    files_of_the_session_do_not_stand_in_for_pip,
    uv_installs_where_the_system_has_it,
    the_installation_reaches_the_registries_only,
    an_installation_has_a_clock_of_its_own,
    an_installation_that_needs_too_much_memory_says_so,
    a_registry_that_is_refused_is_named_with_the_key_to_change,
    what_an_installation_prints_is_none_of_the_program_s_output,
    requirements_and_ranges_are_taken_whole,
);

/// Names lead to addresses of documentation where a mirror stands in for the registries.
const CONFIG: &str = "[network]\nallowedCidrs = [\"203.0.113.0/24\"]\n";

/// As long as a slow registry takes on a slow machine.
const TIMEOUT_MS: u64 = 180_000;

fn with(packages: &[&str], mut request: ExecutionRequest) -> ExecutionRequest {
    request.install_packages = packages.iter().map(|name| (*name).to_owned()).collect();
    request.timeout_ms = Some(TIMEOUT_MS);
    request
}

const SORT: &str =
    "import toposort, importlib.metadata; print(importlib.metadata.version('toposort'))";

async fn what_a_request_installs_is_there_for_it_alone(server: Server) {
    let client = server.client();
    let installed = client.execute(with(&["toposort==1.10"], python(SORT)));
    let result = installed.await.unwrap();
    assert_eq!(
        (result.stdout.as_str(), result.stderr.as_str()),
        ("1.10", "")
    );
    let code = "import os; print(os.listdir('/sandbox'), 'HTTP_PROXY' in os.environ)";
    let result = client.execute(python(code)).await.unwrap();
    assert_eq!(result.stdout, "['main.py'] False");
    server.stop();
}

async fn a_session_keeps_its_packages_over_a_restart(server: Server) {
    let kind = server.kind;
    let session = server.session("s");
    session.execute(python("x = 41")).await.unwrap();
    let request = with(&["toposort==1.10"], python("print(x + 1)"));
    assert_eq!(session.execute(request).await.unwrap().stdout, "42");
    assert_eq!(session.execute(python(SORT)).await.unwrap().stdout, "1.10");
    let server = Server::start_in(kind, server.kill(), CONFIG);
    let session = server.session("s");
    let code = format!("{SORT}\nprint(x)");
    assert_eq!(
        session.execute(python(&code)).await.unwrap().stdout,
        "1.10\n41"
    );
    session.stop().await.unwrap();
    server.stop();
}

async fn every_package_manager_does_its_part(server: Server) {
    let pad = "import pad from 'left-pad'; console.log(pad('x', 3, '-'))";
    let npm = "import pad from 'npm:left-pad'; console.log(pad('x', 3, '-'))";
    for (runtime, package, code) in [
        (Runtime::Node, "left-pad@1.3.0", pad),
        (Runtime::Bun, "left-pad@1.3.0", pad),
        (Runtime::Deno, "left-pad@1.3.0", pad),
        (Runtime::Deno, "npm:left-pad@1.3.0", npm),
    ] {
        let request = || with(&[package], source(runtime, code));
        let result = server.client().execute(request()).await.unwrap();
        assert_eq!(result.stdout, "--x", "{runtime}: {}", result.stderr);
        let session = server.session(&format!("{runtime}"));
        // A deno that runs already does not see what was added to `deno.json`.
        if runtime == Runtime::Deno && code == pad {
            continue;
        }
        session
            .execute(source(runtime, "let x = 41"))
            .await
            .unwrap();
        let result = session.execute(request()).await.unwrap();
        assert_eq!(result.stdout, "--x", "{runtime}: {}", result.stderr);
        let later = source(runtime, "console.log(x + 1, typeof pad)");
        let result = session.execute(later).await.unwrap();
        assert_eq!(result.stdout, "42 function", "{runtime}: {}", result.stderr);
        session.stop().await.unwrap();
    }
    server.stop();
}

async fn user_code_reaches_no_registry(server: Server) {
    let code = "import socket, urllib.request, os
print([name for name in os.environ if 'proxy' in name.lower() or name.startswith('PIP_') and name.split('_')[1] not in ('BREAK', 'CERT', 'DISABLE')])
for port in range(8110, 8130):
    try: socket.create_connection(('127.0.0.1', port), timeout=1); print('something listens')
    except OSError: pass
try: urllib.request.urlopen('https://pypi.org/simple/toposort/', timeout=5); print('reached')
except OSError: print('unreachable')";
    let request = with(&["toposort==1.10"], python(code));
    let mut request = request;
    request.setup_script = Some("! env | grep -i proxy >&2".to_owned());
    let result = server.client().execute(request).await.unwrap();
    assert_eq!(result.stdout, "[]\nunreachable", "{}", result.stderr);
    server.stop();
}

async fn what_cannot_be_installed_says_why_and_harms_nothing(server: Server) {
    let session = server.session("s");
    session.execute(python("x = 41")).await.unwrap();
    let missing = "isol8-no-such-package-as-this";
    let request = with(&[missing], python("print('not run')"));
    let error = session.execute(request).await.unwrap_err();
    assert_eq!(error.code(), Some(ErrorCode::SetupFailed), "{error}");
    let text = error.to_string();
    assert!(
        text.contains("installPackages failed with exit code 1"),
        "{text}"
    );
    assert!(text.contains(missing), "{text}");
    let result = session.execute(python("print(x + 1)")).await.unwrap();
    assert_eq!((result.stdout.as_str(), result.state_lost), ("42", false));
    session.stop().await.unwrap();
    server.stop();
}

async fn without_registries_nothing_is_installed(server: Server) {
    let kind = server.kind;
    server.stop();
    let server = Server::configured(kind, "[runtimes.python]\nregistries = []\n");
    let request = with(&["toposort"], python("print('not run')"));
    let error = server.client().execute(request).await.unwrap_err();
    assert_eq!(error.code(), Some(ErrorCode::Unsupported), "{error}");
    let text = error.to_string();
    assert!(text.contains("runtimes.python.registries"), "{text}");
    server.stop();
}

/// Each package says who installed it,
/// <https://packaging.python.org/en/latest/specifications/recording-installed-packages/#the-installer-file>.
const INSTALLER: &str =
    "import importlib.metadata as m; print(m.distribution('toposort').read_text('INSTALLER'))";

async fn uv_installs_where_the_system_has_it(server: Server) {
    let has_uv = match server.kind {
        Kind::Native => {
            Path::new("/usr/local/bin/uv").exists() || Path::new("/usr/bin/uv").exists()
        }
        // The images bring it.
        Kind::Docker => true,
    };
    let usual = if has_uv { "uv" } else { "pip" };
    for (env, expected) in [(None, usual), (Some("PIP_RETRIES"), "pip")] {
        let mut request = with(&["toposort"], python(INSTALLER));
        request.env = env
            .into_iter()
            .map(|name| (name.to_owned(), "3".to_owned()))
            .collect();
        let result = server.client().execute(request).await.unwrap();
        assert_eq!(result.stdout, expected, "{result:?}");
    }
    server.stop();
}

async fn files_of_the_session_do_not_stand_in_for_pip(server: Server) {
    let session = server.session("s");
    let code = "open('/sandbox/pip.py', 'w').write('raise SystemExit(3)')";
    session.execute(python(code)).await.unwrap();
    let missing = with(
        &["isol8-no-such-package-as-this"],
        python("print('not run')"),
    );
    let error = session.execute(missing).await.unwrap_err().to_string();
    assert!(error.contains("isol8-no-such-package-as-this"), "{error}");
    session.stop().await.unwrap();
    server.stop();
}

async fn only_names_of_packages_are_taken(server: Server) {
    for (runtime, package) in [
        (Runtime::Python, "--index-url=http://127.0.0.1/"),
        (Runtime::Python, "/tmp/package"),
        (Runtime::Python, "package-1-py3-none-any.whl"),
        (Runtime::Node, "user/repository"),
        (Runtime::Node, "package.tgz"),
        (Runtime::Bun, "x@file:/tmp"),
        (Runtime::Deno, "https://example.org/x.ts"),
    ] {
        let request = with(&["fine", package], source(runtime, ""));
        let error = server.client().execute(request).await.unwrap_err();
        assert_eq!(error.code(), Some(ErrorCode::InvalidRequest), "{error}");
        let text = error.to_string();
        assert!(text.contains("request.installPackages[1]"), "{text}");
        assert!(text.contains(package), "{text}");
    }
    let request = with(&["jq"], source(Runtime::Bash, "true"));
    let error = server.client().execute(request).await.unwrap_err();
    assert!(
        error.to_string().contains("bash has no package manager"),
        "{error}"
    );
    server.stop();
}

async fn the_installation_reaches_the_registries_only(server: Server) {
    let config = format!("{CONFIG}[runtimes.python]\nregistries = [\"example.org\"]\n");
    let other = Server::configured(server.kind, &config);
    let mut request = with(&["toposort"], python(SORT));
    // Once is enough to be denied.
    request.env = [("PIP_RETRIES".to_owned(), "0".to_owned())].into();
    let error = other.client().execute(request).await.unwrap_err();
    assert_eq!(error.code(), Some(ErrorCode::SetupFailed), "{error}");
    other.stop();
    server.stop();
}

async fn an_installation_has_a_clock_of_its_own(server: Server) {
    // The run's own time is none of the installation's.
    let mut request = with(&["toposort==1.10"], python(SORT));
    request.timeout_ms = Some(2_000);
    request.setup_script = None;
    let result = server.client().execute(request).await.unwrap();
    assert_eq!(result.stdout, "1.10", "{}", result.stderr);
    let kind = server.kind;
    server.stop();

    let config = format!("{CONFIG}[packages]\ninstallTimeoutMs = 1\n");
    let server = Server::configured(kind, &config);
    for (runtime, package) in [(Runtime::Python, "toposort"), (Runtime::Node, "left-pad")] {
        let request = with(&[package], source(runtime, "1"));
        let error = server.client().execute(request).await.unwrap_err();
        assert_eq!(error.code(), Some(ErrorCode::SetupFailed), "{error}");
        let expected = "installPackages timed out after 1 ms, raise packages.installTimeoutMs";
        assert!(error.to_string().contains(expected), "{error}");
    }
    server.stop();
}

async fn an_installation_that_needs_too_much_memory_says_so(server: Server) {
    let options = Options {
        memory_limit: Some("32m".parse().unwrap()),
        ..Options::default()
    };
    let request = with(&["numpy"], python("print('not run')"));
    let ran = server.client().execute_with(request, options).await;
    let error = ran.unwrap_err().to_string();
    assert!(
        error.contains("installPackages ran out of memory"),
        "{error}"
    );
    assert!(
        error.contains("32m") && error.contains("options.memoryLimit"),
        "{error}"
    );
    server.stop();
}

async fn a_registry_that_is_refused_is_named_with_the_key_to_change(server: Server) {
    let kind = server.kind;
    server.stop();
    let local = "[network]\nallowedCidrs = []\n[runtimes.python]\nregistries = [\"localhost\"]\n\
                 [packages]\npythonIndex = \"https://localhost:1/simple/\"\n";
    let (internet, _) = crate::network::internet::Internet::over_tls().await;
    let untrusted = format!(
        "[network]\nallowedCidrs = [\"127.0.0.0/8\"]\n[runtimes.python]\nregistries = [\"127.0.0.2\"]\n\
         [packages]\npythonIndex = \"https://127.0.0.2:{}/simple/\"\n",
        internet.port
    );
    for (config, host, key) in [
        (local.to_owned(), "localhost", "network.allowedCidrs"),
        (untrusted, "127.0.0.2", "network.caBundle"),
    ] {
        let server = Server::configured(kind, &config);
        let mut request = with(&["toposort"], python("print('not run')"));
        request.env = [("PIP_RETRIES".to_owned(), "0".to_owned())].into();
        let error = server.client().execute(request).await.unwrap_err();
        assert_eq!(error.code(), Some(ErrorCode::SetupFailed), "{error}");
        let text = error.to_string();
        assert!(text.contains(host) && text.contains(key), "{text}");
        server.stop();
    }
}

async fn what_an_installation_prints_is_none_of_the_program_s_output(server: Server) {
    for (runtime, package, code) in [
        (Runtime::Python, "toposort==1.10", "print(42)"),
        (Runtime::Node, "left-pad@1.3.0", "console.log(42)"),
        (Runtime::Bun, "left-pad@1.3.0", "console.log(42)"),
        (Runtime::Deno, "npm:left-pad@1.3.0", "console.log(42)"),
    ] {
        let client = server.client();
        let request = with(&[package], source(runtime, code));
        let mut run = client.execute_stream(request).await.unwrap();
        let mut stdout = String::new();
        while let Some(event) = run.next().await {
            let event = event.unwrap();
            if event.kind == EventKind::Stdout {
                stdout.push_str(&event.data);
            }
        }
        assert_eq!(stdout, "42\n", "{runtime}");
    }
    server.stop();
}

async fn requirements_and_ranges_are_taken_whole(server: Server) {
    let node = "import pad from 'left-pad'; console.log(pad('x', 3, '-'))";
    for (runtime, packages, code, expected) in [
        (
            Runtime::Python,
            &[
                "toposort >= 1.10, ==1.10",
                "no-such-thing-as-this; python_version < '3'",
            ][..],
            SORT,
            "1.10",
        ),
        (Runtime::Node, &["left-pad@>=1.3.0 <2 || ^9"], node, "--x"),
        (Runtime::Bun, &["left-pad@~1.3.0"], node, "--x"),
        (Runtime::Deno, &["npm:left-pad@^1.3.0"], node, "--x"),
    ] {
        let request = with(packages, source(runtime, code));
        let result = server.client().execute(request).await.unwrap();
        assert_eq!(result.stdout, expected, "{runtime}: {}", result.stderr);
    }
    let request = with(&["x @ https://example.org/x.whl"], python(""));
    let error = server.client().execute(request).await.unwrap_err();
    assert_eq!(error.code(), Some(ErrorCode::InvalidRequest), "{error}");
    assert!(
        error.to_string().contains("runtimes.python.registries"),
        "{error}"
    );
    server.stop();
}
