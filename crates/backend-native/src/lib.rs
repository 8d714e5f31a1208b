//! The native backend: sandboxes without a daemon, from namespaces, cgroups and a read-only root file system, made
//! by libcontainer.
//!
//! libcontainer forks to make a container, and forking is unsound in a process with several threads. So a helper
//! process, the [`spawner`], makes the containers: the same executable, started again, with a single thread. The
//! spawner is also the only part that needs privileges. The backend ([`backend`]) communicates with the spawner over
//! a socket, and otherwise only with the guests.
//!
//! A sandbox has either the host's `/usr`, read-only, with its own `/etc` ([`rootfs`]), or an unpacked root with
//! pinned versions ([`roots`]). Its namespaces, limits and mounts are defined in one module ([`oci`]). Its processes
//! run in a user namespace whose ids belong to no user of the host ([`identity`]). The remains of a crash are found
//! by directory and by cgroup, never by process id ([`cgroup`]).
//!
//! Read in this order: [`backend`], [`spawner`], [`oci`], [`rootfs`], [`roots`], [`identity`],
//! [`cgroup`].

pub mod backend;
pub mod cgroup;
pub mod identity;
pub mod oci;
pub mod rootfs;
pub mod roots;
pub mod spawner;

pub use backend::{NativeBackend, NativeConfig};
pub use spawner::process::run as run_spawner;
