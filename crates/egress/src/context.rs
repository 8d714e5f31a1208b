//! The egress context of one run: its rules, limits, usage and log.

use std::sync::Arc;

use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::Semaphore;

use crate::access_log::AccessLog;
use crate::dial::Dialer;
use crate::filter::Policy;
use crate::meter::ByteUsage;
use crate::problem::{NetworkProblem, NetworkProblems};
use crate::proxy::Connection;
use crate::{EgressLimits, Entry, LocalHost};

/// Minimum limit for the size of a head that hyper accepts, in bytes.
const MIN_HEAD_BYTES: usize = 8 << 10;

/// Maximum number of concurrent name lookups of one run. A name server that does not answer delays only the lookups of
/// the run that asks it.
const MAX_LOOKUPS: usize = 8;

/// The network of one run: its rules, its limits and its usage. Clones share the same run.
#[derive(Clone, Debug)]
pub struct RunEgress(Arc<RunContext>);

#[derive(Debug)]
pub(crate) struct RunContext {
    pub(crate) dialer: Dialer,
    pub(crate) policy: Policy,
    pub(crate) limits: EgressLimits,
    pub(crate) usage: Arc<ByteUsage>,
    pub(crate) log: Arc<AccessLog>,
    pub(crate) problems: NetworkProblems,
    /// A host that exists for this run only.
    pub(crate) local: Option<Arc<dyn LocalHost>>,
    /// Permits for name lookups. Waiting for a permit counts towards the connect timeout.
    pub(crate) lookups: Semaphore,
    connections: Semaphore,
    /// Permits for connections beyond the limit, which are answered with 429. Further connections are closed.
    refusals: Semaphore,
}

impl RunEgress {
    pub(crate) fn new(
        dialer: Dialer,
        policy: Policy,
        mut limits: EgressLimits,
        log: bool,
        local: Option<Arc<dyn LocalHost>>,
    ) -> Self {
        limits.header_bytes = limits.header_bytes.max(MIN_HEAD_BYTES);
        let slots = || Semaphore::new(limits.connections.min(Semaphore::MAX_PERMITS));
        Self(Arc::new(RunContext {
            dialer,
            policy,
            usage: Arc::new(ByteUsage::new(limits.bytes)),
            problems: NetworkProblems::default(),
            log: AccessLog::new(if log { limits.log_entries } else { 0 }),
            local,
            lookups: Semaphore::new(MAX_LOOKUPS),
            connections: slots(),
            refusals: slots(),
            limits,
        }))
    }

    /// Serves a connection that the run opened, until it is closed. Dropping the future closes the connection and those
    /// to hosts that it has led to. Must be called in a tokio runtime with time and I/O enabled.
    pub async fn serve<S>(&self, stream: S)
    where
        S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let run = &*self.0;
        if let Ok(_slot) = run.connections.try_acquire() {
            Connection::new(run, true).serve(stream).await;
        } else if let Ok(_slot) = run.refusals.try_acquire() {
            Connection::new(run, false).serve(stream).await;
        }
    }

    /// Returns the access log with the first requests of the run; empty if the run has no log.
    #[must_use]
    pub fn log(&self) -> Vec<Entry> {
        self.0.log.entries()
    }

    /// Returns the hosts that the run could not reach, and those that its host inside the server could not reach.
    #[must_use]
    pub fn problems(&self) -> Vec<NetworkProblem> {
        let local = self.0.local.as_ref().map(|local| local.problems());
        let own = self.0.problems.all();
        own.into_iter().chain(local.unwrap_or_default()).collect()
    }

    /// Returns the numbers of bytes that the run has received from hosts and sent to them.
    #[must_use]
    pub fn bytes(&self) -> (u64, u64) {
        self.0.usage.bytes()
    }
}
