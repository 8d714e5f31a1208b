//! Custom images: a runtime's image with further packages of its package manager, and with the changes of a
//! setup script.
//!
//! The build installs the packages and runs the script once, as root and with the host's network. Labels list the
//! packages of an image, including those of its base, and contain a hash of all inputs of the build. The
//! base's id is one of the inputs, so images are built again for a new base.

use std::collections::{BTreeMap, HashMap};
use std::io;
use std::time::Instant;

use bollard::models::ImageInspect;
use bollard::query_parameters::{BuildImageOptions, BuildImageOptionsBuilder};
use isol8_api::Runtime;
use sha2::{Digest as _, Sha256};

use super::build::{self, BUILD_DEADLINE, BuildLog};
use super::{
    HASH_LABEL, Report, SetupError, SetupEvent, hash_of, hex, inspect, label_of,
    remove_if_untagged, with_deadline,
};
use crate::DockerConfig;
use crate::engine::Engine;

const DOCKERFILE: &str = include_str!("../../../../images/custom/Dockerfile");
const INSTALL: &str = include_str!("../../../../images/custom/install");

/// Label with the packages of an image: their names with versions as requested, separated by
/// spaces, which no name contains.
const PACKAGES_LABEL: &str = "isol8.packages";
/// Label of the layers of an unfinished or replaced image: see the Dockerfile.
pub(super) const UNFINISHED_LABEL: &str = "isol8.unfinished";
/// Value of [`UNFINISHED_LABEL`] for an unfinished image.
pub(super) const UNFINISHED: &str = "yes";

/// Specification of a custom image.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CustomImage {
    /// Name of the image.
    pub tag: String,
    /// The runtime whose image is the base.
    pub runtime: Runtime,
    /// Arguments for the command line of the package manager: pip, npm, bun or deno, or apt for bash. This module does
    /// not check them, except for spaces.
    pub packages: Vec<String>,
    /// Bash script that runs as root after the packages are installed. Files that the script leaves in `/sandbox` and
    /// `/tmp` are not kept.
    pub setup_script: Option<String>,
}

/// Builds an image if it is missing or not up to date, or in any case with `force`.
///
/// # Errors
/// Any [`SetupError`]; an older image with the same name stays.
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

/// Packages in the existing images.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ImagePackages {
    /// Packages in the images of the runtimes that exist.
    pub runtimes: BTreeMap<Runtime, Vec<String>>,
    /// Packages in the requested images, in the order of the request; `None` for images that are missing or not up
    /// to date.
    pub images: Vec<Option<Vec<String>>>,
}

/// Returns the packages in the existing images, without building any.
///
/// # Errors
/// [`SetupError::Engine`].
pub async fn find_packages(
    config: &DockerConfig,
    images: &[CustomImage],
) -> Result<ImagePackages, SetupError> {
    let engine = Engine::connect(config.host.as_deref()).await?;
    let mut found = ImagePackages::default();
    let mut bases = BTreeMap::new();
    for (&runtime, tag) in &config.images {
        if let Some(base) = inspect(&engine, tag).await? {
            found.runtimes.insert(runtime, packages_in(&base));
            bases.insert(runtime, base);
        }
    }
    for image in images {
        let existing = inspect(&engine, &image.tag).await?;
        let base = bases.get(&image.runtime);
        let is_current = |existing: &ImageInspect| {
            base.is_some_and(|base| hash_of(existing) == Some(&image.hash(base)))
        };
        let current = existing.filter(is_current);
        found.images.push(current.as_ref().map(packages_in));
    }
    Ok(found)
}

/// Builds an image on a base image that the engine must have.
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
    let mut log = BuildLog::default();
    let work = run(engine, image, (&base, &hash), force, &mut log, report);
    let built = with_deadline(BUILD_DEADLINE, work).await;
    built.map_err(|reason| SetupError::Build {
        runtime,
        tag: tag.clone(),
        reason,
        log: log.tail(),
    })?;
    if let Some(id) = old.and_then(|old| old.id) {
        remove_if_untagged(engine, &id).await?;
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
    no_cache: bool,
    log: &mut BuildLog,
    report: Report<'_>,
) -> Result<(), String> {
    let context = image
        .archive()
        .map_err(|error| format!("build context cannot be packed: {error}"))?;
    let options = image.options(base, hash, no_cache);
    build::run(engine, &context, options, log, report).await
}

impl CustomImage {
    /// Returns a hash of all inputs of the image, including its base.
    fn hash(&self, base: &ImageInspect) -> String {
        let mut hash = Sha256::new();
        let mut add = |part: &str| {
            // The length of each part is included, so that different lists of parts never hash the same bytes.
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

    /// Returns the packages in sorted order, because their order does not matter.
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

    fn options(&self, base: &ImageInspect, hash: &str, no_cache: bool) -> BuildImageOptions {
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
            .nocache(no_cache)
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
    fn the_hash_depends_on_every_input() {
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
    fn the_packages_of_an_image_include_those_of_its_base() {
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
    fn the_dockerfile_marks_an_image_as_unfinished_before_anything_else() {
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
