//! The one way from a sandbox to the network: an HTTP proxy in the server's process.
//!
//! A sandbox has no network. Bytes that its programs send to their proxy arrive here as a stream. [`RunEgress::serve`]
//! reads requests from the stream, checks them against the rules, and connects. [`Egress::fetch`] fetches URLs that a
//! client gives, for the server itself, by the same rules.
//!
//! Connections are made only to public addresses and to those that the operator adds, regardless of names: a name is
//! resolved once, its addresses are checked, and the connection is made to a checked address. Every request is checked,
//! also the later ones on a connection that is kept alive.
//!
//! This crate knows neither tunnels, the HTTP server, actors nor backends.
//!
//! Modules, in reading order: [`config`], [`filter`] and [`addresses`], the rules; `dial`, which connects by them;
//! [`context`] and `proxy`, which speak HTTP with a sandbox; [`mod@fetch`].

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

/// The egress rules of a server, and the dialer and HTTP client that obey them. Cheap to clone; clones share
/// everything.
#[derive(Clone)]
pub struct Egress(Arc<Shared>);

struct Shared {
    rules: Arc<Rules>,
    ports: Arc<Ports>,
    dialer: Dialer,
    limits: EgressLimits,
    /// PEM certificates that the server's own fetches trust in addition to the host's.
    certificates: Option<String>,
    /// Created by the first fetch, because creating it reads the host's certificates.
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

impl EgressConfig {
    /// Checks the patterns and the ranges of addresses, as [`Egress::new`] does.
    ///
    /// # Errors
    /// Returns [`EgressError`], which names the pattern or the range of addresses.
    pub fn check(&self) -> Result<(), EgressError> {
        AddressRules::new(&self.allowed_cidrs)?;
        Rules::new(&Filter {
            whitelist: self.whitelist.clone(),
            blacklist: self.blacklist.clone(),
        })?;
        Ok(())
    }
}

impl Egress {
    /// Creates the rules from a configuration. Names are resolved with [`SystemResolver`].
    ///
    /// # Errors
    /// Returns [`EgressError`], which names the pattern or the range of addresses.
    pub fn new(config: EgressConfig) -> Result<Self, EgressError> {
        Self::with_resolver(config, Arc::new(SystemResolver::default()))
    }

    /// Creates the rules from a configuration, with another resolver of names.
    ///
    /// # Errors
    /// Returns the same errors as [`Self::new`].
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

    /// Returns the policy of a run, from the server's filter and the filter of its request.
    ///
    /// # Errors
    /// Returns [`EgressError`], which names the pattern that is not a regular expression, or is too complex.
    pub fn policy(&self, filter: &Filter) -> Result<Policy, EgressError> {
        Ok(Policy {
            server: Arc::clone(&self.0.rules),
            request: Arc::new(Rules::new(filter)?),
            ports: PortRule::Listed(Arc::clone(&self.0.ports)),
        })
    }

    /// Returns the network of one run. With `log`, the run's requests are logged.
    #[must_use]
    pub fn run(&self, policy: Policy, log: bool) -> RunEgress {
        self.run_with(policy, log, None)
    }

    /// Returns the network of one run with an additional host inside the server, to which the policy does not apply.
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
