//! The spawner: the helper process that makes and removes containers, and the server's client for it.
//!
//! [`process`] runs in the helper: one thread with one loop, which also notices when a container ends.
//! [`client`] starts the helper and exchanges requests and responses with it, each a line of JSON. When the server
//! ends in whatever way, the helper removes every container that is not claimed, and waits for the next server if any
//! is claimed.
//!
//! If the server runs without privileges, a launcher starts the helper for it, within the limits of a
//! [`grant`].

pub mod client;
pub mod grant;
pub mod message;
pub mod process;
