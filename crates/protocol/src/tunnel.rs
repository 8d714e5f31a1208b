//! Tunnels: network connections that programs of a run make, carried over the control connection.
//!
//! The guest opens a tunnel for every connection that a program of a run with
//! [`RunSpec::network`](crate::RunSpec::network) makes to the run's proxy port. Each direction has a window of
//! [`WINDOW`](crate::WINDOW) bytes and ends separately (`End`). `Close` ends both directions, and is
//! the last frame of its sender:
//!
//! - After the guest's `Close`, the guest drops bytes that the host sends until the host has received the `Close`.
//! - Bytes that the host sent before its own `Close` still arrive.
//! - The host always sends `Close`; the guest only if it ends the tunnel before the host does.
//!
//! A guest counts a tunnel as one of the [`MAX_TUNNELS`] until it receives the host's `Close`. So the number that
//! the host counts never exceeds the guest's number.

use serde::{Deserialize, Serialize};

use crate::frame::StreamId;

/// Most tunnels that one guest may have at once; further connections wait in the kernel. The number is larger than
/// any package manager needs, and small enough that the windows of all tunnels do not fill a small sandbox.
pub const MAX_TUNNELS: usize = 128;

/// Id of a tunnel on a connection. The guest chooses the ids in increasing order.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct TunnelId(pub u64);

/// An event of a tunnel. Both sides send all of them except `Open`, which only the guest sends.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum TunnelFrame {
    /// The guest opens the tunnel. First frame of the tunnel.
    Open {
        /// The run that the tunnel belongs to.
        run: StreamId,
    },
    /// Bytes that one end wrote.
    Data {
        /// 1 to [`CHUNK_SIZE`](crate::CHUNK_SIZE) bytes, within the credit.
        #[serde(with = "serde_bytes")]
        bytes: Vec<u8>,
    },
    /// The sender sends no more bytes.
    End,
    /// Allow the receiver of this frame to send this many more bytes.
    Credit {
        /// Bytes granted in addition to earlier grants.
        bytes: u32,
    },
    /// Both directions end. Last frame of the sender.
    Close,
}
