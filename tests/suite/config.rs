//! `isol8 config`, and the files that it reads.

use std::path::Path;
use std::process::{Command, Output};

use serde_json::Value;

use crate::harness::ISOL8;

/// `isol8 config` in a directory with these files, by a user whose home is the directory `home` in it.
fn config(files: &[(&str, &str)], arguments: &[&str]) -> (Output, tempfile::TempDir) {
    let directory = tempfile::tempdir().unwrap();
    for (name, text) in files {
        let path = directory.path().join(name);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, text).unwrap();
    }
    let output = run(directory.path(), arguments);
    (output, directory)
}

fn run(directory: &Path, arguments: &[&str]) -> Output {
    Command::new(ISOL8)
        .arg("config")
        .args(arguments)
        .current_dir(directory)
        .env_clear()
        .env("HOME", directory.join("home"))
        .env("ISOL8_API_KEY", "the-key-that-nobody-sees")
        .output()
        .unwrap()
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).unwrap()
}

fn json(output: &Output) -> Value {
    serde_json::from_slice(&output.stdout).unwrap()
}

#[test]
fn the_page_begins_with_its_source_and_the_general_section() {
    let (output, directory) = config(&[], &[]);
    assert!(output.status.success());
    let page = text(&output.stdout);
    let begin = "Isol8 Configuration\n\n  Source: defaults\n\nGeneral\n  backend ";
    assert!(page.starts_with(begin), "{page}");
    assert!(page.contains("\nCleanup\n  cleanup.autoPrune "), "{page}");
    assert!(!page.contains("the-key-that-nobody-sees"), "{page}");
    std::fs::write(directory.path().join("config.toml"), "maxConcurrent = 3").unwrap();
    let page = text(&run(directory.path(), &[]).stdout);
    assert!(page.contains("\n  Source: config.toml\n"), "{page}");
    let line = page
        .lines()
        .find(|line| line.contains("maxConcurrent "))
        .unwrap();
    let words: Vec<&str> = line.split_whitespace().collect();
    assert_eq!(words, ["maxConcurrent", "3", "file", "config.toml"]);
}

#[test]
fn the_other_products_file_is_merged_over_the_defaults_and_ours_over_it() {
    let theirs = r#"{
        "maxConcurrent": 4,
        "cleanup": {"maxContainerAgeMs": 5000},
        "audit": {"enabled": true}
    }"#;
    let files = [("isol8.config.json", theirs)];
    let (output, _directory) = config(&files, &["--json"]);
    let values = json(&output);
    assert_eq!(values["maxConcurrent"], 4);
    assert_eq!(values["cleanup"]["maxContainerAgeMs"], 5000);
    assert_eq!(values["cleanup"]["autoPrune"], true);
    let warned = text(&output.stderr);
    assert!(
        warned.contains("isol8.config.json: audit has no meaning here"),
        "{warned}"
    );

    let ours = "[cleanup]\nautoPrune = false\nmaxContainerAgeMs = 7000\n";
    for place in ["config.toml", "home/.isol8/config.toml"] {
        let (output, _directory) = config(&[files[0], (place, ours)], &["--json"]);
        let values = json(&output);
        assert_eq!(values["maxConcurrent"], 4);
        assert_eq!(values["cleanup"]["maxContainerAgeMs"], 7000);
        assert_eq!(values["cleanup"]["autoPrune"], false);
    }
    // A file that is named stands alone.
    let files = [files[0], ("named.toml", ours)];
    let (output, _directory) = config(&files, &["--json", "--config", "named.toml"]);
    assert_eq!(json(&output)["maxConcurrent"], 10);
}

#[test]
fn a_fault_is_told_with_file_line_key_and_suggestion() {
    for (name, fault) in [
        ("config.toml", "\n[cleanup]\nautoPrun = true"),
        (
            "isol8.config.json",
            "{\"cleanup\":\n\n{\"autoPrun\": true}}",
        ),
    ] {
        let (output, _directory) = config(&[(name, fault)], &[]);
        assert_eq!(output.status.code(), Some(1));
        let told = text(&output.stderr);
        let begin = format!("isol8: {name}:3: cleanup.autoPrun: unknown field");
        assert!(told.starts_with(&begin), "{told}");
        assert!(told.contains("did you mean `autoPrune`?"), "{told}");
    }
}

#[test]
fn debug_in_a_file_logs_as_the_flag_does() {
    for (file, arguments) in [("", &["--debug"][..]), ("debug = true", &[])] {
        let (output, _directory) = config(&[("config.toml", file)], arguments);
        assert!(text(&output.stderr).contains("DEBUG"), "{file:?}");
    }
    let (output, _directory) = config(&[], &[]);
    assert_eq!(text(&output.stderr), "");
}

#[test]
fn the_schema_describes_every_table() {
    let (output, _directory) = config(&[], &["--schema"]);
    let schema = json(&output);
    assert_eq!(schema["properties"]["maxConcurrent"]["default"], 10);
    assert!(schema["properties"]["cleanup"].is_object());
    assert_eq!(schema["additionalProperties"], false);
}
