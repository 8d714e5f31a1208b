//! Sandboxes as containers of a Docker engine on this host.
//!
//! The only crate that speaks to an engine. The backend makes a container, hands the guest agent in it the socket that
//! the agent listens on, and from then on needs the engine only to change limits and to remove the container. It never
//! runs user code itself, never reads the output of a container, and never gives a container a network interface.
//!
//! Read [`backend`] (what is asked of an engine, and when), then `container` (every setting of a
//! container, with its reason), `sandbox` (one container's life), `image` (which images are taken), `directory`,
//! `handover` and `ids` (what a sandbox has of its own on the host), `engine` (deadlines and errors of
//! single calls), and [`setup`] (how the images are made).

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

/// The engine to use, and the images.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DockerConfig {
    /// The engine's socket, as `unix:///path` or a path; else `DOCKER_HOST`, else the default.
    pub host: Option<String>,
    /// The image of each runtime that this backend offers.
    pub images: BTreeMap<Runtime, String>,
    /// How interpreters are kept booted.
    pub prewarm: PrewarmConfig,
    /// How long claimed containers outlive a process that is gone.
    pub adoptable_for: Duration,
    /// Certificates that programs in containers trust, in the place of the image's.
    pub certificates: Option<Certificates>,
    /// Least size of `/dev/shm`: the most memory that a request may ask for, because what is in it counts towards that.
    pub shm_bytes: u64,
}

impl Default for DockerConfig {
    /// The default engine, and the images that [`setup`] builds.
    fn default() -> Self {
        let image = |runtime: &Runtime| (*runtime, format!("isol8:{runtime}"));
        Self {
            host: None,
            images: setup::RUNTIMES.iter().map(image).collect(),
            prewarm: PrewarmConfig::default(),
            adoptable_for: Duration::from_secs(600),
            certificates: None,
            shm_bytes: 64 << 20,
        }
    }
}
