//! Limits of what one installation may use of the resources that all installations share.

use std::sync::Arc;

use tokio::sync::{OwnedSemaphorePermit, Semaphore, SemaphorePermit};

use crate::upstream::RegistryError;

/// Maximum number of concurrent downloads of one installation; further downloads wait. npm asks for 15 files at once.
const MAX_DOWNLOADS: usize = 16;

/// Maximum number of pages fetched at once for one installation; further pages wait.
const MAX_PAGES: usize = 16;

/// Maximum memory of the pages that are being fetched for one installation, in units of `index::MEMORY_UNIT`: 96 MiB,
/// out of 256 MiB for all installations.
const MEMORY_UNITS: usize = 1536;

/// The permits of one installation, from which all of its requests take.
#[derive(Debug)]
pub(crate) struct InstallationShare {
    downloads: Arc<Semaphore>,
    pages: Semaphore,
    memory: Semaphore,
}

impl InstallationShare {
    pub(crate) fn new() -> Self {
        Self {
            downloads: Arc::new(Semaphore::new(MAX_DOWNLOADS)),
            pages: Semaphore::new(MAX_PAGES),
            memory: Semaphore::new(MEMORY_UNITS),
        }
    }

    /// Waits until one more file may be downloaded.
    pub(crate) async fn download(&self) -> Result<OwnedSemaphorePermit, RegistryError> {
        let downloads = Arc::clone(&self.downloads);
        downloads
            .acquire_owned()
            .await
            .map_err(|_| RegistryError::Busy)
    }

    /// Waits until one more page may be fetched.
    pub(crate) async fn page(&self) -> Result<SemaphorePermit<'_>, RegistryError> {
        self.pages.acquire().await.map_err(|_| RegistryError::Busy)
    }

    /// Takes one unit of memory for a page.
    pub(crate) fn memory(&self) -> Result<SemaphorePermit<'_>, RegistryError> {
        self.memory.try_acquire().map_err(|_| RegistryError::Busy)
    }
}
