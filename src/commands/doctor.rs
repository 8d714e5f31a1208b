//! `isol8 doctor`: what can run here, shown by running it, and the fix for what cannot.

mod certificates;

use std::path::Path;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use isol8_actors::{Job, Program, Service};
use isol8_api::{Runtime, TenantId};
use isol8_backend::RuntimeStatus;

use super::{Failure, load_config};
use crate::backends::{self, Kind, Purpose};
use crate::cli::Common;
use crate::config::Config;
use crate::host;
use crate::images;
use crate::local::service_without_pool;

/// Longest wait for one program that prints one line.
const PROBE_TIMEOUT: Duration = Duration::from_secs(20);

pub(super) async fn doctor(common: Common) -> Result<ExitCode, Failure> {
    let config = load_config(&common)?;
    show_host();
    let mut usable = false;
    for kind in Kind::ALL {
        match backends::start_kind(kind, &config, &Purpose::Command).await {
            Ok(backend) => {
                println!("{kind}: ready");
                for shortcoming in backend.shortcomings() {
                    println!("  note      {shortcoming}");
                }
                let images = images::report(&config, backend.name()).await;
                let service = Service::start(backend, service_without_pool(&config));
                usable |= probe_all(&service, &config).await;
                let authorities = certificates::report(&service, &config).await;
                println!("  {:<9} {authorities}", "TLS");
                for line in images {
                    println!("  {line}");
                }
                service.shutdown().await?;
            }
            Err(error) => println!("{kind}: not usable: {error}"),
        }
    }
    if usable {
        return Ok(ExitCode::SUCCESS);
    }
    println!("nothing can run here: mend one of the above");
    Ok(ExitCode::FAILURE)
}

/// Shows what of the host's settings weakens sandboxes.
fn show_host() {
    let is_root = nix::unistd::geteuid().is_root();
    let warnings = host::warnings(Path::new(backends::HOST), &Kind::ALL, is_root);
    if warnings.is_empty() {
        println!("host: nothing weakens sandboxes");
        return;
    }
    println!("host:");
    for warning in warnings {
        println!("  warning   {}", warning.problem);
        println!("  fix       {}", warning.fix);
    }
}

/// Whether any runtime works.
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
            Ok(text) => println!("  {runtime:<9} ok: {text}"),
            Err(reason) => println!("  {runtime:<9} no: {reason}"),
        }
    }
    any
}

/// Runs one program in a sandbox made for it.
async fn probe(service: &Service, runtime: Runtime, config: &Config) -> Result<Duration, String> {
    let code = match runtime {
        Runtime::Python => "print(42)",
        Runtime::Node | Runtime::Bun | Runtime::Deno => "console.log(42)",
        Runtime::Bash => "echo 42",
    };
    let program = Program::source(code, runtime);
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
