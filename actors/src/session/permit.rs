//! The right to transfer one file to or from a session's sandbox.

use std::sync::Arc;

use actix::prelude::*;
use isol8_api::SessionId;
use isol8_backend::Sandbox;
use tokio::sync::OwnedSemaphorePermit;

use super::status::SessionStatus;
use crate::supervisor::WeakRecipient;

/// The right to one file transfer. The session counts as in use as long as a permit exists.
#[derive(Debug)]
pub(crate) struct TransferPermit {
    pub(crate) id: SessionId,
    pub(crate) sandbox: Arc<dyn Sandbox>,
    pub(crate) status: Arc<SessionStatus>,
    pub(crate) session: WeakRecipient<TransferEnded>,
    pub(crate) _permit: OwnedSemaphorePermit,
}

impl Drop for TransferPermit {
    fn drop(&mut self) {
        self.status.note_use();
        self.session.do_send(TransferEnded);
    }
}

/// A file transfer has ended.
#[derive(Clone, Copy, Debug, Message)]
#[rtype(result = "()")]
pub(crate) struct TransferEnded;
