//! The settings that take effect at a start only.

use std::path::PathBuf;

use isol8_backend::{Certificates, PrewarmConfig};

use crate::backend::{BackendChoice, DockerSettings};
use crate::images::ImageSettings;
use crate::server::{ListenSettings, ShutdownSettings};

/// Settings that need a restart of the server: a reload never changes a field of this type, or of the types in it.
#[derive(Clone, Debug, PartialEq)]
pub struct Startup {
    /// The backend to run sandboxes on.
    pub backend: BackendChoice,
    /// Directory in which instances keep their sandboxes' directories.
    pub state: PathBuf,
    /// Address, user and connections of the HTTP server.
    pub listen: ListenSettings,
    /// Settings for interpreters that are started ahead of requests.
    pub prewarm: PrewarmConfig,
    /// The Docker backend's settings.
    pub docker: DockerSettings,
    /// The certificates that sandboxes trust.
    pub certificates: Option<Certificates>,
    /// Images in addition to the runtimes' own, and the packages in all of them.
    pub images: ImageSettings,
    /// Directory of the native backend's unpacked roots; `None` for the host's own programs.
    pub images_root: Option<PathBuf>,
    /// Most bytes in the cache of code that is fetched for requests.
    pub code_cache_bytes: u64,
    /// Treatment of runs and sessions when the server ends.
    pub shutdown: ShutdownSettings,
}

impl Startup {
    /// Returns the keys, or the sections, whose values differ. The patterns name every field, so that the compiler asks
    /// for the key of a new one.
    pub(super) fn changed_keys(&self, other: &Self) -> impl Iterator<Item = &'static str> + use<> {
        let Self {
            backend,
            state,
            listen,
            prewarm,
            docker,
            certificates,
            images,
            images_root,
            code_cache_bytes,
            shutdown,
        } = self;
        let ListenSettings {
            host,
            port,
            user,
            cors_origins,
            max_bodies,
            header_timeout,
            keep_alive,
            stall_timeout,
            max_connections,
        } = listen;
        let theirs = &other.listen;
        let keys = [
            ("backend", *backend != other.backend),
            ("stateDir", *state != other.state),
            ("server.host", *host != theirs.host),
            ("server.port", *port != theirs.port),
            ("server.user", *user != theirs.user),
            ("server.corsOrigins", *cors_origins != theirs.cors_origins),
            ("server.maxBodiesSize", *max_bodies != theirs.max_bodies),
            (
                "server.headerTimeoutMs",
                *header_timeout != theirs.header_timeout,
            ),
            ("server.keepAliveMs", *keep_alive != theirs.keep_alive),
            (
                "server.stallTimeoutMs",
                *stall_timeout != theirs.stall_timeout,
            ),
            (
                "server.maxConnections",
                *max_connections != theirs.max_connections,
            ),
            ("runtimes", *prewarm != other.prewarm),
            ("docker", *docker != other.docker),
            ("network.caBundle", *certificates != other.certificates),
            ("prebuiltImages and dependencies", *images != other.images),
            ("images.root", *images_root != other.images_root),
            (
                "remoteCode.cacheMaxBytes",
                *code_cache_bytes != other.code_cache_bytes,
            ),
            ("shutdown", *shutdown != other.shutdown),
        ];
        let changed = keys.into_iter().filter(|(_, differs)| *differs);
        changed.map(|(key, _)| key)
    }
}
