//! Every place that a new runtime needs beside its file in `crates/runtimes` and the `match`es that the compiler finds.
//! "Adding a runtime" in CONTRIBUTING.md lists the same places.

#![allow(clippy::unwrap_used)] // A failed expectation is the test failing.

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};

use isol8_runtimes::Runtime;

/// A file that has to mention every runtime.
struct Mention {
    file: &'static str,
    /// Returns the texts of which one has to be in the file.
    texts: fn(Runtime) -> Vec<String>,
}

const fn mention(file: &'static str, texts: fn(Runtime) -> Vec<String>) -> Mention {
    Mention { file, texts }
}

const MENTIONS: &[Mention] = &[
    mention("images/Dockerfile", |runtime| {
        vec![format!("\nFROM common AS {runtime}\n")]
    }),
    mention("images/custom/install", |runtime| {
        vec![format!("\n    {runtime})\n")]
    }),
    // Each interpreter comes from Debian, or is one of those that the script fetches.
    mention("scripts/install-dependencies", |runtime| {
        let program = runtime.facts().executable;
        vec![
            format!("\nneed {program} "),
            format!("\nneed_file /usr/bin/{program} "),
            format!("\ninstall_{program}() {{\n"),
        ]
    }),
    mention("config.toml", |_| vec![prose()]),
    mention("crates/config/src/pool.rs", |runtime| {
        vec![format!("\n    {runtime}: Option<RuntimeTable>,\n")]
    }),
    mention("crates/guest/tests/occupied.rs", constant),
    mention("crates/guest/tests/terminals.rs", constant),
    mention("benches/latency.rs", constant),
    mention("tests/tables/cells.rs", |runtime| {
        vec![format!("include_str!(\"cells/{runtime}.toml\")")]
    }),
    mention("tests/tables/compare.rs", |runtime| {
        vec![format!("include_str!(\"compare/{runtime}.toml\")")]
    }),
    mention("tests/suite/certificates.rs", constant),
    mention("tests/suite/output/usage.rs", constant),
    mention("ARCHITECTURE.md", |_| {
        vec![Runtime::ALL.map(Runtime::name).join(", ")]
    }),
    mention("README.md", |_| {
        vec![format!(" runtimes.** P{}", &prose()[1..])]
    }),
    mention("README.md", row),
    mention("docs/backends.md", |runtime| vec![quoted(runtime.name())]),
    mention("docs/backends.md", |runtime| {
        vec![quoted(runtime.facts().executable)]
    }),
    mention("docs/images.md", |runtime| {
        vec![quoted(&format!("isol8:{runtime}"))]
    }),
    mention("docs/packages.md", row),
    mention("docs/pool-sizing.md", row),
    mention("docs/requests.md", |runtime| vec![quoted(runtime.name())]),
    mention("docs/sessions.md", |runtime| {
        let mut capital = runtime.name().to_owned();
        capital[..1].make_ascii_uppercase();
        vec![format!(" {runtime}"), capital]
    }),
    mention("docs/internals/interpreters.md", row),
];

/// Returns the names of all runtimes, as in a sentence.
fn prose() -> String {
    Runtime::NAMES.replace(" or ", " and ")
}

fn quoted(text: &str) -> String {
    format!("`{text}`")
}

/// Returns the constant of a runtime, for tables in Rust.
fn constant(runtime: Runtime) -> Vec<String> {
    vec![format!("Runtime::{runtime:?}"), "Runtime::ALL".to_owned()]
}

/// Returns beginnings of a table's row about a runtime, alone or together with another one.
fn row(runtime: Runtime) -> Vec<String> {
    let rows = [" |", ", "].map(|end| format!("\n| {runtime}{end}"));
    let shared = Runtime::ALL.map(|other| format!("\n| {other}, {runtime} |"));
    rows.into_iter().chain(shared).collect()
}

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn read(file: &str) -> String {
    let content = fs::read_to_string(root().join(file));
    content.unwrap_or_else(|error| panic!("{file}: {error}"))
}

#[test]
fn every_runtime_has_its_place_in_images_scripts_tests_and_pages() {
    let mut missing = BTreeSet::new();
    for Mention { file, texts } in MENTIONS {
        let content = read(file);
        for texts in Runtime::ALL.map(texts) {
            if !texts.iter().any(|text| content.contains(text)) {
                missing.insert(format!("{file} has none of {texts:?}"));
            }
        }
    }
    assert!(missing.is_empty(), "{missing:#?}");
}

#[test]
fn every_runtime_has_its_files() {
    let files = Runtime::ALL.map(|runtime| {
        [
            format!("crates/runtimes/src/{runtime}.rs"),
            format!("crates/guest/drivers/{runtime}"),
            format!("tests/tables/cells/{runtime}.toml"),
            format!("tests/tables/compare/{runtime}.toml"),
        ]
    });
    let mut missing = files.concat();
    missing.retain(|file| !root().join(file).exists());
    assert!(missing.is_empty(), "{missing:?}");
}

/// Returns the words in double quotes of the statement that begins with `start` and ends with `end`.
fn words(file: &str, start: &str, end: char) -> Vec<String> {
    let content = read(file);
    let (_, rest) = content.split_once(start).unwrap();
    let statement = rest.split(end).next().unwrap();
    let words = statement.split('"').skip(1).step_by(2);
    words.map(str::to_owned).collect()
}

#[test]
fn the_clients_types_have_exactly_these_runtimes() {
    let names = Runtime::ALL.map(Runtime::name);
    let python = words(
        "clients/python/src/isol8/types.py",
        "Runtime = Literal[",
        ']',
    );
    let typescript = words("clients/typescript/src/types.ts", "type Runtime = ", ';');
    let all: Vec<&str> = python.iter().map(String::as_str).collect();
    for name in names {
        assert!(all.contains(&name), "types.py lacks {name}");
    }
    for (alias, _) in Runtime::aliases() {
        assert!(all.contains(&alias), "types.py lacks {alias}");
    }
    assert_eq!(all.len(), names.len() + Runtime::aliases().count());
    assert!(typescript.iter().map(String::as_str).eq(names));
}

#[test]
fn the_pages_name_every_alias_extension_and_variable() {
    let (requests, network) = (read("docs/requests.md"), read("docs/network.md"));
    for (alias, runtime) in Runtime::aliases() {
        assert!(requests.contains(&quoted(alias)), "{alias} of {runtime}");
    }
    for runtime in Runtime::ALL {
        for name in runtime.facts().variables.certificates {
            assert!(network.contains(&quoted(name)), "{name} of {runtime}");
        }
    }
    let packages = read("docs/packages.md");
    for runtime in Runtime::ALL {
        for host in runtime.facts().packages.registries {
            assert!(packages.contains(&quoted(host)), "{host} of {runtime}");
        }
    }
}

/// Files of the product that may treat a single runtime specially, and the reason.
const SPECIAL_CASES: &[(&str, &str)] = &[
    ("interpreters.rs", "the files of each driver"),
    ("zygote.rs", "the zygote is a Python"),
    ("plan.rs", "a setup script is a script of bash"),
    ("config/src/file.rs", "the default sizes of the pool"),
    ("config/src/pool.rs", "the defaults of Python's own keys"),
    (
        "config/src/images.rs",
        "the image with many packages of Python",
    ),
    (
        "commands/shell.rs",
        "the runtime of a shell without other words",
    ),
    (
        "doctor/certificates.rs",
        "a script of bash counts certificates",
    ),
    ("run/request.rs", "the runtime of a run without other words"),
    ("backend/src/fake.rs", "a backend for tests"),
];

#[test]
fn no_other_code_treats_a_single_runtime_specially() {
    let mut found = String::new();
    let mut directories = vec![root().join("src"), root().join("actors/src")];
    for entry in fs::read_dir(root().join("crates")).unwrap() {
        let path = entry.unwrap().path();
        if !path.ends_with("runtimes") {
            directories.push(path.join("src"));
        }
    }
    for path in directories.iter().flat_map(|directory| sources(directory)) {
        let is_allowed = SPECIAL_CASES.iter().any(|(file, _)| path.ends_with(file));
        // Tests are in files of that name, or at the end of a file.
        if is_allowed || path.ends_with("tests.rs") {
            continue;
        }
        let content = fs::read_to_string(&path).unwrap();
        let product = content.split("#[cfg(test)]\nmod tests {").next().unwrap();
        for (number, line) in product.lines().enumerate() {
            let names_one = |runtime| line.contains(&format!("Runtime::{runtime:?}"));
            if !line.trim_start().starts_with("//") && Runtime::ALL.into_iter().any(names_one) {
                let number = number + 1;
                writeln!(found, "{}:{number}: {}", path.display(), line.trim()).unwrap();
            }
        }
    }
    assert!(
        found.is_empty(),
        "a fact about one runtime belongs in crates/runtimes:\n{found}"
    );
}

/// Returns all Rust files below a directory.
fn sources(directory: &Path) -> Vec<PathBuf> {
    let mut files = Vec::new();
    for entry in fs::read_dir(directory).into_iter().flatten() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            files.extend(sources(&path));
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            files.push(path);
        }
    }
    files
}
