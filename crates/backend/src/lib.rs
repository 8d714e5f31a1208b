//! The interface of backends, which make sandboxes.
//!
//! A [`Backend`] makes a [`Sandbox`] from a [`SandboxSpec`]; everything that happens inside a sandbox goes through its
//! [`Control`], the connection to the guest agent, which is the same for every backend. Frames on that connection are
//! hostile: [`control`] checks and bounds them, and ends the connection at the first invalid frame.
//!
//! This crate makes no container and knows no concrete backend. Read [`spec`], [`sandbox`],
//! [`control`], then [`instance`] (the directory that a process keeps its sandboxes under, and by
//! which a later one finds what a crash left behind), [`claim`] and [`adoption`] (how it finds the sandboxes of sessions, and goes on with them),
//! and [`owner`] (a server without privileges, and the files that are given to it).

pub mod adoption;
pub mod certificates;
pub mod cgroup;
pub mod claim;
pub mod control;
pub mod error;
#[cfg(feature = "fake")]
pub mod fake;
pub mod instance;
pub mod lock_file;
pub mod owner;
pub mod sandbox;
pub mod spec;

pub use adoption::Adopted;
pub use certificates::Certificates;
pub use claim::{Claim, Claims, SessionDefaults};
pub use control::{
    Control, ControlError, FileReader, FileWriter, Run, RunEvent, RunInput, Tunnel, Tunnels,
};
pub use error::BackendError;
pub use instance::Instance;
pub use isol8_protocol::{Entry, EntryKind, KernelSettings};
pub use owner::Owner;
pub use sandbox::{Backend, RuntimeStatus, Sandbox, SandboxUsage};
pub use spec::{Kernels, Limits, SandboxId, SandboxSpec, kernel_of};
