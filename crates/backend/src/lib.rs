//! The interface of sandbox backends, and the parts that all backends share.
//!
//! A [`Backend`] makes a [`Sandbox`] from a [`SandboxSpec`]. Everything that happens inside a sandbox goes
//! through its [`Control`], the connection to the guest agent, which is the same for every backend.
//! All data that arrives over that connection is hostile: [`control`] checks it, bounds it, and closes the
//! connection at the first invalid frame.
//!
//! This crate makes no container and knows no concrete backend. The reading order:
//!
//! 1. [`spec`], [`sandbox`] and [`control`]: the sandbox that is asked for, the two traits, the connection.
//! 2. [`instance`]: the directory under which a process keeps its sandboxes, and by which a later process
//!    finds the remains of a crash.
//! 3. [`claim`] and [`adoption`]: how a later process finds the sandboxes of sessions and takes them over.
//! 4. [`owner`]: the user of a server without privileges, and the files that are given to that user.

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
    Control, ControlError, FileReader, FileWriter, RunEvent, RunHandle, RunInput, Tunnel, Tunnels,
};
pub use error::BackendError;
pub use instance::Instance;
pub use isol8_protocol::{EntryKind, PrewarmSettings, RawDirectoryEntry};
pub use owner::Owner;
pub use sandbox::{Backend, RuntimeStatus, Sandbox, SandboxUsage};
pub use spec::{Limits, PrewarmConfig, SandboxId, SandboxSpec};
