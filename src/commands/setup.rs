//! `isol8 setup`: builds the Docker images of the runtimes.

use std::io::IsTerminal as _;
use std::process::ExitCode;

use indicatif::{ProgressBar, ProgressStyle};
use isol8_backend_docker::setup::{self, SetupEvent, SetupOptions};

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
        ..SetupOptions::default()
    };
    let progress = Progress::new();
    setup::setup(&backends::docker_config(&config), &options, &mut |event| {
        progress.show(event);
    })
    .await?;
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
