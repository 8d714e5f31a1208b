//! Archives of root file systems, for the native backend, which runs without an engine.
//!
//! If an engine answers and has up-to-date images, the engine exports them. Otherwise `mmdebstrap` makes one
//! root for all runtimes from Debian's packages and runs `images/root` in it.
//! Stages of the Dockerfile and `images/root` call the same scripts in `images/install`, which define the versions.

mod bootstrap;
mod export;

use std::io;

use bytes::Bytes;
use futures::stream::BoxStream;
use isol8_api::Runtime;

use super::build::BUILD_DEADLINE;
use super::{
    Report, SetupError, SetupOptions, certificates_of, hash_of, inputs, inspect, with_deadline,
};
use crate::DockerConfig;
use crate::engine::{Engine, EngineError};

/// A root as a tar archive, in pieces. The stream ends with an error if the archive is incomplete.
pub type Archive = BoxStream<'static, io::Result<Bytes>>;

/// The source of roots.
#[derive(Debug)]
pub struct Source {
    hash: String,
    certificates: Vec<String>,
    origin: Origin,
}

#[derive(Debug)]
enum Origin {
    /// The engine has an up-to-date image for each runtime.
    Engine(Engine, Vec<(Runtime, String)>),
    /// The engine cannot be used, for this reason.
    Debian(String),
}

impl Source {
    /// Looks for the images of the runtimes, and falls back to Debian's packages.
    ///
    /// # Errors
    /// [`SetupError::CaBundle`].
    pub async fn find(config: &DockerConfig, options: &SetupOptions) -> Result<Self, SetupError> {
        let certificates = certificates_of(options)?;
        let hash = inputs(options, &certificates).hash();
        let origin = match find_images(config, &options.runtimes, &hash).await {
            Ok(origin) => origin,
            Err(error) => Origin::Debian(error.to_string()),
        };
        Ok(Self {
            hash,
            certificates,
            origin,
        })
    }

    /// Returns the hash of all inputs of the roots, which does not depend on the origin.
    #[must_use]
    pub fn hash(&self) -> &str {
        &self.hash
    }

    /// Returns the reason why the roots are bootstrapped; `None` if an engine exports them.
    #[must_use]
    pub fn bootstrap_reason(&self) -> Option<&str> {
        match &self.origin {
            Origin::Engine(..) => None,
            Origin::Debian(reason) => Some(reason),
        }
    }

    /// Groups runtimes by the archive that contains them.
    #[must_use]
    pub fn groups(&self, runtimes: &[Runtime]) -> Vec<Vec<Runtime>> {
        match &self.origin {
            Origin::Engine(..) => runtimes.iter().map(|runtime| vec![*runtime]).collect(),
            Origin::Debian(_) => vec![runtimes.to_vec()],
        }
    }

    /// Makes the archive of one of the [groups](Self::groups) while `take` reads it.
    ///
    /// # Errors
    /// [`SetupError::Root`], with the error of `take` if that failed.
    pub async fn provide(
        &self,
        group: &[Runtime],
        options: &SetupOptions,
        report: Report<'_>,
        take: impl AsyncFnOnce(Archive) -> Result<(), String>,
    ) -> Result<(), SetupError> {
        let work = async {
            match &self.origin {
                Origin::Engine(engine, images) => {
                    let image = group
                        .first()
                        .and_then(|runtime| images.iter().find(|(known, _)| known == runtime));
                    let (_, image) = image.ok_or("no image was looked for")?;
                    export::export(engine, image, take).await
                }
                Origin::Debian(_) => {
                    bootstrap::bootstrap(&inputs(options, &self.certificates), report, take).await
                }
            }
        };
        let done = with_deadline(BUILD_DEADLINE, work).await;
        done.map_err(SetupError::Root)
    }
}

async fn find_images(
    config: &DockerConfig,
    runtimes: &[Runtime],
    hash: &String,
) -> Result<Origin, EngineError> {
    let engine = Engine::connect(config.host.as_deref()).await?;
    let mut images = Vec::new();
    for runtime in runtimes {
        let Some(tag) = config.images.get(runtime) else {
            return Ok(Origin::Debian(format!("{runtime} has no image")));
        };
        let image = inspect(&engine, tag).await?;
        if image.as_ref().and_then(hash_of) != Some(hash) {
            return Ok(Origin::Debian(format!("{tag} is not up to date")));
        }
        images.push((*runtime, tag.clone()));
    }
    Ok(Origin::Engine(engine, images))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn without_an_engine_one_archive_serves_all_runtimes() {
        let directory = tempfile::tempdir().unwrap();
        let socket = directory.path().join("no-such.sock");
        let config = DockerConfig {
            host: Some(format!("unix://{}", socket.display())),
            ..DockerConfig::default()
        };
        let source = Source::find(&config, &SetupOptions::default())
            .await
            .unwrap();
        let reason = source.bootstrap_reason().unwrap();
        assert!(reason.contains("no-such.sock"), "{reason}");
        let runtimes = [Runtime::Python, Runtime::Deno];
        assert_eq!(source.groups(&runtimes), [runtimes]);
        assert_eq!(source.hash().len(), 64);
    }
}
