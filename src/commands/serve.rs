//! `isol8 serve`.

use std::process::ExitCode;

use isol8_actors::Service;
use std::sync::Arc;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;

use super::{Failure, load_config};
use crate::backends::{self, Purpose};
use crate::cli::Serve;
use crate::images;
use crate::memory;
use crate::reload;
use crate::remote_code::RemoteCode;
use crate::server::auth::MasterKey;
use crate::server::idempotency::Results;
use crate::server::{self, ServeError, State};

pub(super) async fn serve(arguments: Serve) -> Result<ExitCode, Failure> {
    let (common, port) = (arguments.common, arguments.port);
    let load = move || load_config(&common, port);
    let config = load()?;
    let key = arguments
        .key
        .and_then(MasterKey::new)
        .ok_or("API key required: set ISOL8_API_KEY, or pass --key")?;
    server::raise_file_limit();
    // Before the first sandbox is made: from then on a signal must not just end the process.
    let stop = stop_signal()?;
    let backend = backends::start(&config, Purpose::Serve).await?;
    log::info!(backend = backend.name(), state:% = config.state.display(); "starting");
    // Before the pool makes the first sandbox of this server.
    let adopted = backend.adopt().await.unwrap_or_else(|error| {
        log::error!(error:%; "sessions of the last server cannot be taken over");
        Vec::new()
    });
    if !adopted.is_empty() {
        log::info!(sessions = adopted.len(); "taking over from the last server");
    }
    images::look(&config, backend.name()).await;
    let service = Service::start(backend.clone(), config.service());
    service.adopt(adopted).await?;
    backends::sweep(backend.as_ref()).await;
    if let Err(error) = backends::check_preload(backend.as_ref(), &config).await {
        service.leave().await?;
        return Err(error.into());
    }
    let remote_code = RemoteCode::new(&config.remote_code);
    let (current, config) = watch::channel(Arc::new(config));
    let building = images::build_missing(config.clone(), service.clone());
    let state = State {
        service: service.clone(),
        backend: backend.name(),
        config,
        key,
        results: Results::default(),
        remote_code,
    };
    let served = tokio::select! {
        served = server::serve(state, stop) => served,
        never = building => match never {},
        never = memory::give_back() => match never {},
        followed = reload::follow(load, current, service.clone()) => {
            followed.map_err(ServeError::Listen)
        }
    };
    if let Err(error) = served {
        // Where it could not even listen, the sandboxes are still there.
        service.leave().await?;
        return Err(error.into());
    }
    Ok(ExitCode::SUCCESS)
}

/// Done at the first SIGTERM or SIGINT; from this call on they do nothing else.
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
