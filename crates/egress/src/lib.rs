//! The one way from a sandbox to the network: an HTTP proxy in the server's process.
//!
//! A sandbox has no network. Bytes that its programs send to their proxy arrive here as a stream; [`RunEgress::serve`]
//! reads a request from it, decides, and connects. [`Egress::fetch`] fetches for the server itself, for addresses that
//! a client names, and obeys the same rules.
//!
//! Whatever the names, only public addresses are connected to, and those that the operator adds: a name
//! is resolved once, its addresses are checked, and what was checked is connected to. Every request is
//! checked anew, on a connection that is kept alive too.
//!
//! This crate knows neither tunnels, the HTTP server, actors nor backends.
//!
//! Read [`config`], [`filter`] and [`addresses`], which are the rules; `dial`, which connects by them;
//! then [`run`] and `proxy`, which speak HTTP with a sandbox, and [`mod@fetch`].

mod access_log;
pub mod addresses;
mod anchors;
pub mod config;
pub mod context;
mod destination;
mod dial;
pub mod fetch;
pub mod filter;
pub mod local;
mod meter;
mod ports;
mod problem;
mod proxy;
pub mod resolve;
mod stream_fetch;

use std::fmt;
use std::sync::{Arc, OnceLock};

use addresses::AddressRules;
use dial::Dialer;
use filter::{PortRule, Rules};

pub use anchors::is_anchored;
pub use config::{EgressConfig, EgressError, EgressLimits, FilterList};
pub use context::RunEgress;
pub use fetch::{FetchError, FetchLimits};
pub use filter::{Denied, MAX_PATTERNS, Policy};
pub use isol8_api::{NetworkAction as Action, NetworkFilter as Filter, NetworkLogEntry as Entry};
pub use local::{LocalAnswer, LocalHost};
pub use ports::{PortError, PortRange, Ports};
pub use problem::{NetworkProblem, NetworkProblemKind, NetworkProblems};
pub use resolve::{Resolve, SystemResolver};
pub use stream_fetch::FetchStream;

/// The rules of a server, and what connects by them. Cheap to clone; clones share all of it.
#[derive(Clone)]
pub struct Egress(Arc<Shared>);

struct Shared {
    rules: Arc<Rules>,
    ports: Arc<Ports>,
    dialer: Dialer,
    limits: EgressLimits,
    /// Certificates in PEM that the server's own fetches trust beside the host's.
    certificates: Option<String>,
    /// Made when something is fetched for the first time: it reads the host's certificates.
    client: OnceLock<Result<reqwest::Client, FetchError>>,
}

impl fmt::Debug for Egress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Egress")
            .field("rules", &self.0.rules)
            .field("ports", &self.0.ports)
            .field("dialer", &self.0.dialer)
            .field("limits", &self.0.limits)
            .finish_non_exhaustive()
    }
}

impl Egress {
    /// Checks the configuration. Names are resolved as the host's programs do.
    ///
    /// # Errors
    /// [`EgressError`], which names the pattern or the range of addresses.
    pub fn new(config: EgressConfig) -> Result<Self, EgressError> {
        Self::with_resolver(config, Arc::new(SystemResolver::default()))
    }

    /// The same with names resolved in another way.
    ///
    /// # Errors
    /// As [`Self::new`].
    pub fn with_resolver(
        config: EgressConfig,
        resolver: Arc<dyn Resolve>,
    ) -> Result<Self, EgressError> {
        let filter = Filter {
            whitelist: config.whitelist,
            blacklist: config.blacklist,
        };
        let addresses = AddressRules::new(&config.allowed_cidrs)?;
        Ok(Self(Arc::new(Shared {
            rules: Arc::new(Rules::new(&filter)?),
            ports: Arc::new(config.ports),
            dialer: Dialer::new(addresses, resolver, config.limits.connect_timeout),
            limits: config.limits,
            certificates: config.certificates,
            client: OnceLock::new(),
        })))
    }

    /// Returns the hosts that a run may reach, by the server's filter and by that of its request.
    ///
    /// # Errors
    /// [`EgressError`] names the pattern that is no regular expression, or is too complex.
    pub fn policy(&self, filter: &Filter) -> Result<Policy, EgressError> {
        Ok(Policy {
            server: Arc::clone(&self.0.rules),
            request: Arc::new(Rules::new(filter)?),
            ports: PortRule::Listed(Arc::clone(&self.0.ports)),
        })
    }

    /// The network of one run. With `log`, it keeps what the run asked for.
    #[must_use]
    pub fn run(&self, policy: Policy, log: bool) -> RunEgress {
        self.run_with(policy, log, None)
    }

    /// The same with a host that exists inside the server, whatever the policy says of its name.
    #[must_use]
    pub fn run_with(
        &self,
        policy: Policy,
        log: bool,
        local: Option<Arc<dyn LocalHost>>,
    ) -> RunEgress {
        let (dialer, limits) = (self.0.dialer.clone(), self.0.limits.clone());
        RunEgress::new(dialer, policy, limits, log, local)
    }
}
