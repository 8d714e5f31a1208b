//! Bodies of requests and messages of WebSockets: parsing neither panics nor depends on how a value was written:
//! what was understood, written again and read again, is the same.
#![no_main]

use isol8_api::file::WriteFile;
use isol8_api::{ClientMessage, ExecuteBody};
use libfuzzer_sys::fuzz_target;
use serde::Serialize;
use serde::de::DeserializeOwned;

fuzz_target!(|input: &[u8]| {
    check::<ExecuteBody>(input);
    check::<ClientMessage>(input);
    check::<WriteFile>(input);
});

fn check<T: Serialize + DeserializeOwned>(input: &[u8]) {
    let Ok(value) = serde_json::from_slice::<T>(input) else {
        return;
    };
    let written = serde_json::to_value(&value).expect("what was read can be written");
    let again: T = serde_json::from_value(written.clone()).expect("what was written can be read");
    let rewritten = serde_json::to_value(&again).expect("what was read can be written");
    assert_eq!(written, rewritten);
}
