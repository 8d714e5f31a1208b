//! How the images of the runtimes are made.
//!
//! All of them come from one Dockerfile, `images/Dockerfile`, carried in this crate. Its base is
//! pulled, or, where no registry can be reached, bootstrapped from Debian's packages with
//! `mmdebstrap`. Builds use the host's network rather than the engine's bridge: so they need neither
//! packet forwarding nor a resolver that containers can reach (one on the host's loopback cannot
//! be), and they work in an engine that was started without a bridge.
//!
//! Interpreters that Debian has not come from PyPI and npm. A company's proxy or index is named in
//! the environment of the setup, by the variables that pip, npm and apt read themselves (see
//! `build::FORWARDED`).
//!
//! An image carries a hash of all that it was made from; while that is the same it is left alone.
//!
//! Packages that every run of a runtime is to find, and images beside those of the runtimes, are made on top,
//! by [`custom`].

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
use build::Recipe;
use context::Inputs;
use custom::{CustomImage, UNFINISHED, UNFINISHED_LABEL};

/// The runtimes that an image can be built for: all, in the order of their stages in the Dockerfile.
pub const RUNTIMES: [Runtime; 5] = [
    Runtime::Bash,
    Runtime::Python,
    Runtime::Node,
    Runtime::Bun,
    Runtime::Deno,
];

/// The base that is used unless another is named.
pub const DEFAULT_BASE: &str = "debian:trixie-slim";

/// The label that holds what an image was made from.
const HASH_LABEL: &str = "isol8.hash";
/// The label of stages that no image keeps, in the Dockerfile.
const STAGE_LABEL: &str = "isol8.stage";
/// The label that holds the version of the image's interpreter.
pub(crate) const VERSION_LABEL: &str = "isol8.version";

/// Removing thousands of files takes seconds, on a busy disk more.
const PRUNE_DEADLINE: Duration = Duration::from_secs(5 * 60);

/// The age at which what a build left is of no use as a cache, and no build is under way any more.
const FAILED_LONG_AGO: &str = "24h";

/// The images to build.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SetupOptions {
    /// For which runtimes.
    pub runtimes: Vec<Runtime>,
    /// The reference of the base image: Debian, or something made from it.
    pub base: String,
    /// Bootstrap the base instead of using [`Self::base`].
    pub bootstrap: bool,
    /// A file of PEM certificates to trust in builds and in sandboxes, as those of a company's
    /// proxy that inspects TLS.
    pub ca_bundle: Option<PathBuf>,
    /// Build anew what is up to date.
    pub force: bool,
    /// Packages that the images of runtimes hold, as [`CustomImage::packages`].
    pub dependencies: BTreeMap<Runtime, Vec<String>>,
}

impl Default for SetupOptions {
    fn default() -> Self {
        Self {
            runtimes: RUNTIMES.into(),
            base: DEFAULT_BASE.to_owned(),
            bootstrap: false,
            ca_bundle: None,
            force: false,
            dependencies: BTreeMap::new(),
        }
    }
}

/// How far a setup is.
#[derive(Clone, Debug, PartialEq)]
pub enum SetupEvent {
    /// The image is up to date.
    Skipped {
        /// Its runtime.
        runtime: Runtime,
        /// Its tag.
        tag: String,
    },
    /// The base image is being pulled.
    BasePulling {
        /// Its reference.
        reference: String,
    },
    /// The base image is being made from Debian's packages.
    BaseBootstrapping {
        /// Why it is not pulled.
        reason: String,
    },
    /// An image is being built.
    Building {
        /// Its runtime.
        runtime: Runtime,
        /// Its tag.
        tag: String,
    },
    /// A line that a tool or the engine printed.
    Log(String),
    /// An image is ready.
    Done {
        /// Its runtime.
        runtime: Runtime,
        /// Its tag.
        tag: String,
        /// How long that took.
        seconds: f64,
    },
}

/// Takes the events of a setup.
pub type Report<'a> = &'a mut (dyn FnMut(SetupEvent) + Send);

/// Why there is no image.
#[derive(Debug, thiserror::Error)]
pub enum SetupError {
    /// The engine does not answer, or refuses.
    #[error("{0}")]
    Engine(String),
    /// The image has no name.
    #[error("no image can be built for {0}: the configuration does not name one")]
    Unnamed(Runtime),
    /// The certificates cannot be used.
    #[error("ca bundle {}: {reason}", .path.display())]
    CaBundle {
        /// The file.
        path: PathBuf,
        /// The fault.
        reason: String,
    },
    /// An image cannot be built on one that there is not.
    #[error("image {tag} cannot be built: image {base} is missing, run `isol8 setup`")]
    NoBase {
        /// The image.
        tag: String,
        /// The base that the image builds on.
        base: String,
    },
    /// There is no base image.
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
        /// The engine's text.
        reason: String,
        /// The end of the build's output.
        log: String,
    },
}

/// The fix if a tool did not trust a certificate; empty for other faults.
fn certificate_hint(log: &str) -> &'static str {
    // In the words of pip, npm, apt, curl, OpenSSL and rustls.
    const WORDS: [&str; 9] = [
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
    if WORDS.iter().any(|words| log.contains(words)) {
        return "\na certificate is not trusted: set images.caBundle to the PEM file of its authority, such as that of a \
                proxy that inspects TLS";
    }
    ""
}

impl From<EngineError> for SetupError {
    fn from(error: EngineError) -> Self {
        Self::Engine(error.to_string())
    }
}

/// The images that were built from something else than [`setup`] would build them from now, as by another version of
/// this program. Images that are missing, or were not built here, are none of them.
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
        // The last stage builds every other one before it, anew; they then come from the cache.
        outdated.reverse();
    }

    let base = base::provide(&engine, options, report).await?;
    let context = inputs
        .archive()
        .map_err(|error| SetupError::Engine(format!("build context cannot be packed: {error}")))?;
    let forwarded = build::forwarded(|name| std::env::var(name).ok());
    let mut forced: Option<build::Stages> = None;
    for (position, (runtime, tag, old)) in outdated.into_iter().enumerate() {
        let start = Instant::now();
        report(SetupEvent::Building {
            runtime,
            tag: tag.clone(),
        });
        let recipe = Recipe {
            runtime,
            tag: &tag,
            base: &base,
            hash: &hash,
            context: &context,
            forwarded: &forwarded,
            fresh: options.force && position == 0,
        };
        let stages = build::build(&engine, &recipe, report).await?;
        if let Some(id) = old.and_then(|old| old.id) {
            discard(&engine, &id).await?;
        }
        // If the first build has made everything, the others only take their parts from the cache.
        let own = start.elapsed();
        let took = match (&forced, position) {
            (Some(all), _) => own + all.took(runtime).unwrap_or_default(),
            (None, 0) if options.force => stages.took(runtime).unwrap_or(own),
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
    discard_stages(&engine).await?;
    add_dependencies(&engine, config, options, report).await
}

/// The packages of a runtime.
fn dependencies_of(options: &SetupOptions, runtime: Runtime) -> &[String] {
    options
        .dependencies
        .get(&runtime)
        .map_or(&[], Vec::as_slice)
}

/// The name of a runtime's image before it has packages; if it is to have none, its final name.
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
    // A name without a tag of its own has the usual tag.
    let name = tag.rsplit('/').next().unwrap_or_default();
    let tag = if name.contains(':') {
        format!("{tag}-plain")
    } else {
        format!("{tag}:plain")
    };
    Ok(tag)
}

/// Makes the images of the runtimes that are to hold packages.
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

fn stage_of(runtime: Runtime) -> Option<usize> {
    RUNTIMES.iter().position(|known| *known == runtime)
}

fn read_certificates(path: &Path) -> Result<Vec<String>, SetupError> {
    let error = |reason: String| SetupError::CaBundle {
        path: path.to_owned(),
        reason,
    };
    let text = std::fs::read_to_string(path).map_err(|e: io::Error| error(e.to_string()))?;
    let certificates = context::certificates(&text);
    if certificates.is_empty() {
        return Err(error("no pem certificate in it".to_owned()));
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

/// The hash of the sources that an image was made from, if it was made here.
fn hash_of(image: &ImageInspect) -> Option<&String> {
    label_of(image, HASH_LABEL)
}

fn label_of<'a>(image: &'a ImageInspect, name: &str) -> Option<&'a String> {
    image.config.as_ref()?.labels.as_ref()?.get(name)
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Removes an image that lost its last tag to a newer one.
async fn discard(engine: &Engine, id: &str) -> Result<(), EngineError> {
    let tags = inspect(engine, id).await?.and_then(|image| image.repo_tags);
    if tags.is_none_or(|tags| !tags.is_empty()) {
        return Ok(());
    }
    let removed = engine
        .docker
        .remove_image(id, None::<RemoveImageOptions>, None);
    match engine.call(CALL_DEADLINE, removed).await {
        // Containers still use it.
        Err(EngineError::Refused { message, .. }) => {
            log::debug!(image = id, reason:% = message; "old image stays");
            Ok(())
        }
        answer => answer.map(|_| ()),
    }
}

/// Removes images that were made here and that a newer one has replaced, and the remains of builds that failed long
/// ago. Images with a name stay, and those that are being built. Returns the number of removed images.
pub(crate) async fn discard_outdated(engine: &Engine) -> Result<usize, EngineError> {
    let unfinished = format!("{UNFINISHED_LABEL}={UNFINISHED}");
    let replaced = [
        ("label", HASH_LABEL.to_owned()),
        ("label!", unfinished.clone()),
    ];
    let failed = [("label", unfinished), ("until", FAILED_LONG_AGO.to_owned())];
    Ok(prune(engine, replaced).await? + prune(engine, failed).await?)
}

/// Removes what has no name and passes the filters.
async fn prune(engine: &Engine, filters: [(&str, String); 2]) -> Result<usize, EngineError> {
    let filters = filters.map(|(key, value)| (key.to_owned(), vec![value]));
    let mut filters = HashMap::from(filters);
    filters.insert("dangling".to_owned(), vec!["true".to_owned()]);
    let options = PruneImagesOptionsBuilder::new().filters(&filters).build();
    let pruned = engine.docker.prune_images(Some(options));
    let pruned = engine.call(PRUNE_DEADLINE, pruned).await?;
    let deleted = pruned.images_deleted.unwrap_or_default();
    // The layers that went with them count too.
    Ok(deleted.iter().filter(|item| item.deleted.is_some()).count())
}

/// Removes what was only there to copy from: all that is downloaded, some 350 MB.
async fn discard_stages(engine: &Engine) -> Result<(), EngineError> {
    let filters = HashMap::from([
        ("dangling".to_owned(), vec!["true".to_owned()]),
        ("label".to_owned(), vec![STAGE_LABEL.to_owned()]),
    ]);
    let options = PruneImagesOptionsBuilder::new().filters(&filters).build();
    let pruned = engine.docker.prune_images(Some(options));
    engine.call(PRUNE_DEADLINE, pruned).await.map(|_| ())
}

/// Waits for `work` no longer than `deadline`; the error is for a person.
async fn within<T>(
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
    fn a_certificate_that_is_not_trusted_is_explained_whichever_tool_says_so() {
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
    async fn work_that_never_ends_is_given_up() {
        let work = std::future::pending::<Result<(), String>>();
        let error = within(Duration::from_secs(120), work).await.unwrap_err();
        assert_eq!(error, "not finished within 2 min");
    }
}
