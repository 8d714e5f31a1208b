//! Whatever arrives, in pieces of any size: the decoder neither panics nor stores more than it
//! may, the pieces make no difference, and what it takes for a frame survives the round trip.
//!
//! The first two bytes of the input choose the kind of frame and the size of the pieces; the rest
//! is the wire.
#![no_main]

use std::fmt::Debug;

use isol8_protocol::{Decoder, GuestFrame, HostFrame, encode};
use libfuzzer_sys::fuzz_target;
use serde::{Serialize, de::DeserializeOwned};

/// Small, so that the fuzzer reaches both sides of it.
const LIMIT: usize = 4096;

fuzz_target!(|input: &[u8]| {
    let [kind, piece, wire @ ..] = input else {
        return;
    };
    let piece = usize::from(*piece).max(1);
    if kind % 2 == 0 {
        check::<GuestFrame>(wire, piece);
    } else {
        check::<HostFrame>(wire, piece);
    }
});

fn check<F>(wire: &[u8], piece: usize)
where
    F: Serialize + DeserializeOwned + PartialEq + Debug,
{
    let (frames, failed) = decode::<F>(wire, piece);
    let whole = decode::<F>(wire, wire.len().max(1));
    assert_eq!((&frames, failed), (&whole.0, whole.1), "pieces matter");

    // Not compared byte by byte: a number may be written in more than one way.
    let mut again = Vec::new();
    for frame in &frames {
        encode(frame, LIMIT, &mut again).expect("what fit once fits again");
    }
    assert_eq!(decode::<F>(&again, piece), (frames, false));
}

/// The frames up to the first error, and whether there was one.
fn decode<F: DeserializeOwned>(wire: &[u8], piece: usize) -> (Vec<F>, bool) {
    let mut decoder = Decoder::new(LIMIT);
    let mut frames = Vec::new();
    for piece in wire.chunks(piece) {
        decoder.feed(piece);
        loop {
            match decoder.next() {
                Ok(Some(frame)) => frames.push(frame),
                Ok(None) => break,
                Err(_) => return (frames, true),
            }
        }
    }
    (frames, false)
}
