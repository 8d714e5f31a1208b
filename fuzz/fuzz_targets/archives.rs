//! Tar archives of sandbox roots: no entry is written outside of the directory that the archive is unpacked in.
#![no_main]

use std::fs;
use std::io;

use libfuzzer_sys::fuzz_target;

#[path = "../../crates/backend-native/src/roots/unpack.rs"]
mod unpack;

/// Bytes of an archive. A larger one takes longer and finds no more.
const LONGEST: usize = 64 << 10;

fuzz_target!(|input: &[u8]| {
    if input.len() > LONGEST {
        return;
    }
    let outside = tempfile::tempdir_in("/dev/shm").expect("a directory in memory");
    let root = outside.path().join("root");
    fs::create_dir(&root).expect("an empty directory");
    fs::write(outside.path().join("canary"), "alive").expect("a file");
    let unpacked: io::Result<()> = unpack::unpack(input, &root);
    drop(unpacked);

    let mut names: Vec<_> = fs::read_dir(outside.path())
        .expect("the directory is there")
        .map(|entry| entry.expect("an entry").file_name())
        .collect();
    names.sort();
    assert_eq!(names, ["canary", "root"]);
    let canary = fs::read(outside.path().join("canary")).expect("the canary");
    assert_eq!(canary, b"alive");
});
