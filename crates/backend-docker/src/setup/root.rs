//! The contents of images, as an archive: for a backend that runs without an engine.
//!
//! If an engine answers and has up-to-date images, it exports them. Otherwise `mmdebstrap` makes one root for all
//! runtimes out of Debian's packages and runs in it the commands of the Dockerfile. Versions are in the Dockerfile in
//! both cases.

mod bootstrap;
mod export;
mod script;

use std::io;

use bytes::Bytes;
use futures::stream::BoxStream;
use isol8_api::Runtime;

use super::build::BUILD_DEADLINE;
use super::context::Inputs;
use super::{Report, SetupError, SetupOptions, hash_of, inspect, read_certificates, within};
use crate::DockerConfig;
use crate::engine::{Engine, EngineError};

/// A root as a tar archive, in pieces. It ends with an error if it is incomplete.
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
    /// This engine has all images, which have these names.
    Engine(Engine, Vec<(Runtime, String)>),
    /// Nothing has them, for this reason.
    Debian(String),
}

impl Source {
    /// Looks for the images of these runtimes.
    ///
    /// # Errors
    /// [`SetupError::CaBundle`].
    pub async fn find(config: &DockerConfig, options: &SetupOptions) -> Result<Self, SetupError> {
        let certificates = match &options.ca_bundle {
            Some(path) => read_certificates(path)?,
            None => Vec::new(),
        };
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

    /// Stands for all that the roots are made from, wherever they come from.
    #[must_use]
    pub fn hash(&self) -> &str {
        &self.hash
    }

    /// Why no engine exports the roots, if none does.
    #[must_use]
    pub fn bootstrapped_because(&self) -> Option<&str> {
        match &self.origin {
            Origin::Engine(..) => None,
            Origin::Debian(reason) => Some(reason),
        }
    }

    /// These runtimes, with those together that one archive serves.
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
    /// [`SetupError::Root`], with what `take` says where that failed.
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
        let done = within(BUILD_DEADLINE, work).await;
        done.map_err(SetupError::Root)
    }
}

fn inputs<'a>(options: &'a SetupOptions, certificates: &'a [String]) -> Inputs<'a> {
    Inputs {
        base: &options.base,
        bootstrap: options.bootstrap,
        certificates,
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
    async fn without_an_engine_one_archive_serves_all() {
        let directory = tempfile::tempdir().unwrap();
        let socket = directory.path().join("no-such.sock");
        let config = DockerConfig {
            host: Some(format!("unix://{}", socket.display())),
            ..DockerConfig::default()
        };
        let source = Source::find(&config, &SetupOptions::default())
            .await
            .unwrap();
        let reason = source.bootstrapped_because().unwrap();
        assert!(reason.contains("no-such.sock"), "{reason}");
        let runtimes = [Runtime::Python, Runtime::Deno];
        assert_eq!(source.groups(&runtimes), [runtimes]);
        assert_eq!(source.hash().len(), 64);
    }
}
