//! The network of jobs: the egress proxy carries their connections.

use std::sync::Arc;

use futures::future::BoxFuture;
use isol8_actors::Network;
use isol8_api::NetworkLogEntry;
use isol8_backend::Tunnel;
use isol8_egress::{
    Egress, EgressError, Filter, LocalHost, NetworkProblem, NetworkProblemKind, Policy, RunEgress,
};

/// The network of one job.
#[derive(Debug)]
pub struct FilteredNetwork {
    egress: RunEgress,
    is_logged: bool,
}

impl FilteredNetwork {
    /// Returns a network that allows what both the server's rules and this filter allow. With `is_logged`, the
    /// result contains a log of it.
    ///
    /// # Errors
    /// Returns an [`EgressError`] that names the invalid pattern.
    pub fn new(egress: &Egress, filter: &Filter, is_logged: bool) -> Result<Self, EgressError> {
        let policy = egress.policy(filter)?;
        Ok(Self {
            egress: egress.run(policy, is_logged),
            is_logged,
        })
    }

    /// Returns a network with a policy of the server's own, and optionally a host inside the server. Nothing is
    /// logged.
    #[must_use]
    pub fn internal(egress: &Egress, policy: Policy, local: Option<Arc<dyn LocalHost>>) -> Self {
        Self {
            egress: egress.run_with(policy, false, local),
            is_logged: false,
        }
    }
}

/// Describes a problem in a sentence for the client, with the configuration key that fixes it.
fn describe(problem: &NetworkProblem) -> String {
    let fix = match problem.kind {
        NetworkProblemKind::NotPublic => {
            "list its addresses in network.allowedCidrs, if they are not public ones"
        }
        NetworkProblemKind::Denied => "list it among runtimes.*.registries",
        NetworkProblemKind::Untrusted => {
            "if a proxy inspects TLS, name its authority's certificate in network.caBundle"
        }
        NetworkProblemKind::Unreachable => "check that the server itself can reach it",
    };
    format!("registry not reached: {}; {fix}", problem.text)
}

impl Network for FilteredNetwork {
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
