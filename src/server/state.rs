//! The state that the routes share.

use std::sync::Arc;

use isol8_actors::Service;
use isol8_engine::Engine;
use isol8_engine::active::ActiveConfig;
use tokio::sync::watch;

use super::bodies::BodyBudget;
use super::idempotency::ResultStore;
use super::master_key::MasterKey;

/// The state that the routes share.
#[derive(Debug)]
pub struct ServerState {
    /// Runs requests.
    pub engine: Engine,
    /// The current configuration. A reload replaces it.
    pub config: watch::Receiver<Arc<ActiveConfig>>,
    /// The API key, which every route but the public ones requires.
    pub key: MasterKey,
    /// Name of the backend.
    pub backend: &'static str,
    /// Reason for which the server uses this backend.
    pub backend_reason: String,
    /// Bounds the memory and processors that request bodies take.
    pub bodies: BodyBudget,
    /// Results of requests that had an idempotency key.
    pub results: ResultStore,
}

impl ServerState {
    /// Returns the service, which owns the sessions.
    #[must_use]
    pub fn service(&self) -> &Service {
        self.engine.service()
    }

    /// Returns the current configuration. A handler takes it once, so that one configuration holds for the whole request.
    #[must_use]
    pub fn config(&self) -> Arc<ActiveConfig> {
        Arc::clone(&self.config.borrow())
    }
}
