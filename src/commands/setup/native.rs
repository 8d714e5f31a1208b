//! Sets up the roots of the native backend, under `images.root`.

use std::path::Path;
use std::time::Instant;

use isol8_api::Runtime;
use isol8_backend_docker::setup::root::{Archive, Source};
use isol8_backend_docker::setup::{SetupEvent, SetupOptions};
use isol8_backend_native::roots::install::Installer;
use isol8_config::Config;
use isol8_engine::backends;
use tokio_util::io::{StreamReader, SyncIoBridge};

use super::progress::Progress;
use crate::commands::error::CommandError;

/// Version of the layout of a root; part of the hash, together with the sources of the image. Increment it when the
/// same archive must be turned into a different root.
const FORMAT: &str = "1";

/// Makes every root that is missing or outdated, and removes roots that are no longer needed.
pub(super) async fn setup(
    config: &Config,
    directory: &Path,
    options: &SetupOptions,
    progress: &Progress,
) -> Result<(), CommandError> {
    let failed = |error| format!("images.root {}: {error}", directory.display());
    let source = Source::find(&backends::docker_config(config), options).await?;
    let installer = open(directory.to_owned()).await.map_err(failed)?;
    let hash = format!("{FORMAT}-{}", source.hash());

    let is_current =
        |runtime: &&Runtime| !options.force && installer.roots().is_current(**runtime, &hash);
    for runtime in options.runtimes.iter().filter(is_current) {
        let link = installer.roots().link(*runtime);
        progress.line(&format!("{} is up to date", link.display()));
    }
    let outdated = options.runtimes.iter().filter(|one| !is_current(one));
    let outdated: Vec<Runtime> = outdated.copied().collect();

    let mut installer = installer;
    for group in source.groups(&outdated) {
        installer = make(&source, &group, installer, &hash, options, progress).await?;
    }
    let removal = move || installer.remove_unused();
    tokio::task::spawn_blocking(removal)
        .await?
        .map_err(failed)?;
    Ok(())
}

/// Opens the installer on a blocking thread, because it waits while another setup works.
async fn open(directory: std::path::PathBuf) -> std::io::Result<Installer> {
    tokio::task::spawn_blocking(move || Installer::open(&directory))
        .await
        .map_err(std::io::Error::other)
        .flatten()
}

/// Makes one root for these runtimes.
async fn make(
    source: &Source,
    group: &[Runtime],
    installer: Installer,
    hash: &str,
    options: &SetupOptions,
    progress: &Progress,
) -> Result<Installer, CommandError> {
    if group.is_empty() {
        return Ok(installer);
    }
    let start = Instant::now();
    let names: Vec<_> = group.iter().map(ToString::to_string).collect();
    let names = names.join(", ");
    match source.bootstrap_reason() {
        None => progress.line(&format!("unpacking the image for {names}")),
        Some(reason) => {
            progress.line(&format!("bootstrapping a root for {names}: {reason}"));
        }
    }
    let mut done = None;
    let take = async |archive: Archive| {
        let (runtimes, hash) = (group.to_vec(), hash.to_owned());
        let reader = SyncIoBridge::new(StreamReader::new(archive));
        let unpacking = move || {
            let installed = installer.install(reader, &runtimes, &hash);
            installed.map(|_| installer)
        };
        let installed = tokio::task::spawn_blocking(unpacking).await;
        let installed = installed.map_err(|error| error.to_string())?;
        done = Some(installed.map_err(|error| chain(&error))?);
        Ok(())
    };
    let mut report = |event: SetupEvent| progress.show(event);
    source.provide(group, options, &mut report, take).await?;
    let installer = done.ok_or("nothing was unpacked")?;
    let seconds = start.elapsed().as_secs_f64();
    for runtime in group {
        let link = installer.roots().link(*runtime);
        progress.line(&format!("{} is unpacked ({seconds:.0} s)", link.display()));
    }
    Ok(installer)
}

/// Returns the error's text with its causes. The reader of an archive reports only the file, and its cause the
/// problem.
fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let more = error.to_string();
        // Skip causes whose text the error already contains.
        if !text.contains(&more) {
            text = format!("{text}: {more}");
        }
        cause = error.source();
    }
    text
}
