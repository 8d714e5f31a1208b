//! Installs packages with the runtime's own package manager, as user code would call it.

use isol8_protocol::{Program, RunSpec};
use isol8_runtimes::PipFallback;

use super::plan;
use crate::job::{Install, Job};

/// Returns the run of the package manager.
pub(super) fn installation(job: &Job, install: &Install, packages: &[String]) -> RunSpec {
    let Some(installer) = &job.runtime().facts().packages.installer else {
        // The checks of a request refuse packages for a runtime without a package manager.
        let argv = vec!["false".to_owned()];
        return plan::base(job, Program::Command { argv });
    };
    let words = installer.argv.iter().map(|word| (*word).to_owned());
    let program = Program::Command {
        argv: words.chain(packages.iter().cloned()).collect(),
    };
    let mut run = plan::base(job, program);
    // npm accepts its variables in upper and lower case.
    let is_given = |name: &str, run: &RunSpec| {
        let mut given = run.env.iter();
        given.any(|(given, _)| given.eq_ignore_ascii_case(name))
    };
    if !install.source.iter().any(|(name, _)| is_given(name, &run)) {
        run.env.extend(install.source.iter().cloned());
    }
    if let Some(PipFallback { variable, prefix }) = installer.fallback {
        let configures_pip = |(name, _): &(String, String)| name.starts_with(prefix);
        // uv would install packages again that the image holds.
        let holds_packages = install.missing.contains_key(&job.sandbox.image);
        if holds_packages || job.env.iter().any(configures_pip) {
            run.env.push((variable.to_owned(), "1".to_owned()));
        }
    }
    for (name, value) in installer.env {
        if !is_given(name, &run) {
            run.env.push(((*name).to_owned(), (*value).to_owned()));
        }
    }
    run.cwd = Some(installer.cwd.to_owned());
    run.timeout_ms = Some(u64::try_from(install.timeout.as_millis()).unwrap_or(u64::MAX));
    run
}
