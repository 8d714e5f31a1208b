//! The settings that a session is made with, and the actors that it works with.

use std::sync::Arc;

use isol8_backend::{SandboxSpec, SessionDefaults};

use super::event::SessionEvent;
use super::message::SessionKey;
use super::status::SessionStatus;
use crate::admission::Admission;
use crate::pool::Pool;
use crate::supervisor::{Supervised, WeakRecipient};

/// The settings that a session is made with.
#[derive(Clone, Debug)]
pub(crate) struct SessionContext {
    pub(crate) key: SessionKey,
    /// Tells this session from others of the same key, before and after it.
    pub(crate) generation: u64,
    pub(crate) spec: SandboxSpec,
    /// Settings of its jobs that do not say otherwise.
    pub(crate) defaults: Option<SessionDefaults>,
    pub(crate) queue_limit: usize,
    pub(crate) status: Arc<SessionStatus>,
    pub(crate) pool: Supervised<Pool>,
    pub(crate) admission: Admission,
    /// The registry, which handles the session's events.
    pub(crate) registry: WeakRecipient<SessionEvent>,
}
