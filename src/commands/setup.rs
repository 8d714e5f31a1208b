//! `isol8 setup`: builds the Docker images of the runtimes and of `prebuiltImages`, and unpacks roots for the
//! native backend.

mod native;
pub(super) mod progress;

use std::process::ExitCode;

use isol8_backend_docker::setup::{self, SetupError, SetupOptions, custom};
use isol8_config::{BackendChoice, Config, ConfigReader};
use isol8_engine::backends;
use isol8_engine::images::custom_image;

use super::error::CommandError;
use super::load::load;
use crate::cli::SetupArgs;
use progress::Progress;

const NO_ROOT: &str = "the native backend uses this host's own programs: set `images.root` to a directory, \
                       and `isol8 setup` unpacks the pinned versions there";

pub(super) async fn setup(arguments: SetupArgs) -> Result<ExitCode, CommandError> {
    let config = load(&arguments.common, ConfigReader::Setup, None)?.config;
    let options = options(&config, arguments.force);
    let progress = Progress::new();
    let roots = match (config.startup.backend, &config.startup.images_root) {
        (BackendChoice::Native, None) => return Err(NO_ROOT.into()),
        (BackendChoice::Docker, _) => None,
        (_, root) => root.as_deref(),
    };
    if config.startup.backend != BackendChoice::Native {
        let images = backends::docker_config(&config);
        let mut report = |event| progress.show(event);
        match setup::setup(&images, &options, &mut report).await {
            // With `auto`, roots are enough, and they need no engine.
            Err(SetupError::Engine(reason)) if roots.is_some() => {
                progress.line(&format!("no image is built: {reason}"));
            }
            done => {
                done?;
                build_prebuilt(&config, arguments.force, &progress).await?;
            }
        }
    }
    if let Some(directory) = roots {
        native::setup(&config, directory, &options, &progress).await?;
    }
    Ok(ExitCode::SUCCESS)
}

/// Returns the settings from which the images of a configuration are built.
pub(super) fn options(config: &Config, force: bool) -> SetupOptions {
    SetupOptions {
        base: config.startup.docker.base.clone(),
        bootstrap: config.startup.docker.bootstrap,
        ca_bundle: config.startup.docker.ca_bundle.clone(),
        force,
        dependencies: config.startup.images.dependencies.clone(),
        ..SetupOptions::default()
    }
}

/// Builds every image of `prebuiltImages` that is missing or not up to date.
async fn build_prebuilt(
    config: &Config,
    force: bool,
    progress: &Progress,
) -> Result<(), CommandError> {
    let docker = backends::docker_config(config);
    let mut failed = 0;
    for prebuilt in &config.startup.images.prebuilt {
        let image = custom_image(prebuilt);
        let mut show = |event| progress.show(event);
        let building = custom::build(&docker, &image, force, &mut show);
        // Continue: the other images may build.
        if let Err(error) = building.await {
            progress.complain(&error.to_string());
            failed += 1;
        }
    }
    match failed {
        0 => Ok(()),
        _ => {
            let all = config.startup.images.prebuilt.len();
            Err(format!("{failed} of {all} prebuilt images could not be built").into())
        }
    }
}
