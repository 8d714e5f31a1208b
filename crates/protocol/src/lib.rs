//! The frames of a sandbox's control connection.
//!
//! The host (the isol8 server or command) connects to the guest agent, PID 1 of the sandbox. Both
//! sides first send a `Hello`, then frames in any order; every run and every file transfer has a
//! [`StreamId`] of its own, so that many share one connection. A frame on the wire is its length
//! (four bytes, big endian, the length field not counted) and its body in postcard's encoding.
//!
//! This crate does no I/O and knows no async runtime. It never trusts a length: [`Decoder`] takes a limit, and refuses
//! a longer frame before a byte of it is stored. The host reads with [`MAX_GUEST_FRAME`], because every frame of a
//! guest is hostile.
//!
//! Read [`frame`] first, then [`tunnel`] and [`codec`].

pub mod codec;
pub mod frame;
pub mod tunnel;

pub use codec::{DecodeError, Decoder, EncodeError, encode};
pub use frame::{
    CHUNK_SIZE, Entry, EntryKind, Exit, ExitStatus, Failure, FailureKind, GRANT_STEP, GuestFrame,
    HostFrame, KernelKind, KernelSettings, MAX_ENTRY, MAX_GUEST_FRAME, MAX_HOST_FRAME,
    OutputStream, Program, RunSpec, SANDBOX_GID, SANDBOX_UID, Signal, Stdin, StreamId,
    TerminalSize, VERSION, WINDOW, ZYGOTE_UID,
};
pub use tunnel::{MAX_TUNNELS, TunnelFrame, TunnelId};
