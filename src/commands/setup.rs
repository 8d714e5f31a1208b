//! `isol8 setup`: builds the Docker images, those of the runtimes and those of `prebuiltImages`.

use std::io::IsTerminal as _;
use std::process::ExitCode;

use indicatif::{ProgressBar, ProgressStyle};
use isol8_backend_docker::setup::{self, SetupEvent, SetupOptions, custom};

use super::{Failure, load_config};
use crate::backends;
use crate::cli::Setup;

pub(super) async fn setup(arguments: Setup) -> Result<ExitCode, Failure> {
    let config = load_config(&arguments.common, None)?;
    let options = SetupOptions {
        base: config.docker.base.clone(),
        bootstrap: config.docker.bootstrap,
        ca_bundle: config.docker.ca_bundle.clone(),
        force: arguments.force,
        dependencies: config.images.dependencies.clone(),
        ..SetupOptions::default()
    };
    let progress = Progress::new();
    let docker = backends::docker_config(&config);
    setup::setup(&docker, &options, &mut |event| progress.show(event)).await?;
    let mut failed = 0;
    for prebuilt in &config.images.prebuilt {
        let mut show = |event| progress.show(event);
        let building = custom::build(&docker, &prebuilt.image, arguments.force, &mut show);
        // The others may be fine.
        if let Err(error) = building.await {
            progress.complain(&error.to_string());
            failed += 1;
        }
    }
    match failed {
        0 => Ok(ExitCode::SUCCESS),
        _ => {
            let all = config.images.prebuilt.len();
            Err(format!("{failed} of {all} prebuilt images could not be built").into())
        }
    }
}

/// A line that changes on a terminal; lines one after the other elsewhere.
pub(super) struct Progress {
    bar: Option<ProgressBar>,
}

impl Progress {
    pub(super) fn new() -> Self {
        let bar = std::io::stderr().is_terminal().then(|| {
            let bar = ProgressBar::new_spinner();
            bar.set_style(ProgressStyle::default_spinner());
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
            None => eprintln!("{text}"),
        }
    }

    fn line(&self, text: &str) {
        match &self.bar {
            Some(bar) => bar.println(text),
            None => println!("{text}"),
        }
    }
}
