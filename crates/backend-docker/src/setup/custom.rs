//! Images with packages in them: on a runtime's image, what its package manager installs, and then what a
//! script makes of it.
//!
//! Packages are installed and the script is run as root, once, with the host's network. Labels say which
//! packages an image holds, those of its base included, and hold a hash of all that it was made from: the
//! base's id is part of it, so a new base makes for new images.

use std::collections::{BTreeMap, HashMap};
use std::io;
use std::time::Instant;

use bollard::models::ImageInspect;
use bollard::query_parameters::{BuildImageOptions, BuildImageOptionsBuilder};
use isol8_api::Runtime;
use sha2::{Digest as _, Sha256};

use super::build::{self, BUILD_DEADLINE, Log};
use super::{
    HASH_LABEL, Report, SetupError, SetupEvent, discard, hash_of, hex, inspect, label_of, within,
};
use crate::DockerConfig;
use crate::engine::Engine;

const DOCKERFILE: &str = include_str!("../../../../images/custom/Dockerfile");
const INSTALL: &str = include_str!("../../../../images/custom/install");

/// The label that says which packages an image holds: their names with versions as they were asked for,
/// between spaces, which no name has.
const PACKAGES_LABEL: &str = "isol8.packages";
/// The label of layers whose image is not finished, or not any more: see the Dockerfile.
pub(super) const UNFINISHED_LABEL: &str = "isol8.unfinished";
/// Its value while that is so.
pub(super) const UNFINISHED: &str = "yes";

/// An image to be built.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CustomImage {
    /// Its name.
    pub tag: String,
    /// The runtime that it is for, and on whose image it builds.
    pub runtime: Runtime,
    /// Words for the package manager's command line: of pip, npm, bun or deno, or for bash of apt. Nothing
    /// here checks them, but for spaces.
    pub packages: Vec<String>,
    /// Bash, run as root when the packages are there. Files that it leaves in `/sandbox` and `/tmp` are not kept.
    pub setup_script: Option<String>,
}

/// Builds an image if it is missing or not up to date, or in any case with `force`.
///
/// # Errors
/// Any [`SetupError`]; an older image of its name stays.
pub async fn build(
    config: &DockerConfig,
    image: &CustomImage,
    force: bool,
    report: Report<'_>,
) -> Result<(), SetupError> {
    let engine = Engine::connect(config.host.as_deref()).await?;
    let base = config.images.get(&image.runtime);
    let base = base.ok_or(SetupError::Unnamed(image.runtime))?;
    build_on(&engine, base, image, force, report).await
}

/// The contents of images.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Found {
    /// Packages in the images of the runtimes, of those that there are.
    pub runtimes: BTreeMap<Runtime, Vec<String>>,
    /// Packages in the images that were asked for, in their order; `None` for those that are missing or not up
    /// to date.
    pub images: Vec<Option<Vec<String>>>,
}

/// Looks at the images that there are, without making any.
///
/// # Errors
/// [`SetupError::Engine`].
pub async fn look(config: &DockerConfig, images: &[CustomImage]) -> Result<Found, SetupError> {
    let engine = Engine::connect(config.host.as_deref()).await?;
    let mut found = Found::default();
    let mut bases = BTreeMap::new();
    for (&runtime, tag) in &config.images {
        if let Some(base) = inspect(&engine, tag).await? {
            found.runtimes.insert(runtime, packages_in(&base));
            bases.insert(runtime, base);
        }
    }
    for image in images {
        let there = inspect(&engine, &image.tag).await?;
        let base = bases.get(&image.runtime);
        let is_current = |there: &ImageInspect| {
            base.is_some_and(|base| hash_of(there) == Some(&image.hash(base)))
        };
        let there = there.filter(is_current);
        found.images.push(there.as_ref().map(packages_in));
    }
    Ok(found)
}

/// Builds on an image that the engine has.
pub(super) async fn build_on(
    engine: &Engine,
    base: &str,
    image: &CustomImage,
    force: bool,
    report: Report<'_>,
) -> Result<(), SetupError> {
    let (runtime, tag) = (image.runtime, image.tag.clone());
    let base = inspect(engine, base)
        .await?
        .ok_or_else(|| SetupError::NoBase {
            tag: tag.clone(),
            base: base.to_owned(),
        })?;
    let hash = image.hash(&base);
    let old = inspect(engine, &tag).await?;
    if !force && old.as_ref().and_then(hash_of) == Some(&hash) {
        report(SetupEvent::Skipped { runtime, tag });
        return Ok(());
    }
    let start = Instant::now();
    report(SetupEvent::Building {
        runtime,
        tag: tag.clone(),
    });
    let mut log = Log::default();
    let work = run(engine, image, (&base, &hash), force, &mut log, report);
    let built = within(BUILD_DEADLINE, work).await;
    built.map_err(|reason| SetupError::Build {
        runtime,
        tag: tag.clone(),
        reason,
        log: log.tail(),
    })?;
    if let Some(id) = old.and_then(|old| old.id) {
        discard(engine, &id).await?;
    }
    let seconds = start.elapsed().as_secs_f64();
    report(SetupEvent::Done {
        runtime,
        tag,
        seconds,
    });
    Ok(())
}

async fn run(
    engine: &Engine,
    image: &CustomImage,
    (base, hash): (&ImageInspect, &str),
    fresh: bool,
    log: &mut Log,
    report: Report<'_>,
) -> Result<(), String> {
    let context = image
        .archive()
        .map_err(|error| format!("build context cannot be packed: {error}"))?;
    let options = image.options(base, hash, fresh);
    build::run(engine, &context, options, log, report).await
}

impl CustomImage {
    /// The same for the same image on the same base.
    fn hash(&self, base: &ImageInspect) -> String {
        let mut hash = Sha256::new();
        let mut add = |part: &str| {
            // With its length, so that no two lists of parts read the same.
            hash.update(part.len().to_be_bytes());
            hash.update(part);
        };
        add(DOCKERFILE);
        add(INSTALL);
        add(base.id.as_deref().unwrap_or_default());
        add(self.runtime.name());
        add(self.setup_script.as_deref().unwrap_or_default());
        for package in self.sorted() {
            add(package);
        }
        hex(&hash.finalize())
    }

    /// In another order they are the same packages.
    fn sorted(&self) -> Vec<&str> {
        let mut packages: Vec<&str> = self.packages.iter().map(String::as_str).collect();
        packages.sort_unstable();
        packages.dedup();
        packages
    }

    fn archive(&self) -> io::Result<Vec<u8>> {
        let mut archive = tar::Builder::new(Vec::new());
        let packages: String = self
            .sorted()
            .iter()
            .map(|package| format!("{package}\n"))
            .collect();
        let setup = match &self.setup_script {
            Some(script) => script,
            None => "",
        };
        for (path, content) in [
            ("Dockerfile", DOCKERFILE),
            ("install", INSTALL),
            ("packages", &packages),
            ("setup", setup),
        ] {
            super::context::append(&mut archive, path, content)?;
        }
        archive.into_inner()
    }

    fn options(&self, base: &ImageInspect, hash: &str, fresh: bool) -> BuildImageOptions {
        let mut packages = packages_in(base);
        packages.extend(self.sorted().into_iter().map(str::to_owned));
        packages.sort_unstable();
        packages.dedup();
        let labels = [
            (HASH_LABEL, hash.to_owned()),
            (PACKAGES_LABEL, packages.join(" ")),
            (UNFINISHED_LABEL, "no".to_owned()),
        ];
        let labels = labels.map(|(name, value)| (name.to_owned(), value));
        let mut arguments = HashMap::from([
            (
                "BASE".to_owned(),
                base.id.as_deref().unwrap_or_default().to_owned(),
            ),
            ("RUNTIME".to_owned(), self.runtime.name().to_owned()),
        ]);
        arguments.extend(build::forwarded(|name| std::env::var(name).ok()));
        BuildImageOptionsBuilder::new()
            .t(&self.tag)
            .buildargs(&arguments)
            .labels(&labels.into())
            .networkmode("host")
            .nocache(fresh)
            .rm(true)
            .forcerm(true)
            .build()
    }
}

fn packages_in(image: &ImageInspect) -> Vec<String> {
    let packages = label_of(image, PACKAGES_LABEL).map_or("", String::as_str);
    packages.split_whitespace().map(str::to_owned).collect()
}

#[cfg(test)]
mod tests {
    use bollard::models::ImageConfig;

    use super::*;

    fn image() -> CustomImage {
        CustomImage {
            tag: "isol8-test:custom".to_owned(),
            runtime: Runtime::Python,
            packages: vec!["six".to_owned(), "numpy>=2".to_owned()],
            setup_script: Some("true".to_owned()),
        }
    }

    fn base(id: &str, packages: &str) -> ImageInspect {
        let labels = HashMap::from([(PACKAGES_LABEL.to_owned(), packages.to_owned())]);
        ImageInspect {
            id: Some(id.to_owned()),
            config: Some(ImageConfig {
                labels: Some(labels),
                ..Default::default()
            }),
            ..Default::default()
        }
    }

    #[test]
    fn the_hash_is_of_all_that_the_image_is_made_from() {
        let one = base("sha256:1", "");
        let hash = image().hash(&one);
        let reordered = CustomImage {
            packages: vec!["numpy>=2".to_owned(), "six".to_owned()],
            tag: "other".to_owned(),
            ..image()
        };
        assert_eq!(hash, reordered.hash(&one));
        assert_ne!(hash, image().hash(&base("sha256:2", "")), "another base");
        for other in [
            CustomImage {
                packages: vec!["six".to_owned()],
                ..image()
            },
            CustomImage {
                setup_script: None,
                ..image()
            },
            CustomImage {
                runtime: Runtime::Bash,
                ..image()
            },
        ] {
            assert_ne!(hash, other.hash(&one), "{other:?}");
        }
    }

    #[test]
    fn an_image_holds_what_its_base_held_too() {
        let options = image().options(&base("sha256:1", "attrs six"), "abc", false);
        let labels = options.labels.unwrap();
        assert_eq!(labels[PACKAGES_LABEL], "attrs numpy>=2 six");
        assert_eq!(labels[HASH_LABEL], "abc");
        assert_eq!(labels[UNFINISHED_LABEL], "no");
        assert_eq!(options.buildargs.unwrap()["BASE"], "sha256:1");
        assert_eq!(packages_in(&base("", "a b==1")), ["a", "b==1"]);
        assert!(packages_in(&ImageInspect::default()).is_empty());
    }

    #[test]
    fn the_dockerfile_marks_what_is_not_finished_before_anything_else() {
        let mark = format!("LABEL {UNFINISHED_LABEL}={UNFINISHED}\n");
        let from = DOCKERFILE.find("\nFROM ").unwrap();
        let marked = DOCKERFILE.find(&mark).unwrap();
        assert!(from < marked);
        let between = DOCKERFILE[from..marked].lines().skip(2);
        assert!(
            between
                .into_iter()
                .all(|line| line.is_empty() || line.starts_with('#'))
        );
    }

    #[test]
    fn every_runtime_has_a_package_manager() {
        for runtime in Runtime::ALL {
            assert!(
                INSTALL.contains(&format!("\n    {runtime})\n")),
                "{runtime}"
            );
        }
    }
}
