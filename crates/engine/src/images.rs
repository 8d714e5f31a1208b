//! Custom images and packages in images: the configured ones, the known content of each, and the choice for a
//! request.
//!
//! A request with packages gets the smallest image that holds all of them, and then nothing is installed for it
//! ([`choice`]). The label of an image lists its packages. Labels are read once, when a server or a command starts,
//! and after a build. Until then an image counts as missing, and packages are installed.

mod build;
pub mod choice;
mod package;

use std::collections::BTreeMap;
use std::sync::{Arc, OnceLock};

use isol8_actors::pool::{Kind, PoolSize};
use isol8_api::Runtime;
use isol8_backend_docker::setup::SetupError;
use isol8_backend_docker::setup::custom::{self, CustomImage};
use isol8_config::{Config, ImageSettings, PrebuiltImage};

use crate::backends;

pub use build::build_missing;

/// Name of the only backend that has images.
const DOCKER: &str = "docker";

/// Packages in an image, once they are known. Clones share the value.
type KnownPackages = Arc<OnceLock<Vec<String>>>;

/// The images of a configuration. Clones share the knowledge about their content.
#[derive(Clone, Debug, Default)]
pub struct Images {
    /// Packages that `isol8 setup` installs in the runtimes' own images.
    pub dependencies: BTreeMap<Runtime, Vec<String>>,
    /// Images in addition to the runtimes' own.
    pub prebuilt: Vec<Prebuilt>,
    runtime_packages: Arc<OnceLock<BTreeMap<Runtime, Vec<String>>>>,
}

/// An image of `prebuiltImages`.
#[derive(Clone, Debug)]
pub struct Prebuilt {
    /// The specification from which the image is built.
    pub image: CustomImage,
    /// Number of idle sandboxes of the image; `None` for no clean ones, and as many dirty ones as its runtime has.
    pub pool: Option<PoolSize>,
    packages: KnownPackages,
}

/// Returns the specification from which a configured image is built.
#[must_use]
pub fn custom_image(settings: &PrebuiltImage) -> CustomImage {
    let PrebuiltImage {
        tag,
        runtime,
        packages,
        setup_script,
        pool: _,
    } = settings;
    CustomImage {
        tag: tag.clone(),
        runtime: *runtime,
        packages: packages.clone(),
        setup_script: setup_script.clone(),
    }
}

impl Prebuilt {
    fn new(settings: &PrebuiltImage) -> Self {
        Self {
            image: custom_image(settings),
            pool: settings.pool,
            packages: KnownPackages::default(),
        }
    }

    /// Returns the packages in the image if it exists and is up to date.
    #[must_use]
    pub fn packages(&self) -> Option<&[String]> {
        self.packages.get().map(Vec::as_slice)
    }
}

impl Images {
    /// Returns images whose content is not known yet.
    #[must_use]
    pub fn new(settings: &ImageSettings) -> Self {
        Self {
            dependencies: settings.dependencies.clone(),
            prebuilt: settings.prebuilt.iter().map(Prebuilt::new).collect(),
            runtime_packages: Arc::default(),
        }
    }

    /// Returns the packages in a runtime's own image.
    #[must_use]
    pub fn packages_of(&self, runtime: Runtime) -> &[String] {
        let held = self
            .runtime_packages
            .get()
            .and_then(|own| own.get(&runtime));
        held.map_or(&[], Vec::as_slice)
    }

    /// Returns the pool sizes of the images that exist.
    #[must_use]
    pub fn pools(&self, usual: &BTreeMap<Runtime, PoolSize>) -> BTreeMap<Kind, PoolSize> {
        let there = self.prebuilt.iter().filter(|one| one.packages().is_some());
        let pools = there.map(|Prebuilt { image, pool, .. }| {
            let kind = Kind {
                runtime: image.runtime,
                image: Some(image.tag.clone()),
            };
            let dirty = usual.get(&image.runtime).map_or(0, |size| size.dirty);
            (kind, pool.unwrap_or(PoolSize::fixed(0, dirty)))
        });
        pools.collect()
    }

    fn is_empty(&self) -> bool {
        self.prebuilt.is_empty() && self.dependencies.is_empty()
    }

    /// Returns the runtimes whose own images lack configured packages, with the missing packages.
    fn lacking(&self) -> impl Iterator<Item = (Runtime, Vec<String>)> {
        self.dependencies.iter().filter_map(|(&runtime, wanted)| {
            let missing = package::missing(runtime, wanted, self.packages_of(runtime));
            (!missing.is_empty()).then_some((runtime, missing))
        })
    }
}

/// Looks up which images exist. If the backend has no images, warns that their configuration has no effect.
pub async fn look_up(images: &Images, config: &Config, backend: &str) {
    if backend != DOCKER {
        if !images.is_empty() {
            log::warn!(backend; "ignoring prebuiltImages and dependencies, which need the docker backend");
        }
        return;
    }
    if let Err(error) = find(images, config).await {
        log::warn!(error:%; "cannot look up images, so packages are installed for each request");
        return;
    }
    for (runtime, missing) in images.lacking() {
        let missing = missing.join(", ");
        log::warn!(runtime:%, missing; "image lacks dependencies: run `isol8 setup`");
    }
}

async fn find(images: &Images, config: &Config) -> Result<(), SetupError> {
    let wanted: Vec<_> = images
        .prebuilt
        .iter()
        .map(|one| one.image.clone())
        .collect();
    let found = custom::find_packages(&backends::docker_config(config), &wanted).await?;
    // Keep an earlier result, which is as good.
    let _ = images.runtime_packages.set(found.runtimes);
    for (prebuilt, packages) in images.prebuilt.iter().zip(found.images) {
        if let Some(packages) = packages {
            let _ = prebuilt.packages.set(packages);
        }
    }
    Ok(())
}

/// Returns the lines of `isol8 doctor` about images.
pub async fn report(config: &Config, backend: &str) -> Vec<String> {
    let images = &Images::new(&config.startup.images);
    if images.is_empty() {
        return Vec::new();
    }
    if backend != DOCKER {
        let text =
            "note prebuiltImages and dependencies need the docker backend and are ignored here";
        return vec![text.to_owned()];
    }
    if let Err(error) = find(images, config).await {
        return vec![format!("note cannot look up images: {error}")];
    }
    let mut lines = Vec::new();
    for (runtime, missing) in images.lacking() {
        let missing = missing.join(", ");
        lines.push(format!(
            "{runtime} lacks dependencies: {missing}: run `isol8 setup`"
        ));
    }
    for prebuilt in &images.prebuilt {
        let CustomImage { tag, runtime, .. } = &prebuilt.image;
        lines.push(match prebuilt.packages() {
            Some(held) => format!("{runtime} ok: {tag} holds {}", held.join(", ")),
            None => {
                format!("{runtime} no: {tag} is missing or not up to date: run `isol8 setup`")
            }
        });
    }
    lines
}

#[cfg(test)]
impl Images {
    /// Returns the images as if this content had been found.
    pub(crate) fn with_found(self, own: &[(Runtime, &[&str])], prebuilt: &[&[&str]]) -> Self {
        let owned = |words: &[&str]| words.iter().map(|word| (*word).to_owned()).collect();
        let own = own.iter().map(|(runtime, words)| (*runtime, owned(words)));
        self.runtime_packages.set(own.collect()).unwrap();
        for (one, words) in self.prebuilt.iter().zip(prebuilt) {
            one.packages.set(owned(words)).unwrap();
        }
        self
    }
}
