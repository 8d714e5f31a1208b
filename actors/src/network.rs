//! The connections of a job's programs to the network.

use std::convert::Infallible;
use std::fmt::Debug;
use std::future::pending;

use futures::future::BoxFuture;
use isol8_api::NetworkLogEntry;
use isol8_backend::{Tunnel, Tunnels};
use tokio::task::JoinSet;

/// The network of one job: of its program and its setup script.
pub trait Network: Debug + Send + Sync {
    /// Serves a connection until it is over. Dropping the future ends it.
    fn serve(&self, connection: Tunnel) -> BoxFuture<'static, ()>;

    /// Bytes that came in, and that went out.
    fn bytes(&self) -> (u64, u64);

    /// Returns the recorded requests of programs, if the job records them.
    fn log(&self) -> Option<Vec<NetworkLogEntry>>;

    /// Why hosts could not be reached, a sentence each with the configuration key that changes it.
    fn problems(&self) -> Vec<String> {
        Vec::new()
    }
}

/// Serves the connections of a run, for as long as the future is polled. Each is a task of its own, which
/// ends with the future.
pub(crate) async fn serve(network: Option<&dyn Network>, tunnels: Option<Tunnels>) -> Infallible {
    let (Some(network), Some(mut tunnels)) = (network, tunnels) else {
        return pending().await;
    };
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            next = tunnels.next() => match next {
                Some(tunnel) => drop(connections.spawn(network.serve(tunnel))),
                // The run's end, which the run itself tells of.
                None => return pending().await,
            },
            Some(ended) = connections.join_next() => {
                if let Err(error) = ended {
                    log::error!(error:%; "a connection's task panicked");
                }
            }
        }
    }
}
