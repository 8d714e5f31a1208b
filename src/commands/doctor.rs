//! `isol8 doctor`: shows what can run on this host by running it, with a fix for each problem.

mod certificates;
mod checks;
mod finding;
mod registries;

use std::path::Path;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use isol8_actors::{Job, Program, Service};
use isol8_api::{Runtime, TenantId};
use isol8_backend::RuntimeStatus;
use isol8_backend_docker::setup as images_setup;
use isol8_config::Config;
use isol8_engine::active::ActiveConfig;
use isol8_engine::backends::{self, BackendKind, Needs, Purpose};
use isol8_engine::images;
use isol8_engine::local::service_without_pool;

use super::error::CommandError;
use super::load::load_config;
use super::setup;
use crate::cli::CommonArgs;
use crate::host;
use finding::{Finding, PROBE_TIMEOUT, line};

pub(super) async fn doctor(common: CommonArgs) -> Result<ExitCode, CommandError> {
    let config = ActiveConfig::new(load_config(&common)?)?;
    show_host();
    checks::findings(&config).iter().for_each(Finding::show);
    line("registries:");
    let registries = registries::findings(&config).await;
    registries.iter().for_each(Finding::show);
    let mut usable = false;
    for kind in BackendKind::ALL {
        match backends::start_kind(kind, &config, &Purpose::Command).await {
            Ok(backend) => {
                line(format_args!("{kind}: ready"));
                for shortcoming in backend.shortcomings() {
                    line(format_args!("  note      {shortcoming}"));
                }
                let images = images::report(&config, backend.name()).await;
                let service = Service::start(backend, service_without_pool(&config));
                usable |= probe_all(&service, &config).await;
                let authorities = certificates::report(&service, &config).await;
                line(format_args!("  {:<9} {authorities}", "TLS"));
                for image in images {
                    line(format_args!("  {image}"));
                }
                if kind == BackendKind::Docker {
                    show_outdated(&config).await;
                }
                service.shutdown().await?;
            }
            Err(error) => line(format_args!("{kind}: not usable: {error}")),
        }
    }
    if !usable {
        line("no backend can run here: fix one of the problems listed above");
        return Ok(ExitCode::FAILURE);
    }
    show_choice(&config).await?;
    Ok(ExitCode::SUCCESS)
}

/// Prints the images that were built by another version of this program.
async fn show_outdated(config: &Config) {
    let options = setup::options(config, false);
    match images_setup::outdated(&backends::docker_config(config), &options).await {
        Ok(outdated) => {
            for (runtime, tag) in outdated {
                let text = format!("{tag} is outdated: this isol8 builds it from other sources");
                Finding::bad(runtime.to_string(), text, "run `isol8 setup`").show();
            }
        }
        Err(error) => line(format_args!("  note      cannot compare images: {error}")),
    }
}

/// Prints the backend that a server and a command use.
async fn show_choice(config: &Config) -> Result<(), CommandError> {
    let (kind, reason) = match backends::candidates(config.startup.backend) {
        [kind] => (*kind, backends::configured(*kind)),
        _ => backends::pick(config, &Needs::default()).await?,
    };
    line(format_args!("isol8 serve takes {kind}: {reason}"));
    Ok(())
}

/// Prints the settings of the host that weaken sandboxes.
fn show_host() {
    let is_root = nix::unistd::geteuid().is_root();
    let warnings = host::warnings(Path::new(backends::HOST_ROOT), &BackendKind::ALL, is_root);
    if warnings.is_empty() {
        line("host: no setting weakens sandboxes");
        return;
    }
    line("host:");
    for warning in warnings {
        line(format_args!("  warning   {}", warning.problem));
        line(format_args!("  fix       {}", warning.fix));
    }
}

/// Probes every runtime, and returns whether any works.
async fn probe_all(service: &Service, config: &Config) -> bool {
    let mut any = false;
    for runtime in Runtime::ALL {
        let verdict = match service.backend().runtime_status(runtime).await {
            RuntimeStatus::Unavailable(reason) => Err(reason),
            RuntimeStatus::Available(what) => probe(service, runtime, config)
                .await
                .map(|time| format!("{what}, a cold run took {:.0} ms", time.as_secs_f64() * 1e3)),
        };
        any |= verdict.is_ok();
        match verdict {
            Ok(text) => line(format_args!("  {:<9} ok: {text}", runtime.name())),
            Err(reason) => line(format_args!("  {:<9} no: {reason}", runtime.name())),
        }
    }
    any
}

/// Runs one program in a new sandbox, and returns how long it took.
async fn probe(service: &Service, runtime: Runtime, config: &Config) -> Result<Duration, String> {
    let program = Program::source(runtime.facts().probe, runtime);
    let mut job = Job::new(program, config.defaults.sandbox.spec(runtime))
        .map_err(|error| error.to_string())?;
    job.timeout = PROBE_TIMEOUT;
    let start = Instant::now();
    let result = service
        .execute(TenantId::master(), None, job)
        .await
        .map_err(|error| error.to_string())?;
    let took = start.elapsed();
    if result.stdout == "42" {
        return Ok(took);
    }
    Err(format!(
        "the probe exited with {}: {}",
        result.exit_code, result.stderr
    ))
}
