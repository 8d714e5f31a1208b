//! Builds missing images while the server runs.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Instant;

use isol8_actors::Service;
use isol8_backend_docker::setup::SetupEvent;
use isol8_backend_docker::setup::custom;
use tokio::sync::watch;

use super::DOCKER;
use crate::active::ActiveConfig;
use crate::backends;

/// Builds the missing or outdated prebuilt images one after the other, and adds each finished image to the pool. A
/// failed build is logged and skipped: requests for its packages install them. Afterwards the function waits
/// forever.
pub async fn build_missing(
    current: watch::Receiver<Arc<ActiveConfig>>,
    service: Service,
) -> Infallible {
    let config = Arc::clone(&current.borrow());
    let missing = config.images().prebuilt.iter();
    let mut missing = missing.filter(|one| one.packages().is_none());
    if service.backend().name() == DOCKER {
        let docker = backends::docker_config(&config);
        for prebuilt in missing.by_ref() {
            let image = &prebuilt.image.tag;
            log::info!(image; "building a missing image");
            let begun = Instant::now();
            let mut show = |event| {
                if let SetupEvent::Log(line) = event {
                    log::debug!(image; "{line}");
                }
            };
            let built = custom::build(&docker, &prebuilt.image, false, &mut show).await;
            let found = match built {
                Ok(()) => super::find(config.images(), &config).await,
                Err(error) => Err(error),
            };
            if let Err(error) = found {
                log::error!(image, error:%; "cannot build or inspect the image, so its packages are installed for each request");
                continue;
            }
            log::info!(image, seconds = begun.elapsed().as_secs(); "image is built");
            let configured = service.configure(current.borrow().service());
            if let Err(error) = configured.await {
                log::warn!(error:%; "cannot keep idle sandboxes of new images");
            }
        }
    }
    std::future::pending().await
}
