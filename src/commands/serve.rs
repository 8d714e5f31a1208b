//! `isol8 serve`: runs the HTTP server.

use std::path::Path;
use std::process::ExitCode;

use isol8_actors::Service;
use isol8_config::{Config, ConfigReader};
use isol8_engine::Engine;
use isol8_engine::active::ActiveConfig;
use isol8_engine::backends::{self, BackendKind, ChosenBackend, Launcher, Needs, Purpose};
use isol8_engine::images;
use std::sync::Arc;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;

use super::error::CommandError;
use super::load::{load_over, overrides, read};
use crate::cli::ServeArgs;
use crate::host;
use crate::launcher;
use crate::launcher::client::Launched;
use crate::memory;
use crate::reload;
use crate::server::bodies::BodyBudget;
use crate::server::idempotency::ResultStore;
use crate::server::{self, MasterKey, ServeError, ServerState};

/// The process that runs a command.
pub(super) enum Startup {
    /// This process.
    ThisProcess(Option<Launched>),
    /// Another process, which has ended.
    Ended(ExitCode),
}

/// Runs the server as another user if one is configured; otherwise leaves it to [`serve`].
pub(super) fn launch(arguments: &ServeArgs) -> Result<Startup, CommandError> {
    let overrides = overrides(&arguments.common, ConfigReader::Server, arguments.port);
    let config = read(&overrides)?.config;
    let Some(user) = arguments
        .user
        .clone()
        .or_else(|| config.startup.listen.user.clone())
    else {
        return Ok(Startup::ThisProcess(None));
    };
    if !nix::unistd::geteuid().is_root() {
        log::warn!(user; "only root can start the server as another user; continuing as the current user");
        return Ok(Startup::ThisProcess(None));
    }
    let (kind, reason) = match backends::candidates(config.startup.backend) {
        [kind] => (*kind, backends::configured(*kind)),
        // The choice decides whether the server may use the engine's socket. The runtime ends here, because the
        // launcher needs a process without other threads.
        _ => {
            let needs = Needs::default();
            let picking = backends::pick(&config, &needs);
            actix_web::rt::Runtime::new()?.block_on(picking)?
        }
    };
    Ok(Startup::Ended(launcher::run(&config, kind, reason, &user)?))
}

pub(super) async fn serve(
    arguments: ServeArgs,
    launched: Option<Launched>,
) -> Result<ExitCode, CommandError> {
    let mut overrides = overrides(&arguments.common, ConfigReader::Server, arguments.port);
    if let Some(launched) = &launched {
        overrides.backend = Some(launched.backend);
        overrides.default_state = Some(launched.state.clone());
    }
    let load = move || Ok(load_over(&overrides)?.config);
    let config = ActiveConfig::new(load()?)?;
    log_sources(&config);
    let key = arguments
        .key
        .and_then(MasterKey::new)
        .ok_or("API key required: set ISOL8_API_KEY, or pass --key")?;
    server::raise_file_limit();
    // Listen before the first sandbox is made: from then on a signal must not simply end the process.
    let stop = stop_signal()?;
    let (bound, launcher, known_reason) = match launched {
        Some(launched) => (
            Some(launched.sockets),
            Some(launched.launcher as Arc<dyn Launcher>),
            Some(launched.backend_reason),
        ),
        None => (None, None, None),
    };
    let is_root = nix::unistd::geteuid().is_root();
    let makes_as_root = is_root || launcher.is_some();
    if is_root {
        log::info!(
            "the HTTP server runs as root: use --user USER or server.user, so that only sandboxes are made as root"
        );
    }
    let ChosenBackend { backend, reason } =
        backends::start(&config, Purpose::Serve(launcher), &Needs::default()).await?;
    // The launcher has made the choice, and its reason is the real one.
    let reason = known_reason.unwrap_or(reason);
    warn_of_host(backend.name(), makes_as_root);
    log::info!(
        backend = backend.name(), reason = reason.as_str(), state:% = config.startup.state.display(); "starting"
    );
    // Adopt before the pool makes the first sandbox of this server.
    let adopted = backend.adopt().await.unwrap_or_else(|error| {
        log::error!(error:%; "cannot take over the sessions of the previous server");
        Vec::new()
    });
    if !adopted.is_empty() {
        log::info!(sessions = adopted.len(); "taking over sessions of the previous server");
    }
    images::look_up(config.images(), &config, backend.name()).await;
    let service = Service::start(backend.clone(), config.service());
    service.adopt(adopted).await?;
    backends::sweep(backend.as_ref()).await;
    if let Err(error) = backends::check_preload(backend.as_ref(), &config).await {
        service.leave().await?;
        return Err(error.into());
    }
    let engine = Engine::new(service.clone(), config.startup.code_cache_bytes);
    let bodies = BodyBudget::new(config.startup.listen.max_bodies);
    let (current, config) = watch::channel(Arc::new(config));
    let building = images::build_missing(config.clone(), service.clone());
    let state = ServerState {
        engine,
        backend: backend.name(),
        backend_reason: reason,
        config,
        key,
        bodies,
        results: ResultStore::default(),
    };
    let served = tokio::select! {
        served = server::serve(state, bound, stop) => served,
        never = building => match never {},
        never = memory::return_free_memory() => match never {},
        followed = reload::follow(load, current, service.clone()) => {
            followed.map_err(ServeError::Listen)
        }
    };
    if let Err(error) = served {
        // The server may have failed before it listened; the sandboxes must be left in any case.
        service.leave().await?;
        return Err(error.into());
    }
    Ok(ExitCode::SUCCESS)
}

/// Logs the files of the configuration, because one may be in the working directory by accident.
fn log_sources(config: &Config) {
    for path in &config.sources {
        let whole = path.canonicalize();
        let path = whole.as_deref().unwrap_or(path);
        log::info!(file:% = path.display(); "configuration read");
    }
    if config.sources.is_empty() {
        log::info!("no configuration file, using defaults");
    }
}

/// Logs the settings of the host that weaken sandboxes of this backend, made by root or by this user.
fn warn_of_host(backend: &str, makes_as_root: bool) {
    let kinds: Vec<_> = BackendKind::ALL
        .into_iter()
        .filter(|kind| kind.name() == backend)
        .collect();
    for warning in host::warnings(Path::new(backends::HOST_ROOT), &kinds, makes_as_root) {
        log::warn!("{warning}");
    }
}

/// Completes at the first SIGTERM or SIGINT. From this call on, the signals have no other effect.
fn stop_signal() -> std::io::Result<impl Future<Output = ()>> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    Ok(async move {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
    })
}
