//! `isol8 setup`: builds the Docker images of the runtimes and of `prebuiltImages`, and unpacks roots for the
//! native backend.

mod native;

use std::io::IsTerminal as _;
use std::process::ExitCode;

use indicatif::{ProgressBar, ProgressStyle};
use isol8_backend_docker::setup::{self, SetupError, SetupEvent, SetupOptions, custom};
use isol8_config::{BackendChoice, Config, ConfigReader};
use isol8_engine::backends;
use isol8_engine::images::custom_image;

use super::error::CommandError;
use super::load::load;
use super::message;
use crate::cli::SetupArgs;

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

/// Shows the image being built, the elapsed time, and the last line of the build's output.
const SPINNER: &str = "{spinner} {prefix}{elapsed:>4} {wide_msg}";

/// The progress display: one changing line on a terminal, otherwise one line per event.
pub(super) struct Progress {
    bar: Option<ProgressBar>,
}

impl Progress {
    pub(super) fn new() -> Self {
        let bar = std::io::stderr().is_terminal().then(|| {
            let bar = ProgressBar::new_spinner();
            let style = ProgressStyle::with_template(SPINNER);
            bar.set_style(style.unwrap_or_else(|_| ProgressStyle::default_spinner()));
            bar.enable_steady_tick(std::time::Duration::from_millis(100));
            bar
        });
        Self { bar }
    }

    pub(super) fn show(&self, event: SetupEvent) {
        match event {
            SetupEvent::Skipped { tag, .. } => self.line(&format!("{tag} is up to date")),
            SetupEvent::BasePulling { reference } => self.line(&format!("pulling {reference}")),
            SetupEvent::BaseBootstrapping { reason } => {
                self.line(&format!("bootstrapping the base image: {reason}"));
            }
            SetupEvent::Building { runtime, tag } => {
                self.line(&format!("building {tag} for {runtime}"));
                if let Some(bar) = &self.bar {
                    bar.set_prefix(format!("{tag} "));
                    bar.set_message("");
                    bar.reset_elapsed();
                }
            }
            SetupEvent::Log(line) => match &self.bar {
                Some(bar) => bar.set_message(line),
                None => log::debug!("{line}"),
            },
            SetupEvent::Done { tag, seconds, .. } => {
                self.line(&format!("{tag} is built ({seconds:.0} s)"));
            }
        }
    }

    fn complain(&self, text: &str) {
        match &self.bar {
            Some(bar) => bar.println(text),
            None => message::to_stderr(&format!("{text}\n")),
        }
    }

    fn line(&self, text: &str) {
        match &self.bar {
            Some(bar) => bar.println(text),
            None => message::to_stdout(&format!("{text}\n")),
        }
    }
}
