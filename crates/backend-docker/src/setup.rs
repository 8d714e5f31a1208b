//! Builds the images of the runtimes.
//!
//! All images are built from one Dockerfile, `images/Dockerfile`, whose stages run the scripts of `images/install`. These
//! files are included in this crate. The base image is
//! pulled. If no registry can be reached, the base is bootstrapped from Debian's packages with
//! `mmdebstrap`. Builds use the host's network instead of the engine's bridge. So they need neither
//! packet forwarding nor a resolver that containers can reach (containers cannot reach a resolver on the host's
//! loopback interface), and they work in an engine that was started without a bridge.
//!
//! Interpreters that Debian does not have come from PyPI and npm. Environment variables of the setup name a company's
//! proxy or index: the same variables that pip, npm and apt read themselves (see `build::FORWARDED`).
//!
//! An image has a label with a hash of all inputs of its build. The image is not built again while the hash is the
//! same.
//!
//! [`custom`] adds packages to the images of the runtimes, and builds further images on top of them.

mod base;
mod build;
mod context;
pub mod custom;
pub mod root;

use std::collections::{BTreeMap, HashMap};
use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use bollard::models::ImageInspect;
use bollard::query_parameters::{PruneImagesOptionsBuilder, RemoveImageOptions};
use isol8_api::Runtime;

use crate::DockerConfig;
use crate::engine::{CALL_DEADLINE, Engine, EngineError};
use build::ImageBuild;
use context::Inputs;
use custom::{CustomImage, UNFINISHED, UNFINISHED_LABEL};

/// Default base image.
pub const DEFAULT_BASE: &str = "debian:trixie-slim";

/// Label with the hash of all inputs of an image's build.
const HASH_LABEL: &str = "isol8.hash";
/// Label, in the Dockerfile, of stages that are not part of any final image.
const STAGE_LABEL: &str = "isol8.stage";
/// Label with the version of the image's interpreter.
pub(crate) const VERSION_LABEL: &str = "isol8.version";

/// Deadline of pruning images: removing thousands of files takes seconds, and longer on a busy disk.
const PRUNE_DEADLINE: Duration = Duration::from_secs(5 * 60);

/// Age at which the remains of a build are useless as a cache, and at which no build is still running.
const FAILED_BUILD_AGE: &str = "24h";

/// Options of a setup.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SetupOptions {
    /// The runtimes whose images are built.
    pub runtimes: Vec<Runtime>,
    /// The reference of the base image: Debian, or an image made from Debian.
    pub base: String,
    /// Whether the base is bootstrapped instead of using [`Self::base`].
    pub bootstrap: bool,
    /// A file of PEM certificates to trust in builds and in sandboxes, for example of a company's
    /// proxy that inspects TLS.
    pub ca_bundle: Option<PathBuf>,
    /// Whether images that are up to date are built again.
    pub force: bool,
    /// Packages in the images of the runtimes, in the form of [`CustomImage::packages`].
    pub dependencies: BTreeMap<Runtime, Vec<String>>,
}

impl Default for SetupOptions {
    fn default() -> Self {
        Self {
            runtimes: runtimes(),
            base: DEFAULT_BASE.to_owned(),
            bootstrap: false,
            ca_bundle: None,
            force: false,
            dependencies: BTreeMap::new(),
        }
    }
}

/// Progress of a setup.
#[derive(Clone, Debug, PartialEq)]
pub enum SetupEvent {
    /// The image is up to date.
    Skipped {
        /// The image's runtime.
        runtime: Runtime,
        /// The image's tag.
        tag: String,
    },
    /// The base image is being pulled.
    BasePulling {
        /// The reference of the base image.
        reference: String,
    },
    /// The base image is being made from Debian's packages.
    BaseBootstrapping {
        /// The reason why the base image is not pulled.
        reason: String,
    },
    /// An image is being built.
    Building {
        /// The image's runtime.
        runtime: Runtime,
        /// The image's tag.
        tag: String,
    },
    /// A line that a tool or the engine printed.
    Log(String),
    /// An image is ready.
    Done {
        /// The image's runtime.
        runtime: Runtime,
        /// The image's tag.
        tag: String,
        /// Duration of the build.
        seconds: f64,
    },
}

/// Callback for the events of a setup.
pub type Report<'a> = &'a mut (dyn FnMut(SetupEvent) + Send);

/// The reason why a setup failed.
#[derive(Debug, thiserror::Error)]
pub enum SetupError {
    /// The engine does not answer, or refuses.
    #[error("{0}")]
    Engine(String),
    /// The configuration has no name for the image.
    #[error("no image can be built for {0}: the configuration does not name one")]
    Unnamed(Runtime),
    /// The certificates cannot be used.
    #[error("ca bundle {}: {reason}", .path.display())]
    CaBundle {
        /// Path of the file.
        path: PathBuf,
        /// The problem of the file.
        reason: String,
    },
    /// The image that another image is built on is missing.
    #[error("image {tag} cannot be built: image {base} is missing; run `isol8 setup`")]
    NoBase {
        /// Tag of the image.
        tag: String,
        /// Tag of the missing image.
        base: String,
    },
    /// The base image cannot be made.
    #[error("base image cannot be made: {0}{hint}", hint = certificate_hint(.0))]
    Base(String),
    /// A root file system cannot be made.
    #[error("root cannot be made: {0}{hint}", hint = certificate_hint(.0))]
    Root(String),
    /// A build failed.
    #[error("image {tag} for {runtime} cannot be built: {reason}\n{log}{hint}", hint = certificate_hint(.log))]
    Build {
        /// The image's runtime.
        runtime: Runtime,
        /// The image's tag.
        tag: String,
        /// The engine's error.
        reason: String,
        /// The last lines of the build's output.
        log: String,
    },
}

/// Returns the fix for a certificate that a tool did not trust; empty for all other problems.
fn certificate_hint(log: &str) -> &'static str {
    // Messages of pip, npm, apt, curl, OpenSSL and rustls.
    const MESSAGES: [&str; 9] = [
        "certificate verify failed",
        "certificate verification failed",
        "self-signed certificate",
        "self signed certificate",
        "self_signed_cert",
        "unable to get local issuer",
        "unable_to_get_issuer",
        "unable_to_verify_leaf",
        "unknownissuer",
    ];
    let log = log.to_lowercase();
    if MESSAGES.iter().any(|message| log.contains(message)) {
        return "\na certificate is not trusted; set images.caBundle to the PEM file of its authority, for example of \
                a proxy that inspects TLS";
    }
    ""
}

impl From<EngineError> for SetupError {
    fn from(error: EngineError) -> Self {
        Self::Engine(error.to_string())
    }
}

/// Returns the images whose inputs differ from those that [`setup`] would use now, for example images of another version
/// of this program. Images that are missing or were not built by isol8 are not included.
///
/// # Errors
/// [`SetupError::Engine`], [`SetupError::CaBundle`].
pub async fn outdated(
    config: &DockerConfig,
    options: &SetupOptions,
) -> Result<Vec<(Runtime, String)>, SetupError> {
    let certificates = certificates_of(options)?;
    let hash = inputs(options, &certificates).hash();
    let engine = Engine::connect(config.host.as_deref()).await?;
    let mut outdated = Vec::new();
    for &runtime in &options.runtimes {
        let tag = plain_tag(config, options, runtime)?;
        let image = inspect(&engine, &tag).await?;
        let made_from = image.as_ref().and_then(hash_of);
        if made_from.is_some_and(|made_from| *made_from != hash) {
            outdated.push((runtime, tag));
        }
    }
    Ok(outdated)
}

fn certificates_of(options: &SetupOptions) -> Result<Vec<String>, SetupError> {
    match &options.ca_bundle {
        Some(path) => read_certificates(path),
        None => Ok(Vec::new()),
    }
}

fn inputs<'a>(options: &'a SetupOptions, certificates: &'a [String]) -> Inputs<'a> {
    Inputs {
        base: &options.base,
        bootstrap: options.bootstrap,
        certificates,
    }
}

/// Builds every image that is missing or not up to date.
///
/// # Errors
/// Any [`SetupError`]; images that were done before it stay.
pub async fn setup(
    config: &DockerConfig,
    options: &SetupOptions,
    report: Report<'_>,
) -> Result<(), SetupError> {
    let certificates = certificates_of(options)?;
    let inputs = inputs(options, &certificates);
    let hash = inputs.hash();
    let engine = Engine::connect(config.host.as_deref()).await?;

    let mut outdated = Vec::new();
    for &runtime in &options.runtimes {
        let tag = plain_tag(config, options, runtime)?;
        let old = inspect(&engine, &tag).await?;
        if !options.force && old.as_ref().and_then(hash_of) == Some(&hash) {
            report(SetupEvent::Skipped { runtime, tag });
        } else {
            outdated.push((runtime, tag, old));
        }
    }
    if outdated.is_empty() {
        return add_dependencies(&engine, config, options, report).await;
    }

    outdated.sort_by_key(|(runtime, ..)| stage_of(*runtime));
    if options.force {
        // The last stage builds all stages before it again; the other images then come from the cache.
        outdated.reverse();
    }

    let base = base::provide(&engine, options, report).await?;
    let context = inputs
        .archive()
        .map_err(|error| SetupError::Engine(format!("build context cannot be packed: {error}")))?;
    let forwarded = build::forwarded(|name| std::env::var(name).ok());
    let mut forced: Option<build::StageTimes> = None;
    for (position, (runtime, tag, old)) in outdated.into_iter().enumerate() {
        let start = Instant::now();
        report(SetupEvent::Building {
            runtime,
            tag: tag.clone(),
        });
        let image_build = ImageBuild {
            runtime,
            tag: &tag,
            base: &base,
            hash: &hash,
            context: &context,
            forwarded: &forwarded,
            no_cache: options.force && position == 0,
        };
        let stages = build::build(&engine, &image_build, report).await?;
        if let Some(id) = old.and_then(|old| old.id) {
            remove_if_untagged(&engine, &id).await?;
        }
        // A forced first build makes the stages of all images; the other builds take them from the cache.
        let own = start.elapsed();
        let took = match (&forced, position) {
            (Some(all), _) => own + all.duration(runtime).unwrap_or_default(),
            (None, 0) if options.force => stages.duration(runtime).unwrap_or(own),
            (None, _) => own,
        };
        if options.force && position == 0 {
            forced = Some(stages);
        }
        let seconds = took.as_secs_f64();
        report(SetupEvent::Done {
            runtime,
            tag,
            seconds,
        });
    }
    remove_stages(&engine).await?;
    add_dependencies(&engine, config, options, report).await
}

/// Returns the packages of a runtime.
fn dependencies_of(options: &SetupOptions, runtime: Runtime) -> &[String] {
    options
        .dependencies
        .get(&runtime)
        .map_or(&[], Vec::as_slice)
}

/// Returns the tag of a runtime's image without packages. If the configuration has no packages for the runtime, this is
/// the final tag.
fn plain_tag(
    config: &DockerConfig,
    options: &SetupOptions,
    runtime: Runtime,
) -> Result<String, SetupError> {
    let tag = config.images.get(&runtime);
    let tag = tag.ok_or(SetupError::Unnamed(runtime))?;
    if dependencies_of(options, runtime).is_empty() {
        return Ok(tag.clone());
    }
    // A name without a tag means the default tag.
    let name = tag.rsplit('/').next().unwrap_or_default();
    let tag = if name.contains(':') {
        format!("{tag}-plain")
    } else {
        format!("{tag}:plain")
    };
    Ok(tag)
}

/// Builds the images of the runtimes that have packages in the configuration.
async fn add_dependencies(
    engine: &Engine,
    config: &DockerConfig,
    options: &SetupOptions,
    report: Report<'_>,
) -> Result<(), SetupError> {
    for &runtime in &options.runtimes {
        let packages = dependencies_of(options, runtime);
        if packages.is_empty() {
            continue;
        }
        let tag = config.images.get(&runtime);
        let image = CustomImage {
            tag: tag.ok_or(SetupError::Unnamed(runtime))?.clone(),
            runtime,
            packages: packages.into(),
            setup_script: None,
        };
        let plain = plain_tag(config, options, runtime)?;
        custom::build_on(engine, &plain, &image, options.force, report).await?;
    }
    Ok(())
}

/// Returns all runtimes, in the order of their stages in the Dockerfile.
#[must_use]
pub fn runtimes() -> Vec<Runtime> {
    let mut runtimes = Runtime::ALL.to_vec();
    runtimes.sort_by_key(|runtime| stage_of(*runtime));
    runtimes
}

/// Returns the position of a runtime's stage in the Dockerfile.
fn stage_of(runtime: Runtime) -> Option<usize> {
    context::dockerfile().find(&format!(" AS {runtime}\n"))
}

fn read_certificates(path: &Path) -> Result<Vec<String>, SetupError> {
    let error = |reason: String| SetupError::CaBundle {
        path: path.to_owned(),
        reason,
    };
    let text = std::fs::read_to_string(path).map_err(|e: io::Error| error(e.to_string()))?;
    let certificates = context::certificates(&text);
    if certificates.is_empty() {
        return Err(error("no pem certificate in the file".to_owned()));
    }
    Ok(certificates)
}

async fn inspect(engine: &Engine, image: &str) -> Result<Option<ImageInspect>, EngineError> {
    let inspected = engine.docker.inspect_image(image);
    match engine.call(CALL_DEADLINE, inspected).await {
        Ok(image) => Ok(Some(image)),
        Err(error) if error.is_not_found() => Ok(None),
        Err(error) => Err(error),
    }
}

/// Returns the hash of the inputs of an image, if isol8 built the image.
fn hash_of(image: &ImageInspect) -> Option<&String> {
    label_of(image, HASH_LABEL)
}

fn label_of<'a>(image: &'a ImageInspect, name: &str) -> Option<&'a String> {
    image.config.as_ref()?.labels.as_ref()?.get(name)
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Removes an image that has no tag any more because a newer image got it.
async fn remove_if_untagged(engine: &Engine, id: &str) -> Result<(), EngineError> {
    let tags = inspect(engine, id).await?.and_then(|image| image.repo_tags);
    if tags.is_none_or(|tags| !tags.is_empty()) {
        return Ok(());
    }
    let removed = engine
        .docker
        .remove_image(id, None::<RemoveImageOptions>, None);
    match engine.call(CALL_DEADLINE, removed).await {
        // Containers still use the image.
        Err(EngineError::Refused { message, .. }) => {
            log::debug!(image = id, reason:% = message; "old image is not removed");
            Ok(())
        }
        answer => answer.map(|_| ()),
    }
}

/// Removes images of isol8 that newer ones have replaced, and the remains of old failed builds. Images with a name and
/// running builds are not affected. Returns the number of removed images.
pub(crate) async fn remove_outdated(engine: &Engine) -> Result<usize, EngineError> {
    let unfinished = format!("{UNFINISHED_LABEL}={UNFINISHED}");
    let replaced = [
        ("label", HASH_LABEL.to_owned()),
        ("label!", unfinished.clone()),
    ];
    let failed = [
        ("label", unfinished),
        ("until", FAILED_BUILD_AGE.to_owned()),
    ];
    Ok(prune(engine, replaced).await? + prune(engine, failed).await?)
}

/// Removes images without a name that match the filters. Returns their number.
async fn prune(engine: &Engine, filters: [(&str, String); 2]) -> Result<usize, EngineError> {
    let filters = filters.map(|(key, value)| (key.to_owned(), vec![value]));
    let mut filters = HashMap::from(filters);
    filters.insert("dangling".to_owned(), vec!["true".to_owned()]);
    let options = PruneImagesOptionsBuilder::new().filters(&filters).build();
    let pruned = engine.docker.prune_images(Some(options));
    let pruned = engine.call(PRUNE_DEADLINE, pruned).await?;
    let deleted = pruned.images_deleted.unwrap_or_default();
    // The engine's list includes removed layers, which count too.
    Ok(deleted.iter().filter(|item| item.deleted.is_some()).count())
}

/// Removes the stages that final images copy from: all downloads, about 350 MB.
async fn remove_stages(engine: &Engine) -> Result<(), EngineError> {
    let filters = HashMap::from([
        ("dangling".to_owned(), vec!["true".to_owned()]),
        ("label".to_owned(), vec![STAGE_LABEL.to_owned()]),
    ]);
    let options = PruneImagesOptionsBuilder::new().filters(&filters).build();
    let pruned = engine.docker.prune_images(Some(options));
    engine.call(PRUNE_DEADLINE, pruned).await.map(|_| ())
}

/// Waits for `work` no longer than `deadline`. The error is a text for display.
async fn with_deadline<T>(
    deadline: Duration,
    work: impl Future<Output = Result<T, String>>,
) -> Result<T, String> {
    let minutes = deadline.as_secs() / 60;
    let late = |_| Err(format!("not finished within {minutes} min"));
    tokio::time::timeout(deadline, work)
        .await
        .unwrap_or_else(late)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bundle_without_certificates_is_refused_by_name() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("ca.pem");
        std::fs::write(&path, "nothing\n").unwrap();
        let error = read_certificates(&path).unwrap_err().to_string();
        assert!(error.contains("ca.pem: no pem certificate"), "{error}");
        let error = read_certificates(&directory.path().join("x")).unwrap_err();
        assert!(matches!(error, SetupError::CaBundle { .. }));
    }

    #[test]
    fn a_certificate_that_is_not_trusted_is_explained_for_every_tool() {
        for log in [
            "SSLError(SSLCertVerificationError(1, '[SSL: CERTIFICATE_VERIFY_FAILED] certificate verify failed: \
             unable to get local issuer certificate (_ssl.c:1006)'))",
            "npm error code SELF_SIGNED_CERT_IN_CHAIN",
            "npm error code UNABLE_TO_GET_ISSUER_CERT_LOCALLY",
            "npm error UNABLE_TO_VERIFY_LEAF_SIGNATURE",
            "Certificate verification failed: The certificate is NOT trusted.",
            "invalid peer certificate: UnknownIssuer",
            "curl: (60) SSL certificate problem: self-signed certificate in certificate chain",
        ] {
            let error = SetupError::Build {
                runtime: Runtime::Python,
                tag: "isol8:python".to_owned(),
                reason: "returned a non-zero code: 1".to_owned(),
                log: log.to_owned(),
            };
            assert!(error.to_string().contains("set images.caBundle"), "{error}");
            assert!(
                SetupError::Root(log.to_owned())
                    .to_string()
                    .contains("images.caBundle")
            );
        }
        assert_eq!(
            certificate_hint("ERROR: No matching distribution found"),
            ""
        );
    }

    #[tokio::test(start_paused = true)]
    async fn work_that_exceeds_its_deadline_is_cancelled() {
        let work = std::future::pending::<Result<(), String>>();
        let error = with_deadline(Duration::from_secs(120), work)
            .await
            .unwrap_err();
        assert_eq!(error, "not finished within 2 min");
    }
}
