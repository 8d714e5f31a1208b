//! The helper process that makes and removes containers, and the server's side of it.
//!
//! [`process`] runs in the helper: one thread, one loop, which also notices when a container ends.
//! [`client`] starts it and talks to it, one line of JSON each way. When the server goes away,
//! however it does, the helper removes every container and ends.
//!
//! If the server runs without privileges, a launcher starts the helper for it, within the bounds of a [`grant`].

pub mod client;
pub mod grant;
pub mod message;
pub mod process;
