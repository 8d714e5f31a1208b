use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

use super::*;

#[test]
fn every_file_of_a_runtime_is_one_of_all() {
    // The other files of this crate.
    let others = ["facts", "lib", "name", "schema", "tests"];
    let files = fs::read_dir(Path::new(env!("CARGO_MANIFEST_DIR")).join("src")).unwrap();
    let files: BTreeSet<String> = files
        .map(|file| file.unwrap().path())
        .map(|path| path.file_stem().unwrap().to_str().unwrap().to_owned())
        .filter(|name| !others.contains(&name.as_str()))
        .collect();
    let names = Runtime::ALL.map(|runtime| runtime.name().to_owned());
    assert_eq!(files, names.into());
}

#[test]
fn messages_name_every_runtime() {
    let names = Runtime::ALL.map(Runtime::name);
    let (last, others) = names.split_last().unwrap();
    assert_eq!(Runtime::NAMES, format!("{} or {last}", others.join(", ")));
}

#[test]
fn names_and_aliases_are_read_and_other_words_refused() {
    for runtime in Runtime::ALL {
        assert_eq!(runtime.name().parse(), Ok(runtime));
    }
    for (alias, runtime) in Runtime::aliases() {
        assert_eq!(alias.parse(), Ok(runtime), "{alias}");
        let quoted = format!("\"{alias}\"");
        assert!(serde_json::from_str::<Runtime>(&quoted).is_err(), "{alias}");
    }
    let error = "JS".parse::<Runtime>().unwrap_err().to_string();
    assert_eq!(
        error,
        "\"JS\" is not a runtime: python, node, bun, deno or bash"
    );
    let long = "x".repeat(100).parse::<Runtime>().unwrap_err().to_string();
    assert!(
        long.starts_with(&format!("\"{}…\" is not", "x".repeat(80))),
        "{long}"
    );
}

#[test]
fn no_name_or_extension_belongs_to_two_runtimes() {
    let names = Runtime::ALL.map(Runtime::name).into_iter();
    let names: Vec<_> = names
        .chain(Runtime::aliases().map(|(alias, _)| alias))
        .collect();
    let extensions = Runtime::ALL.map(|runtime| runtime.facts().scripts.extensions);
    for words in [names, extensions.concat()] {
        let distinct: BTreeSet<_> = words.iter().collect();
        assert_eq!(distinct.len(), words.len(), "{words:?}");
    }
}

#[test]
fn a_script_without_another_name_has_an_extension_of_its_runtime() {
    for runtime in Runtime::ALL {
        let extension = runtime.default_extension().strip_prefix('.').unwrap();
        assert_eq!(Runtime::of_extension(extension), Some(runtime));
        assert!(
            runtime
                .facts()
                .interpreter
                .scripts
                .iter()
                .any(|ending| ending.ends_with(runtime.default_extension())),
            "no spare runs scripts of {runtime}"
        );
    }
    assert_eq!(Runtime::of_extension("rs"), None);
}

#[test]
fn a_runtime_is_a_name_in_text_and_one_byte_in_frames() {
    for (number, runtime) in Runtime::ALL.into_iter().enumerate() {
        let text = serde_json::to_string(&runtime).unwrap();
        assert_eq!(text, format!("\"{runtime}\""));
        assert_eq!(serde_json::from_str::<Runtime>(&text).unwrap(), runtime);
        let bytes = postcard::to_stdvec(&runtime).unwrap();
        assert_eq!(bytes, [u8::try_from(number).unwrap()]);
        assert_eq!(postcard::from_bytes::<Runtime>(&bytes), Ok(runtime));
    }
    let next = [u8::try_from(Runtime::ALL.len()).unwrap()];
    assert!(postcard::from_bytes::<Runtime>(&next).is_err());
}

#[test]
fn an_interpreter_is_started_by_the_name_of_its_executable() {
    for runtime in Runtime::ALL {
        let facts = runtime.facts();
        for argv in [facts.interpreter.command, facts.interpreter.boot.argv] {
            assert_eq!(argv.first(), Some(&facts.executable), "{runtime}");
        }
    }
}

#[test]
fn packages_are_installed_from_registries_and_without_one_not_at_all() {
    for runtime in Runtime::ALL {
        let packages = &runtime.facts().packages;
        assert_eq!(
            packages.registries.is_empty(),
            packages.installer.is_none(),
            "{runtime}"
        );
    }
}
