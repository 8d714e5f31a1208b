//! `isol8 run`: one program in a sandbox of its own, without a server.

use std::collections::BTreeMap;
use std::fs;
use std::io::{self, Read as _, Write};
use std::path::Path;
use std::process::ExitCode;

use isol8_actors::pool::{PoolSize, Strategy};
use isol8_actors::{ExecuteError, Service, ServiceConfig};
use isol8_api::{
    ExecutionRequest, ExecutionResult, NetworkAction, NetworkFilter, NetworkLogEntry, Options,
    Runtime, TenantId,
};

use super::{Failure, load_config};
use crate::backends::{self, Purpose};
use crate::cli::Run;
use crate::config::Config;
use crate::images::{self, choice};
use crate::jobs;

pub(super) async fn run(arguments: Run) -> Result<ExitCode, Failure> {
    let config = load_config(&arguments.common, None)?;
    let (request, options) = request(arguments)?;
    let runtime = request.runtime;
    choice::check_named(&options, runtime, &TenantId::master(), &config)?;
    let mut job = jobs::job(request, options, &config)?;
    let backend = backends::start(&config, Purpose::Command).await?;
    if job.install.is_some() {
        images::look(&config, backend.name()).await;
    }
    if let Err(error) = choice::choose(&mut job, &config) {
        backend.shutdown().await?;
        return Err(error.into());
    }
    backends::sweep(backend.as_ref()).await;
    let service = Service::start(backend, service_without_pool(&config));
    let executed = tokio::select! {
        executed = service.execute(TenantId::master(), None, job) => executed,
        _ = tokio::signal::ctrl_c() => Err(ExecuteError::Cancelled),
    };
    service.shutdown().await?;
    print(&executed?)
}

fn request(arguments: Run) -> Result<(ExecutionRequest, Options), Failure> {
    let runtime = runtime(&arguments)?;
    let mut request = ExecutionRequest::new(runtime);
    request.file_extension = arguments
        .file
        .as_deref()
        .and_then(Path::extension)
        .and_then(|extension| extension.to_str())
        .map(|extension| format!(".{extension}"));
    request.code = Some(code(&arguments)?);
    request.stdin = arguments.stdin;
    request.workdir = arguments.workdir;
    request.timeout_ms = arguments.timeout;
    request.install_packages = arguments.install;
    request.setup_script = setup_script(&arguments.setup)?;
    let options = Options {
        network: arguments.net,
        network_filter: Some(NetworkFilter {
            whitelist: arguments.allow,
            blacklist: arguments.deny,
        }),
        log_network: Some(arguments.log_network),
        cpu_limit: arguments.cpu,
        memory_limit: arguments.memory,
        pids_limit: arguments.pids_limit,
        sandbox_size: arguments.sandbox_size,
        tmp_size: arguments.tmp_size,
        max_output_size: arguments.max_output,
        secrets: secrets(&arguments.secret)?,
        image: arguments.image,
        ..Options::default()
    };
    Ok((request, options))
}

fn code(arguments: &Run) -> Result<String, Failure> {
    if let Some(code) = &arguments.eval {
        return Ok(code.clone());
    }
    let mut code = String::new();
    match &arguments.file {
        Some(path) if !path.exists() => {
            return Err(format!("File not found: {}", path.display()).into());
        }
        Some(path) => {
            code =
                fs::read_to_string(path).map_err(|error| format!("{}: {error}", path.display()))?;
        }
        None => {
            io::stdin()
                .read_to_string(&mut code)
                .map_err(|error| format!("standard input cannot be read as a script: {error}"))?;
        }
    }
    Ok(code)
}

fn runtime(arguments: &Run) -> Result<Runtime, Failure> {
    if let Some(runtime) = arguments.runtime {
        return Ok(runtime);
    }
    let extension = arguments
        .file
        .as_deref()
        .and_then(Path::extension)
        .and_then(|extension| extension.to_str());
    match extension {
        None | Some("py") => Ok(Runtime::Python),
        Some("js" | "mjs" | "cjs") => Ok(Runtime::Node),
        Some("ts") => Ok(Runtime::Bun),
        Some("mts") => Ok(Runtime::Deno),
        Some("sh") => Ok(Runtime::Bash),
        Some(other) => Err(format!("no runtime is known for .{other}: name one with -r").into()),
    }
}

/// Each is a command, or the path of a script file.
pub(super) fn setup_script(scripts: &[String]) -> Result<Option<String>, Failure> {
    let mut joined = String::new();
    for script in scripts {
        if Path::new(script).is_file() {
            joined.push_str(
                &fs::read_to_string(script).map_err(|error| format!("{script}: {error}"))?,
            );
        } else {
            joined.push_str(script);
        }
        joined.push('\n');
    }
    // As with commands that are joined by `&&`: the first that fails is the failure.
    Ok((!joined.is_empty()).then(|| format!("set -e\n{joined}")))
}

fn secrets(given: &[String]) -> Result<BTreeMap<String, String>, Failure> {
    let split = given.iter().map(|secret| match secret.split_once('=') {
        Some((name, value)) => Ok((name.to_owned(), value.to_owned())),
        // What was given may be the secret itself, so it is not repeated.
        None => Err("--secret: expected NAME=VALUE".into()),
    });
    split.collect()
}

fn print(result: &ExecutionResult) -> Result<ExitCode, Failure> {
    // A reader that has gone away, as in `isol8 run … | head -1`, is no fault.
    let _ = write_text(&mut io::stdout(), &result.stdout);
    let _ = write_text(&mut io::stderr(), &result.stderr);
    for entry in result.network_logs.iter().flatten() {
        let _ = write_text(&mut io::stderr(), &line(entry));
    }
    if result.truncated {
        log::warn!("output was truncated: raise it with --max-output");
    }
    // What a process reports is one byte; of a larger code Linux keeps the lowest.
    let code = u8::try_from(result.exit_code & 0xff)?;
    Ok(ExitCode::from(code))
}

fn line(entry: &NetworkLogEntry) -> String {
    let NetworkLogEntry {
        timestamp,
        method,
        host,
        duration_ms,
        ..
    } = entry;
    let path = entry.path.as_deref().unwrap_or_default();
    let action = match entry.action {
        NetworkAction::Allow => "allowed",
        NetworkAction::Block => "blocked",
    };
    format!("{timestamp} {action} {method} {host}{path} {duration_ms:.1} ms")
}

fn write_text(to: &mut impl Write, text: &str) -> io::Result<()> {
    if text.is_empty() {
        return Ok(());
    }
    to.write_all(text.as_bytes())?;
    to.write_all(b"\n")?;
    to.flush()
}

/// A service that makes one sandbox when it is asked for, and none ahead of time.
pub(super) fn service_without_pool(config: &Config) -> ServiceConfig {
    let mut service = config.service();
    service.pool.sizes.clear();
    service.pool.size = PoolSize::fixed(0, 0);
    service.pool.strategy = Strategy::Secure;
    service
}
