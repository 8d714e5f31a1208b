//! Names into addresses.

use std::fmt;
use std::io;
use std::net::IpAddr;
use std::sync::Arc;

use async_trait::async_trait;
use tokio::net::lookup_host;
use tokio::sync::Semaphore;

/// Lookups at once. Each occupies a thread until the host's resolver gives up, however few wait for it.
const LOOKUPS: usize = 64;

/// Resolves names.
#[async_trait]
pub trait Resolve: fmt::Debug + Send + Sync {
    /// All addresses of a name, the best first.
    ///
    /// # Errors
    /// Where there is none, or nobody to ask.
    async fn resolve(&self, name: &str) -> io::Result<Vec<IpAddr>>;
}

/// Resolves names as the host's programs do.
#[derive(Clone, Debug)]
pub struct SystemResolver {
    lookups: Arc<Semaphore>,
}

impl Default for SystemResolver {
    fn default() -> Self {
        Self {
            lookups: Arc::new(Semaphore::new(LOOKUPS)),
        }
    }
}

#[async_trait]
impl Resolve for SystemResolver {
    async fn resolve(&self, name: &str) -> io::Result<Vec<IpAddr>> {
        let lookups = Arc::clone(&self.lookups);
        let place = lookups.acquire_owned().await.map_err(io::Error::other)?;
        let name = name.to_owned();
        // A task of its own, so that the place is taken for as long as the thread is.
        let lookup = tokio::spawn(async move {
            let _place = place;
            let found = lookup_host((name, 0)).await?;
            Ok(found.map(|address| address.ip()).collect())
        });
        lookup.await.map_err(io::Error::other)?
    }
}
