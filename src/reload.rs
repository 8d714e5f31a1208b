//! Changes of the configuration, applied while the server runs.
//!
//! The file is read again at SIGHUP, and when it has changed. A setting that cannot change without a restart stays as
//! it was, with a warning that names it; a file with an error is refused as a whole.

use std::io;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use isol8_actors::Service;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;

use crate::config::{Config, ConfigError};

/// Between two looks at the file.
const INTERVAL: Duration = Duration::from_secs(2);

/// Follows the configuration for as long as the future is polled.
///
/// # Errors
/// If signals cannot be received.
pub async fn follow(
    load: impl Fn() -> Result<Config, ConfigError> + Clone + Send + 'static,
    current: watch::Sender<Arc<Config>>,
    service: Service,
) -> io::Result<()> {
    let mut hangup = signal(SignalKind::hangup())?;
    let mut seen = version(&current.borrow()).await;
    loop {
        let is_asked_for = tokio::select! {
            _ = hangup.recv() => true,
            () = tokio::time::sleep(INTERVAL) => false,
        };
        let found = version(&current.borrow()).await;
        if !is_asked_for && found == seen {
            continue;
        }
        seen = found;
        // A disk may let its reader wait.
        match tokio::task::spawn_blocking(load.clone()).await {
            Ok(Ok(config)) => apply(config, &current, &service).await,
            Ok(Err(error)) => log::error!(error:%; "configuration refused, the one before stays"),
            Err(panic) => log::error!(error:% = panic; "reading the configuration panicked"),
        }
    }
}

/// Tells one content of the files from another; nothing in the place of one that is not there.
async fn version(config: &Config) -> Vec<Option<(SystemTime, u64)>> {
    let mut versions = Vec::new();
    for path in &config.sources {
        let metadata = tokio::fs::metadata(path).await.ok();
        versions.push(metadata.and_then(|it| Some((it.modified().ok()?, it.len()))));
    }
    versions
}

async fn apply(mut config: Config, current: &watch::Sender<Arc<Config>>, service: &Service) {
    let before = Arc::clone(&current.borrow());
    for key in config.keep_fixed(&before) {
        log::warn!(key; "changes with the next start only");
    }
    if let Err(error) = service.configure(config.service()).await {
        log::error!(error:%; "configuration cannot be applied");
        return;
    }
    current.send_replace(Arc::new(config));
    log::info!("configuration applied");
}
