//! The part of a session that permits file transfers, which run beside its jobs.

use std::sync::Arc;

use actix::prelude::*;

use super::message::BeginTransfer;
use super::permit::{TransferEnded, TransferPermit};
use super::status::MAX_TRANSFERS;
use super::{Lifecycle, Session};
use crate::error::ExecuteError;

impl Session {
    fn begin_transfer(&mut self) -> Result<TransferPermit, ExecuteError> {
        let owned = match &mut self.state.lifecycle {
            Lifecycle::Idle(owned) | Lifecycle::Running(owned, _) => owned,
            Lifecycle::Ended(ending) => {
                let ending = ending.clone();
                self.note_reported(&ending);
                return Err(self.error_for(&ending));
            }
            // A session without a sandbox is not listed either.
            Lifecycle::New | Lifecycle::Adopted(..) | Lifecycle::Starting | Lifecycle::Between => {
                return Err(ExecuteError::SessionNotFound);
            }
        };
        let status = &self.context.status;
        let id = self.context.key.id.clone();
        let Ok(permit) = Arc::clone(&status.transfers).try_acquire_owned() else {
            return Err(ExecuteError::TooManyTransfers {
                session: id,
                limit: MAX_TRANSFERS,
            });
        };
        owned.note_use();
        status.note_use();
        Ok(TransferPermit {
            id,
            sandbox: Arc::clone(&owned.held.sandbox),
            status: Arc::clone(status),
            session: self.state.handle().recipient(),
            _permit: permit,
        })
    }
}

impl Handler<BeginTransfer> for Session {
    type Result = Result<TransferPermit, ExecuteError>;

    fn handle(&mut self, _: BeginTransfer, _: &mut Self::Context) -> Self::Result {
        self.begin_transfer()
    }
}

impl Handler<TransferEnded> for Session {
    type Result = ();

    fn handle(&mut self, _: TransferEnded, _: &mut Self::Context) {
        if let Lifecycle::Idle(owned) | Lifecycle::Running(owned, _) = &mut self.state.lifecycle {
            owned.note_use();
        }
    }
}
