//! `isol8 serve`.

use std::process::ExitCode;

use isol8_actors::Service;

use super::{Failure, load_config};
use crate::backends;
use crate::cli::Serve;
use crate::server::auth::MasterKey;
use crate::server::{self, State};

pub(super) async fn serve(arguments: Serve) -> Result<ExitCode, Failure> {
    let config = load_config(&arguments.common, arguments.port)?;
    let key = arguments
        .key
        .and_then(MasterKey::new)
        .ok_or("API key required: set ISOL8_API_KEY, or pass --key")?;
    let backend = backends::start(&config).await?;
    log::info!(backend = backend.name(), state:% = config.state.display(); "starting");
    let service = Service::start(backend.clone(), config.service());
    let served = server::serve(State {
        service: service.clone(),
        backend: backend.name(),
        config,
        key,
    })
    .await;
    log::info!("shutting down");
    service.shutdown().await?;
    served?;
    Ok(ExitCode::SUCCESS)
}
