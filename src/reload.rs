//! Reloads the configuration while the server runs.
//!
//! The files are read again on SIGHUP, and when they have changed. A setting that needs a restart keeps its value, with a
//! warning that names it. Files with an error are refused as a whole.

use std::io;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use isol8_actors::Service;
use isol8_config::{Config, ConfigError};
use isol8_engine::active::ActiveConfig;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;

/// Interval at which the files are checked for changes.
const CHECK_INTERVAL: Duration = Duration::from_secs(2);

/// Reloads the configuration on SIGHUP and on changes of its files, until the future is dropped.
///
/// # Errors
/// If the handler for SIGHUP cannot be installed.
pub async fn follow(
    load: impl Fn() -> Result<Config, ConfigError> + Clone + Send + 'static,
    current: watch::Sender<Arc<ActiveConfig>>,
    service: Service,
) -> io::Result<()> {
    let mut hangup = signal(SignalKind::hangup())?;
    let mut seen = version(&current.borrow()).await;
    loop {
        let is_asked_for = tokio::select! {
            _ = hangup.recv() => true,
            () = tokio::time::sleep(CHECK_INTERVAL) => false,
        };
        let found = version(&current.borrow()).await;
        if !is_asked_for && found == seen {
            continue;
        }
        seen = found;
        // Reading files may block.
        match tokio::task::spawn_blocking(load.clone()).await {
            Ok(Ok(config)) => apply(config, &current, &service).await,
            Ok(Err(error)) => {
                log::error!(error:%; "configuration refused, the previous one stays in effect")
            }
            Err(panic) => log::error!(error:% = panic; "reading the configuration panicked"),
        }
    }
}

/// Returns the modification time and size of each file, by which changes are detected; `None` for a missing file.
async fn version(config: &Config) -> Vec<Option<(SystemTime, u64)>> {
    let mut versions = Vec::new();
    for path in &config.sources {
        let metadata = tokio::fs::metadata(path).await.ok();
        versions.push(metadata.and_then(|it| Some((it.modified().ok()?, it.len()))));
    }
    versions
}

async fn apply(read: Config, current: &watch::Sender<Arc<ActiveConfig>>, service: &Service) {
    let before = Arc::clone(&current.borrow());
    let (config, needs_restart) = match before.reload(read) {
        Ok(reloaded) => reloaded,
        Err(error) => {
            log::error!(error:%; "configuration cannot be applied");
            return;
        }
    };
    for key in needs_restart {
        log::warn!(key; "setting takes effect after a restart only");
    }
    if let Err(error) = service.configure(config.service()).await {
        log::error!(error:%; "configuration cannot be applied");
        return;
    }
    current.send_replace(Arc::new(config));
    log::info!("configuration applied");
}
