//! Lines that an interpreter's driver sends to the guest. Whatever user code writes to that descriptor, the
//! guest reads messages of the known forms only, keeps at most one line, and always comes to an end.
#![no_main]

use std::os::fd::AsFd as _;

use libfuzzer_sys::fuzz_target;
use nix::unistd::write;

#[allow(dead_code)] // The target reads lines and sends none.
#[path = "../../crates/guest/src/interpreter/control_socket.rs"]
mod control_socket;

use control_socket::ControlSocket;

/// Bytes that certainly fit into a socket at once.
const AT_ONCE: usize = 4096;

fuzz_target!(|input: &[u8]| {
    let Ok((mut socket, far)) = ControlSocket::pair() else {
        panic!("no socket pair");
    };
    for piece in input.chunks(AT_ONCE) {
        let written = write(far.as_fd(), piece).expect("the guest has read all before");
        assert_eq!(written, piece.len());
        // Every call makes progress, so as many calls as there are bytes read everything.
        let mut calls = 0;
        while let Ok(Some(_)) = socket.next() {
            calls += 1;
            assert!(calls <= AT_ONCE, "more messages than bytes");
        }
    }
    drop(far);
    while socket.next().is_ok() {}
});
