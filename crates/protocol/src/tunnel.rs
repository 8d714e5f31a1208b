//! Tunnels: connections that programs of a run make, carried over the control connection.
//!
//! The guest opens a tunnel for every connection that a program of a run with
//! [`RunSpec::network`](crate::RunSpec::network) makes to its port. Each direction has a window of
//! [`WINDOW`](crate::WINDOW) bytes and ends by itself (`End`). `Close` ends both, and is the last frame of its sender.
//! If the guest sends it, frames of the host that were under way are dropped. If the host sends it, its earlier frames
//! still arrive. The host always sends it, the guest only if it ends the tunnel before the host does.
//!
//! A guest counts a tunnel as one of the [`MAX_TUNNELS`] until it has the host's `Close`. So what the
//! host counts, at whatever moment, is no more.

use serde::{Deserialize, Serialize};

use crate::frame::StreamId;

/// Tunnels that one guest may have at once; further connections wait in the kernel. More than any
/// package manager opens, and few enough that all their windows do not fill a small sandbox.
pub const MAX_TUNNELS: usize = 128;

/// Names a tunnel on a connection. The guest chooses it, each larger than the last.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct TunnelId(pub u64);

/// A message about a tunnel. But for `Open`, both sides send all of them.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum TunnelFrame {
    /// There is a new one. From the guest, as the first frame of the tunnel.
    Open {
        /// The run that it belongs to.
        run: StreamId,
    },
    /// Bytes that one end wrote.
    Data {
        /// 1 to [`CHUNK_SIZE`](crate::CHUNK_SIZE) bytes, within the credit.
        #[serde(with = "serde_bytes")]
        bytes: Vec<u8>,
    },
    /// Nothing more comes from this side.
    End,
    /// Allow the other side to send this many bytes more.
    Credit {
        /// Bytes granted beside those granted before.
        bytes: u32,
    },
    /// Nothing more happens in either direction. Last frame of this side.
    Close,
}
