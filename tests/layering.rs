//! The manifests keep the direction of the dependencies that ARCHITECTURE.md draws, and so do the files of a crate.

#![allow(clippy::unwrap_used)] // A failed expectation is the test failing.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::process::Command;

/// Every package, its directory, and those of ours that it may depend on.
const ALLOWED: [(&str, &[&str]); 15] = [
    (
        ".",
        &[
            "actors",
            "api",
            "backend",
            "backend-docker",
            "backend-native",
            "client",
            "config",
            "egress",
            "engine",
            "runtimes",
        ],
    ),
    ("actors", &["api", "backend", "protocol", "runtimes"]),
    ("crates/runtimes", &[]),
    ("crates/api", &["runtimes"]),
    // Plain data: whatever lives is made from it elsewhere, so it needs no concrete backend and no cache.
    (
        "crates/config",
        &["actors", "api", "backend", "egress", "runtimes"],
    ),
    ("crates/protocol", &["runtimes"]),
    ("crates/egress", &["api"]),
    (
        "crates/engine",
        &[
            "actors",
            "api",
            "backend",
            "backend-docker",
            "backend-native",
            "config",
            "egress",
            "registry-cache",
            "runtimes",
        ],
    ),
    ("crates/registry-cache", &["egress", "runtimes"]),
    ("crates/guest", &["protocol", "runtimes"]),
    ("crates/backend", &["api", "protocol"]),
    ("crates/backend-docker", &["api", "backend", "protocol"]),
    ("crates/backend-native", &["api", "backend", "protocol"]),
    ("crates/client", &["api"]),
    // For the examples of others' documentation: nothing depends on it but tests.
    ("crates/testing", &[]),
];

fn dependencies(directory: &str) -> BTreeSet<String> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let text = fs::read_to_string(root.join(directory).join("Cargo.toml")).unwrap();
    let manifest: toml::Table = toml::from_str(&text).unwrap();
    manifest["dependencies"]
        .as_table()
        .unwrap()
        .keys()
        .cloned()
        .collect()
}

#[test]
fn our_packages_depend_on_each_other_in_one_direction_only() {
    for (directory, allowed) in ALLOWED {
        let ours: Vec<_> = dependencies(directory)
            .iter()
            .filter_map(|name| name.strip_prefix("isol8-").map(str::to_owned))
            .collect();
        for name in ours {
            assert!(
                allowed.contains(&name.as_str()),
                "{directory} depends on isol8-{name}"
            );
        }
    }
}

#[test]
fn every_package_of_the_workspace_is_checked() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let text = fs::read_to_string(root.join("Cargo.toml")).unwrap();
    let manifest: toml::Table = toml::from_str(&text).unwrap();
    let members = |key: &str| -> BTreeSet<String> {
        let list = manifest["workspace"][key].as_array().unwrap();
        list.iter()
            .map(|member| member.as_str().unwrap().to_owned())
            .collect()
    };
    let checked: BTreeSet<_> = ALLOWED.iter().map(|(name, _)| (*name).to_owned()).collect();
    assert_eq!(members("default-members"), checked);
    let mut all = members("members");
    all.insert(".".to_owned());
    assert_eq!(all, checked);
}

#[test]
fn libraries_stay_where_they_belong() {
    for (directory, _) in ALLOWED {
        let found = dependencies(directory);
        let only = |library: &str, places: &[&str]| {
            assert!(
                !found.contains(library) || places.contains(&directory),
                "{directory} depends on {library}"
            );
        };
        only("bollard", &["crates/backend-docker"]);
        only("actix-web", &["."]);
        only("libcontainer", &["crates/backend-native"]);
        only(
            "tokio",
            &[
                ".",
                "actors",
                "crates/backend",
                "crates/backend-docker",
                "crates/backend-native",
                "crates/client",
                "crates/egress",
                "crates/engine",
                "crates/testing",
                "crates/registry-cache",
            ],
        );
        only("hyper", &["crates/egress", "crates/registry-cache"]);
    }
}

#[test]
fn no_files_of_a_crate_import_each_other_in_a_circle() {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("scripts/import-circles");
    let output = Command::new(script).output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{text}{output:?}");
}
