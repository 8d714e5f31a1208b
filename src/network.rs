//! The network of jobs: what carries their connections is the egress proxy.

use std::sync::Arc;

use futures::future::BoxFuture;
use isol8_actors::Network;
use isol8_api::NetworkLogEntry;
use isol8_backend::Tunnel;
use isol8_egress::{
    Egress, EgressError, Filter, LocalHost, Policy, Problem, ProblemKind, RunEgress,
};

/// The network of one job.
#[derive(Debug)]
pub struct Filtered {
    egress: RunEgress,
    is_logged: bool,
}

impl Filtered {
    /// What the server's rules and this filter let through. With `is_logged`, the result tells of it.
    ///
    /// # Errors
    /// [`EgressError`] names the pattern that cannot be used.
    pub fn new(egress: &Egress, filter: &Filter, is_logged: bool) -> Result<Self, EgressError> {
        let policy = egress.policy(filter)?;
        Ok(Self {
            egress: egress.run(policy, is_logged),
            is_logged,
        })
    }

    /// What a policy of the server's own lets through, and a host inside the server. Nothing tells of it.
    #[must_use]
    pub fn inner(egress: &Egress, policy: Policy, local: Option<Arc<dyn LocalHost>>) -> Self {
        Self {
            egress: egress.run_with(policy, false, local),
            is_logged: false,
        }
    }
}

/// A sentence for the client, with the key of the configuration that changes it.
fn describe(problem: &Problem) -> String {
    let fix = match problem.kind {
        ProblemKind::NotPublic => {
            "list its addresses in network.allowedCidrs, if they are not public ones"
        }
        ProblemKind::Denied => "list it among runtimes.*.registries",
        ProblemKind::Untrusted => {
            "where a proxy inspects TLS, name its authority's certificate in network.caBundle"
        }
        ProblemKind::Unreachable => "see that the server itself reaches it",
    };
    format!("registry not reached: {}; {fix}", problem.text)
}

impl Network for Filtered {
    fn serve(&self, connection: Tunnel) -> BoxFuture<'static, ()> {
        let egress = self.egress.clone();
        Box::pin(async move { egress.serve(connection).await })
    }

    fn bytes(&self) -> (u64, u64) {
        self.egress.bytes()
    }

    fn log(&self) -> Option<Vec<NetworkLogEntry>> {
        self.is_logged.then(|| self.egress.log())
    }

    fn problems(&self) -> Vec<String> {
        let problems = self.egress.problems();
        problems.iter().map(describe).collect()
    }
}
