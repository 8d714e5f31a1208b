//! Connects to destinations whose addresses the rules admit.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use tokio::net::TcpStream;
use tokio::sync::Semaphore;
use tokio::time::{Instant, sleep_until, timeout_at};

use crate::addresses::AddressRules;
use crate::destination::{Destination, DestinationHost};
use crate::resolve::Resolve;

/// Maximum number of addresses of a name that are tried.
const MAX_ADDRESSES_TRIED: usize = 8;

/// A name is refused at a multiple of this time after the request, so that the response time does not distinguish a
/// name of the operator's network, which a near name server or `/etc/hosts` knows, from a name that does not exist.
const REFUSAL_STEP: Duration = Duration::from_millis(100);

/// The reason why a connection was not made.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum DialError {
    /// The client gave an address that is not public.
    #[error("{0} is not a public address")]
    NotPublic(IpAddr),
    /// The name does not exist, or has only addresses of the operator's network. The error does not distinguish the
    /// two, because names of that network could be found by trying.
    #[error("{0} has no public address, or cannot be resolved")]
    NoAddress(String),
    #[error("{0} does not accept connections on port {1}")]
    Unreachable(DestinationHost, u16),
    #[error("{0} did not answer in time")]
    TimedOut(DestinationHost),
}

/// Resolves names and connects, by the rules on addresses. Cheap to clone.
#[derive(Clone, Debug)]
pub(crate) struct Dialer {
    addresses: Arc<AddressRules>,
    resolver: Arc<dyn Resolve>,
    /// Maximum time for resolving and connecting together.
    timeout: Duration,
}

impl Dialer {
    pub(crate) fn new(
        addresses: AddressRules,
        resolver: Arc<dyn Resolve>,
        timeout: Duration,
    ) -> Self {
        Self {
            addresses: Arc::new(addresses),
            resolver,
            timeout,
        }
    }

    /// Connects to a destination. Resolving a name takes one of the permits of `lookups`.
    pub(crate) async fn dial(
        &self,
        destination: &Destination,
        lookups: &Semaphore,
    ) -> Result<TcpStream, DialError> {
        let deadline = Instant::now() + self.timeout;
        let addresses = match &destination.host {
            DestinationHost::Address(address) => vec![self.check(*address)?],
            DestinationHost::Name(name) => {
                let looking_up = async {
                    let _slot = lookups.acquire().await;
                    self.resolver.resolve(name).await
                };
                self.admitted(name, looking_up, deadline).await?
            }
        };
        let tries = addresses.len().min(MAX_ADDRESSES_TRIED);
        for (index, address) in addresses.into_iter().take(tries).enumerate() {
            // The time is shared, so that an address that does not answer leaves time for the next ones.
            let left = deadline.saturating_duration_since(Instant::now());
            let share = left / u32::try_from(tries - index).unwrap_or(1);
            let connecting = TcpStream::connect(SocketAddr::new(address, destination.port));
            if let Ok(Ok(stream)) = timeout_at(Instant::now() + share, connecting).await {
                // Small writes are sent at once.
                let _ = stream.set_nodelay(true);
                return Ok(stream);
            }
        }
        if Instant::now() >= deadline {
            return Err(DialError::TimedOut(destination.host.clone()));
        }
        Err(DialError::Unreachable(
            destination.host.clone(),
            destination.port,
        ))
    }

    /// Returns the admitted addresses of a name; at least one.
    pub(crate) async fn lookup(&self, name: &str) -> Result<Vec<IpAddr>, DialError> {
        let deadline = Instant::now() + self.timeout;
        self.admitted(name, self.resolver.resolve(name), deadline)
            .await
    }

    /// Returns an address that was given in place of a name, if it is admitted.
    pub(crate) fn check(&self, address: IpAddr) -> Result<IpAddr, DialError> {
        if self.addresses.admit(address) {
            return Ok(address);
        }
        Err(DialError::NotPublic(address))
    }

    async fn admitted(
        &self,
        name: &str,
        looking_up: impl Future<Output = std::io::Result<Vec<IpAddr>>>,
        until: Instant,
    ) -> Result<Vec<IpAddr>, DialError> {
        let started = Instant::now();
        let found = match timeout_at(until, looking_up).await {
            Ok(Ok(found)) => found,
            Ok(Err(error)) => {
                log::debug!(name, error:%; "name cannot be resolved");
                Vec::new()
            }
            Err(_) => return Err(DialError::TimedOut(DestinationHost::Name(name.to_owned()))),
        };
        let mut admitted = Vec::new();
        for address in found.iter().map(IpAddr::to_canonical) {
            if self.addresses.admit(address) && !admitted.contains(&address) {
                admitted.push(address);
            }
        }
        if admitted.is_empty() {
            if !found.is_empty() {
                log::debug!(name, addresses:? = found; "name has no address that may be connected to");
            }
            sleep_until(until.min(started + next_refusal_step(started.elapsed()))).await;
            return Err(DialError::NoAddress(name.to_owned()));
        }
        Ok(admitted)
    }
}

/// Returns the next multiple of [`REFUSAL_STEP`].
fn next_refusal_step(elapsed: Duration) -> Duration {
    let steps = elapsed.as_millis() / REFUSAL_STEP.as_millis() + 1;
    REFUSAL_STEP * u32::try_from(steps).unwrap_or(u32::MAX)
}
