//! The programs of `examples/` do what their page says, on a real server.

use std::path::Path;
use std::process::Command;

use crate::harness::{KEY, Server, on_each_backend};

on_each_backend!(curl, python, typescript, rust);

const ROOT: &str = env!("CARGO_MANIFEST_DIR");

async fn curl(server: Server) {
    let printed = output(&server, &mut Command::new("examples/curl.sh"));
    let lines: Vec<&str> = printed.lines().collect();
    assert!(lines[0].contains(r#""stdout":"42""#), "{printed}");
    assert!(lines[2].contains(r#""stdout":"42""#), "{printed}");
    assert_eq!(lines[5..7], ["a", "b"], "{printed}");
    assert_eq!(lines.last(), Some(&r#"{"ok":true}"#), "{printed}");
    server.stop();
}

async fn python(server: Server) {
    let mut command = Command::new("clients/python/.venv/bin/python");
    command
        .arg("examples/tool.py")
        .env("PYTHONPATH", "clients/python/src");
    let printed = output(&server, &mut command);
    assert!(printed.contains("KeyError: 'plum'"), "{printed}");
    assert!(
        printed.contains("print(sum(prices.values()))\n7\n"),
        "{printed}"
    );
    assert!(
        printed.ends_with("took longer than 5 seconds and was ended.\n"),
        "{printed}"
    );
    server.stop();
}

async fn typescript(server: Server) {
    // Bun finds the client's sources by this file; elsewhere the client is an installed package.
    let settings = server.state().join("tsconfig.json");
    let client = Path::new(ROOT).join("clients/typescript/src/index.ts");
    let paths = serde_json::json!({"isol8-client": [client]});
    let paths = serde_json::json!({"compilerOptions": {"paths": paths}});
    std::fs::write(&settings, paths.to_string()).unwrap();
    let mut command = Command::new("bun");
    command.arg("run").arg("--tsconfig-override").arg(&settings);
    let printed = output(&server, command.arg("examples/stream.ts"));
    let expected = "3\n2\n1\ndone\nexit code 0\nbegun and ended after its time\n";
    assert_eq!(printed, expected);
    server.stop();
}

async fn rust(server: Server) {
    // `cargo test` builds examples too. `cargo run` would build 57 crates again, with other features.
    let tests = std::env::current_exe().unwrap();
    let example = tests.ancestors().nth(2).unwrap().join("examples/files");
    assert!(
        example.exists(),
        "run `cargo build --workspace --example files` first"
    );
    let printed = output(&server, &mut Command::new(example));
    let expected = "2 people\n[{\"name\": \"Ada\", \"town\": \"London\"}, {\"name\": \"Kurt\", \"town\": \"Vienna\"}]\n";
    assert_eq!(printed, expected);
    server.stop();
}

/// Returns what an example prints, which must succeed.
fn output(server: &Server, command: &mut Command) -> String {
    command
        .current_dir(ROOT)
        .env("ISOL8_HOST", format!("http://{}", server.address))
        .env("ISOL8_API_KEY", KEY);
    let output = command.output().unwrap();
    let complaints = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{command:?}: {complaints}");
    String::from_utf8(output.stdout).unwrap()
}
