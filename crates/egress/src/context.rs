//! The network of one run.

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

/// Least bound of a head that hyper takes.
const MIN_HEAD_BYTES: usize = 8 << 10;

/// Names of one run that are looked up at once. A name server that does not answer keeps a run's own names
/// waiting and no others.
const MAX_LOOKUPS: usize = 8;

/// The network of one run: what it may reach, its limits, what it used. Clones are the same run's.
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
    /// Names that are looked up at once; a connection waits for its place within its time to connect.
    pub(crate) lookups: Semaphore,
    connections: Semaphore,
    /// Connections beyond the limit that are told so; more are closed.
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

    /// Serves a connection that the run opened, until it is closed. Dropping the future ends it, and
    /// whatever it connected to. Needs tokio's time and network.
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

    /// The requests that the run made, the first ones; empty if none are logged.
    #[must_use]
    pub fn log(&self) -> Vec<Entry> {
        self.0.log.entries()
    }

    /// The hosts that the run could not reach, and those that a host inside the server could not.
    #[must_use]
    pub fn problems(&self) -> Vec<NetworkProblem> {
        let local = self.0.local.as_ref().map(|local| local.problems());
        let own = self.0.problems.all();
        own.into_iter().chain(local.unwrap_or_default()).collect()
    }

    /// Bytes that the run received from hosts, and sent to them.
    #[must_use]
    pub fn bytes(&self) -> (u64, u64) {
        self.0.usage.bytes()
    }
}
