//! The protocol of a sandbox's control connection.
//!
//! The host (the isol8 server or command) connects to the guest agent, PID 1 of the sandbox. Both
//! sides first send a `Hello`, then frames in any order. Every run and every file transfer has its own
//! [`StreamId`], so that many share one connection. A frame on the wire consists of its length
//! (four bytes, big endian, not counting the length field) and its body in postcard's encoding.
//!
//! This crate does no I/O and depends on no async runtime. [`Decoder`] never trusts a length: it has
//! a limit, and refuses a longer frame before a byte of it is stored. The host reads with
//! [`MAX_GUEST_FRAME`], because all data from a guest is hostile.
//!
//! Read [`frame`] first, then [`tunnel`] and [`codec`].

pub mod codec;
pub mod frame;
pub mod tunnel;

pub use codec::{DecodeError, Decoder, EncodeError, encode};
pub use frame::{
    CHUNK_SIZE, EntryKind, Exit, ExitStatus, Failure, FailureKind, GRANT_STEP, GuestFrame,
    HostFrame, MAX_ENTRY, MAX_GUEST_FRAME, MAX_HOST_FRAME, OutputStream, PrewarmSettings, Program,
    RawDirectoryEntry, RunSpec, SANDBOX_GID, SANDBOX_UID, Signal, Stdin, StreamId, TerminalSize,
    VERSION, WINDOW, ZYGOTE_UID,
};
pub use isol8_runtimes::Runtime;
pub use tunnel::{MAX_TUNNELS, TunnelFrame, TunnelId};
