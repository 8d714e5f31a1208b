//! The key `backend`, and the sections `[docker]` and `[images]`.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::str::FromStr;

use isol8_api::Runtime;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::rule::{Rule, TrustTable};

/// Default of `images.base`. The Docker backend has the same default, which a test of its user compares.
const DEFAULT_BASE: &str = "debian:trixie-slim";

/// The effect of each key in a file of the working directory.
pub(super) const TRUST: TrustTable = &[(
    Rule::Refused,
    &[
        "backend",
        "docker.host",
        "images.base",
        "images.bootstrap",
        "images.caBundle",
        "images.full",
        "images.root",
    ],
)];

/// The backend to run sandboxes on.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum BackendChoice {
    /// Native if it supports everything that is configured, otherwise Docker.
    #[default]
    Auto,
    /// Docker.
    Docker,
    /// Linux namespaces, without a daemon.
    Native,
}

impl FromStr for BackendChoice {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "auto" => Ok(Self::Auto),
            "docker" => Ok(Self::Docker),
            "native" => Ok(Self::Native),
            _ => Err("expected auto, docker or native".to_owned()),
        }
    }
}

/// The Docker backend's settings.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DockerSettings {
    /// The engine's address; `None` for `DOCKER_HOST` or the usual socket.
    pub host: Option<String>,
    /// The images of runtimes that do not use the image that `isol8 setup` builds.
    pub images: BTreeMap<Runtime, String>,
    /// The base image of the runtime images.
    pub base: String,
    /// Whether the base image is made from Debian's packages, without an attempt to pull it.
    pub bootstrap: bool,
    /// File of certificates that runtime images trust in addition to their own.
    pub ca_bundle: Option<PathBuf>,
}

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub(super) struct DockerTable {
    /// Address of the engine; "" is $DOCKER_HOST or the usual socket.
    pub(super) host: String,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub(super) struct ImagesTable {
    /// Base image: Debian, or an image made from it; pulled if it is missing.
    pub(super) base: String,
    /// Whether the base image is made from Debian's packages, without an attempt to pull it.
    pub(super) bootstrap: bool,
    /// PEM file of certificates that images trust in addition to the usual ones; "" for none. Without this key, it is the
    /// file that SSL_CERT_FILE or a similar variable names.
    pub(super) ca_bundle: String,
    /// For Docker: whether to build and serve isol8:full as well, with the packages that code interpreters have.
    pub(super) full: bool,
    /// Root directory of the programs in native sandboxes; "" is this host's own /usr.
    pub(super) root: String,
}

impl Default for ImagesTable {
    fn default() -> Self {
        Self {
            base: DEFAULT_BASE.to_owned(),
            bootstrap: false,
            ca_bundle: String::new(),
            full: false,
            root: String::new(),
        }
    }
}
