//! Connects to what the rules on addresses admit.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use tokio::net::TcpStream;
use tokio::time::{Instant, timeout_at};

use crate::addresses::Addresses;
use crate::resolve::Resolve;
use crate::target::{Host, Target};

/// Most addresses of a name that are tried.
const TRIES: usize = 8;

/// There is no connection.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum DialError {
    /// Of an address that was named by the client itself.
    #[error("{0} is not a public address")]
    NotPublic(IpAddr),
    /// The addresses themselves are not told: they are the operator's.
    #[error("{0} has no public address")]
    NonePublic(String),
    #[error("{0} cannot be resolved")]
    Unresolvable(String),
    #[error("{0} does not accept connections on port {1}")]
    Unreachable(Host, u16),
    #[error("{0} did not answer in time")]
    TimedOut(Host),
}

/// Connects. Cheap to clone.
#[derive(Clone, Debug)]
pub(crate) struct Dialer {
    addresses: Arc<Addresses>,
    resolver: Arc<dyn Resolve>,
    /// Of resolving and connecting together.
    timeout: Duration,
}

impl Dialer {
    pub(crate) fn new(addresses: Addresses, resolver: Arc<dyn Resolve>, timeout: Duration) -> Self {
        Self {
            addresses: Arc::new(addresses),
            resolver,
            timeout,
        }
    }

    pub(crate) async fn dial(&self, target: &Target) -> Result<TcpStream, DialError> {
        let deadline = Instant::now() + self.timeout;
        let addresses = match &target.host {
            Host::Address(address) => vec![self.check(*address)?],
            Host::Name(name) => self.lookup_until(name, deadline).await?,
        };
        let tries = addresses.len().min(TRIES);
        for (index, address) in addresses.into_iter().take(tries).enumerate() {
            // One that does not answer leaves time for those after it.
            let left = deadline.saturating_duration_since(Instant::now());
            let share = left / u32::try_from(tries - index).unwrap_or(1);
            let connecting = TcpStream::connect(SocketAddr::new(address, target.port));
            if let Ok(Ok(stream)) = timeout_at(Instant::now() + share, connecting).await {
                // Small pieces of a conversation do not wait for each other.
                let _ = stream.set_nodelay(true);
                return Ok(stream);
            }
        }
        if Instant::now() >= deadline {
            return Err(DialError::TimedOut(target.host.clone()));
        }
        Err(DialError::Unreachable(target.host.clone(), target.port))
    }

    /// The addresses of a name that may be connected to; one or more.
    pub(crate) async fn lookup(&self, name: &str) -> Result<Vec<IpAddr>, DialError> {
        self.lookup_until(name, Instant::now() + self.timeout).await
    }

    /// The same for an address that stands in the place of a name.
    pub(crate) fn check(&self, address: IpAddr) -> Result<IpAddr, DialError> {
        if self.addresses.admit(address) {
            return Ok(address);
        }
        Err(DialError::NotPublic(address))
    }

    async fn lookup_until(&self, name: &str, until: Instant) -> Result<Vec<IpAddr>, DialError> {
        let found = match timeout_at(until, self.resolver.resolve(name)).await {
            Ok(Ok(found)) => found,
            Ok(Err(error)) => {
                log::debug!(name, error:%; "name cannot be resolved");
                Vec::new()
            }
            Err(_) => return Err(DialError::TimedOut(Host::Name(name.to_owned()))),
        };
        if found.is_empty() {
            return Err(DialError::Unresolvable(name.to_owned()));
        }
        let mut admitted = Vec::new();
        for address in found.into_iter().map(|address| address.to_canonical()) {
            if self.addresses.admit(address) && !admitted.contains(&address) {
                admitted.push(address);
            }
        }
        if admitted.is_empty() {
            return Err(DialError::NonePublic(name.to_owned()));
        }
        Ok(admitted)
    }
}
