//! Pages of package registries: whatever a registry or an attacker in its place sends, reading it neither
//! panics nor lists a file that a client could not ask for.
#![no_main]

use isol8_registry_cache::{PackageManager, fuzzing};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|input: &[u8]| {
    let [kind, page @ ..] = input else {
        return;
    };
    let client = if kind % 2 == 0 {
        PackageManager::Pip
    } else {
        PackageManager::Npm
    };
    fuzzing::read_page(client, page);
    // Compiles a regular expression, which takes longer than all the rest.
    if kind % 16 == 15 {
        fuzzing::rewrite_page(page);
    }
    if let Ok(path) = std::str::from_utf8(page) {
        fuzzing::read_path(client, path);
    }
});
