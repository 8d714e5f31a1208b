//! `isol8 setup`: builds the Docker images of the runtimes, and unpacks roots for the native backend.

mod native;

use std::io::IsTerminal as _;
use std::process::ExitCode;

use indicatif::{ProgressBar, ProgressStyle};
use isol8_backend_docker::setup::{self, SetupError, SetupEvent, SetupOptions};

use super::{Failure, load_config};
use crate::backends;
use crate::cli::Setup;
use crate::config::BackendChoice;

const NO_ROOT: &str = "the native backend uses this host's own programs: set `images.root` to a directory, \
                       and the pinned versions are unpacked there";

pub(super) async fn setup(arguments: Setup) -> Result<ExitCode, Failure> {
    let config = load_config(&arguments.common, None)?;
    let options = SetupOptions {
        base: config.docker.base.clone(),
        bootstrap: config.docker.bootstrap,
        ca_bundle: config.docker.ca_bundle.clone(),
        force: arguments.force,
        ..SetupOptions::default()
    };
    let progress = Progress::new();
    let roots = match (config.backend, &config.images_root) {
        (BackendChoice::Native, None) => return Err(NO_ROOT.into()),
        (BackendChoice::Docker, _) => None,
        (_, root) => root.as_deref(),
    };
    if config.backend != BackendChoice::Native {
        let images = backends::docker_config(&config);
        let mut report = |event| progress.show(event);
        match setup::setup(&images, &options, &mut report).await {
            // Where either backend will do, roots need no engine.
            Err(SetupError::Engine(reason)) if roots.is_some() => {
                progress.line(&format!("no image is built: {reason}"));
            }
            done => done?,
        }
    }
    if let Some(directory) = roots {
        native::setup(&config, directory, &options, &progress).await?;
    }
    Ok(ExitCode::SUCCESS)
}

/// A line that changes on a terminal; lines one after the other elsewhere.
struct Progress {
    bar: Option<ProgressBar>,
}

impl Progress {
    fn new() -> Self {
        let bar = std::io::stderr().is_terminal().then(|| {
            let bar = ProgressBar::new_spinner();
            bar.set_style(ProgressStyle::default_spinner());
            bar.enable_steady_tick(std::time::Duration::from_millis(100));
            bar
        });
        Self { bar }
    }

    fn show(&self, event: SetupEvent) {
        match event {
            SetupEvent::Skipped { tag, .. } => self.line(&format!("{tag} is up to date")),
            SetupEvent::BasePulling { reference } => self.line(&format!("pulling {reference}")),
            SetupEvent::BaseBootstrapping { reason } => {
                self.line(&format!("bootstrapping the base image: {reason}"));
            }
            SetupEvent::Building { runtime } => self.line(&format!("building for {runtime}")),
            SetupEvent::Log(line) => match &self.bar {
                Some(bar) => bar.set_message(line),
                None => log::debug!("{line}"),
            },
            SetupEvent::Done { tag, seconds, .. } => {
                self.line(&format!("{tag} is built ({seconds:.0} s)"));
            }
        }
    }

    fn line(&self, text: &str) {
        match &self.bar {
            Some(bar) => bar.println(text),
            None => println!("{text}"),
        }
    }
}
