//! Sandboxes without a daemon: namespaces, cgroups and a read-only root, made by libcontainer.
//!
//! Making a container forks, and forking is unsound in a process with threads. So a helper process, the [`spawner`],
//! does it: the same executable, started anew, with one thread. The spawner is also the only part that needs
//! privileges. The backend ([`backend`]) talks to the spawner over a socket and otherwise only to the guests.
//!
//! A sandbox sees the host's own `/usr`, read-only, and an `/etc` of its own ([`rootfs`]), or a root of pinned versions
//! that was unpacked for it ([`roots`]); its namespaces, limits and mounts are defined in one place ([`oci`]).
//! Everything in a sandbox runs in a user namespace whose ids have no user on the host ([`identity`]). The remains of a
//! crash are found by directory and by cgroup, never by process id ([`cgroup`]).
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
