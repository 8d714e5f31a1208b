//! `isol8 build`: builds a custom image.

use std::process::ExitCode;

use isol8_backend_docker::setup::custom::{self, CustomImage};
use isol8_config::images::is_name;
use isol8_config::package_names;
use isol8_engine::backends;

use super::error::CommandError;
use super::load::load_config;
use super::run::request::setup_script;
use super::setup::progress::Progress;
use crate::cli::BuildArgs;

pub(super) async fn build(arguments: BuildArgs) -> Result<ExitCode, CommandError> {
    let config = load_config(&arguments.common)?;
    let docker = backends::docker_config(&config);
    let BuildArgs {
        base,
        install: packages,
        setup,
        tag,
        force,
        ..
    } = arguments;
    package_names::check_for_image(base, &packages)
        .map_err(|(_, problem)| format!("--install: {problem}"))?;
    if !is_name(&tag) {
        return Err(format!("--tag: {tag:?} is not a name such as isol8:data").into());
    }
    if docker.images.values().any(|image| *image == tag) {
        let text = format!(
            "--tag: {tag} is the image of a runtime, on which other images are based: choose another name"
        );
        return Err(text.into());
    }
    let image = CustomImage {
        tag,
        runtime: base,
        packages,
        setup_script: setup_script(&setup)?,
    };
    let progress = Progress::new();
    custom::build(&docker, &image, force, &mut |event| progress.show(event)).await?;
    Ok(ExitCode::SUCCESS)
}
