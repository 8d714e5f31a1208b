//! The settings with which a session is created, and the actors that it uses.

use std::sync::Arc;

use isol8_backend::{SandboxSpec, SessionDefaults};

use super::event::SessionEvent;
use super::message::SessionKey;
use super::status::SessionStatus;
use crate::admission::Admission;
use crate::pool::Pool;
use crate::supervisor::{Supervised, WeakRecipient};

/// The settings with which a session is created, and the actors that it uses.
#[derive(Clone, Debug)]
pub(crate) struct SessionContext {
    pub(crate) key: SessionKey,
    /// Distinguishes this session from earlier and later sessions of the same key.
    pub(crate) generation: u64,
    pub(crate) spec: SandboxSpec,
    /// Settings for jobs that have none of their own.
    pub(crate) defaults: Option<SessionDefaults>,
    pub(crate) queue_limit: usize,
    pub(crate) status: Arc<SessionStatus>,
    pub(crate) pool: Supervised<Pool>,
    pub(crate) admission: Admission,
    /// The registry, which handles the session's events.
    pub(crate) registry: WeakRecipient<SessionEvent>,
}
