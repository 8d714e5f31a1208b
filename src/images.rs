//! Images beside the runtimes' own, and packages in either: what is configured, what is there of it, and which
//! image a request gets.
//!
//! A request that asks for packages gets the smallest image that holds them all, and then nothing is installed
//! for it ([`choice`]). What an image holds is what its label says; that is looked up once, when a server or a
//! command starts, and after a build. Until then an image counts as missing, and packages are installed.

mod build;
pub mod choice;
mod package;

use std::collections::BTreeMap;
use std::sync::{Arc, OnceLock};

use isol8_actors::pool::{Kind, PoolSize};
use isol8_api::Runtime;
use isol8_backend_docker::setup::SetupError;
use isol8_backend_docker::setup::custom::{self, CustomImage};

use crate::backends;
use crate::config::Config;

pub use build::build_missing;

/// The name of the only backend that has images.
const DOCKER: &str = "docker";

/// Packages in an image, once that is known. Clones share it.
type Held = Arc<OnceLock<Vec<String>>>;

/// The images of a configuration. Clones share what is known of them.
#[derive(Clone, Debug, Default)]
pub struct Images {
    /// Packages that `isol8 setup` puts into the runtimes' own images.
    pub dependencies: BTreeMap<Runtime, Vec<String>>,
    /// Images beside those.
    pub prebuilt: Vec<Prebuilt>,
    own: Arc<OnceLock<BTreeMap<Runtime, Vec<String>>>>,
}

/// One image of `prebuiltImages`.
#[derive(Clone, Debug)]
pub struct Prebuilt {
    /// How it is made.
    pub image: CustomImage,
    /// How many sandboxes of it wait; `None` for no clean ones, and as many used ones as its runtime has.
    pub pool: Option<PoolSize>,
    held: Held,
}

/// By what is configured, and not by what is known of it.
impl PartialEq for Images {
    fn eq(&self, other: &Self) -> bool {
        self.dependencies == other.dependencies && self.prebuilt == other.prebuilt
    }
}

impl PartialEq for Prebuilt {
    fn eq(&self, other: &Self) -> bool {
        (&self.image, self.pool) == (&other.image, other.pool)
    }
}

impl Prebuilt {
    /// One that nothing is known of yet.
    #[must_use]
    pub fn new(image: CustomImage, pool: Option<PoolSize>) -> Self {
        Self {
            image,
            pool,
            held: Held::default(),
        }
    }

    /// What is in it, where it is there and up to date.
    #[must_use]
    pub fn held(&self) -> Option<&[String]> {
        self.held.get().map(Vec::as_slice)
    }
}

impl Images {
    /// Images of which nothing is known yet.
    #[must_use]
    pub fn new(dependencies: BTreeMap<Runtime, Vec<String>>, prebuilt: Vec<Prebuilt>) -> Self {
        Self {
            dependencies,
            prebuilt,
            own: Arc::default(),
        }
    }

    /// What is in a runtime's own image.
    #[must_use]
    pub fn held_by(&self, runtime: Runtime) -> &[String] {
        let held = self.own.get().and_then(|own| own.get(&runtime));
        held.map_or(&[], Vec::as_slice)
    }

    /// How many sandboxes wait of the images that are there.
    #[must_use]
    pub fn pools(&self, usual: &BTreeMap<Runtime, PoolSize>) -> BTreeMap<Kind, PoolSize> {
        let there = self.prebuilt.iter().filter(|one| one.held().is_some());
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

    /// The runtimes whose own images lack something that they should hold, with what they lack.
    fn lacking(&self) -> impl Iterator<Item = (Runtime, Vec<String>)> {
        self.dependencies.iter().filter_map(|(&runtime, wanted)| {
            let missing = package::missing(runtime, wanted, self.held_by(runtime));
            (!missing.is_empty()).then_some((runtime, missing))
        })
    }
}

/// Looks which images are there. Where the backend has none, what is configured of them is of no effect, which
/// is said.
pub async fn look(config: &Config, backend: &str) {
    let images = &config.images;
    if backend != DOCKER {
        if !images.is_empty() {
            log::warn!(backend; "prebuiltImages and dependencies are ignored, they need the docker backend");
        }
        return;
    }
    if let Err(error) = find(config).await {
        log::warn!(error:%; "images could not be looked at, packages are installed for each request");
        return;
    }
    for (runtime, missing) in images.lacking() {
        let missing = missing.join(", ");
        log::warn!(runtime:%, missing; "image lacks dependencies: run `isol8 setup`");
    }
}

async fn find(config: &Config) -> Result<(), SetupError> {
    let images = &config.images;
    let wanted: Vec<_> = images
        .prebuilt
        .iter()
        .map(|one| one.image.clone())
        .collect();
    let found = custom::find_packages(&backends::docker_config(config), &wanted).await?;
    // What was found before is as good.
    let _ = images.own.set(found.runtimes);
    for (prebuilt, packages) in images.prebuilt.iter().zip(found.images) {
        if let Some(packages) = packages {
            let _ = prebuilt.held.set(packages);
        }
    }
    Ok(())
}

/// What `isol8 doctor` says of the images, a line each.
pub async fn report(config: &Config, backend: &str) -> Vec<String> {
    let images = &config.images;
    if images.is_empty() {
        return Vec::new();
    }
    if backend != DOCKER {
        let text =
            "note prebuiltImages and dependencies are for the docker backend, and ignored here";
        return vec![text.to_owned()];
    }
    if let Err(error) = find(config).await {
        return vec![format!("note images could not be looked at: {error}")];
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
        lines.push(match prebuilt.held() {
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
    /// As if this had been found.
    pub(crate) fn with_found(self, own: &[(Runtime, &[&str])], prebuilt: &[&[&str]]) -> Self {
        let owned = |words: &[&str]| words.iter().map(|word| (*word).to_owned()).collect();
        let own = own.iter().map(|(runtime, words)| (*runtime, owned(words)));
        self.own.set(own.collect()).unwrap();
        for (one, words) in self.prebuilt.iter().zip(prebuilt) {
            one.held.set(owned(words)).unwrap();
        }
        self
    }
}
