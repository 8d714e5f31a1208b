//! The Docker backend: sandboxes as containers of a Docker engine on this host.
//!
//! Only this crate communicates with an engine. The backend makes a container, and hands the guest agent in the
//! container the socket that the agent listens on. From then on the backend needs the engine only to change limits and
//! to remove the container. This crate never runs user code itself, never reads the output of a container, and never gives a
//! container a network interface.
//!
//! The reading order:
//!
//! 1. [`backend`]: the calls to an engine, and their times.
//! 2. `container`: every setting of a container, with its reason.
//! 3. `sandbox`: the life cycle of a container.
//! 4. `image`: the checks of an image.
//! 5. `directory`, `handover` and `ids`: a sandbox's own files, socket and user ids on the host.
//! 6. `engine`: deadlines and errors of single calls.
//! 7. [`setup`]: the build of the images.

pub mod backend;
mod container;
mod directory;
mod engine;
mod handover;
mod ids;
mod image;
mod sandbox;
pub mod setup;

use std::collections::BTreeMap;
use std::time::Duration;

use isol8_api::Runtime;
use isol8_backend::{Certificates, PrewarmConfig};

pub use backend::DockerBackend;
pub use container::name as container_name;
pub use engine::engine_socket;

/// Configuration of the backend.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DockerConfig {
    /// The engine's socket, as `unix:///path` or a path. If `None`, `DOCKER_HOST` or the default is used.
    pub host: Option<String>,
    /// The image of each runtime that this backend offers.
    pub images: BTreeMap<Runtime, String>,
    /// Settings of the interpreters that guests keep booted.
    pub prewarm: PrewarmConfig,
    /// Time that claimed containers outlive a process that has ended.
    pub adoptable_for: Duration,
    /// Certificates that programs in containers trust, instead of the image's certificates.
    pub certificates: Option<Certificates>,
    /// Minimum size of `/dev/shm`: the largest memory limit that a request may have, because the content of `/dev/shm`
    /// counts towards that limit.
    pub shm_bytes: u64,
}

impl Default for DockerConfig {
    /// Returns a configuration with the default engine, and the images that [`setup`] builds.
    fn default() -> Self {
        let image = |runtime: &Runtime| (*runtime, format!("isol8:{runtime}"));
        Self {
            host: None,
            images: Runtime::ALL.iter().map(image).collect(),
            prewarm: PrewarmConfig::default(),
            adoptable_for: Duration::from_secs(600),
            certificates: None,
            shm_bytes: 64 << 20,
        }
    }
}
