//! The progress of a build.

use std::io::IsTerminal as _;

use indicatif::{ProgressBar, ProgressStyle};
use isol8_backend_docker::setup::SetupEvent;

use crate::commands::message;

/// Shows the image being built, the elapsed time, and the last line of the build's output.
const SPINNER: &str = "{spinner} {prefix}{elapsed:>4} {wide_msg}";

/// The progress display: one changing line on a terminal, otherwise one line per event.
pub(in crate::commands) struct Progress {
    bar: Option<ProgressBar>,
}

impl Progress {
    pub(in crate::commands) fn new() -> Self {
        let bar = std::io::stderr().is_terminal().then(|| {
            let bar = ProgressBar::new_spinner();
            let style = ProgressStyle::with_template(SPINNER);
            bar.set_style(style.unwrap_or_else(|_| ProgressStyle::default_spinner()));
            bar.enable_steady_tick(std::time::Duration::from_millis(100));
            bar
        });
        Self { bar }
    }

    pub(in crate::commands) fn show(&self, event: SetupEvent) {
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

    pub(super) fn complain(&self, text: &str) {
        match &self.bar {
            Some(bar) => bar.println(text),
            None => message::to_stderr(&format!("{text}\n")),
        }
    }

    pub(super) fn line(&self, text: &str) {
        match &self.bar {
            Some(bar) => bar.println(text),
            None => message::to_stdout(&format!("{text}\n")),
        }
    }
}
