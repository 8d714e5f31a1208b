//! The part of a session that permits file transfers, which run beside its jobs.

use std::sync::Arc;

use actix::prelude::*;

use super::message::BeginTransfer;
use super::permit::{TransferEnded, TransferPermit};
use super::status::MAX_TRANSFERS;
use super::{Session, State};
use crate::error::ExecuteError;

impl Session {
    fn begin_transfer(&mut self) -> Result<TransferPermit, ExecuteError> {
        let home = match &mut self.own.state {
            State::Idle(home) | State::Running(home, _) => home,
            State::Ended(ending) => {
                let ending = ending.clone();
                self.note_told(&ending);
                return Err(self.error_for(&ending));
            }
            // A session without a sandbox is not listed either.
            State::New | State::Adopted(..) | State::Starting | State::Between => {
                return Err(ExecuteError::SessionNotFound);
            }
        };
        let status = &self.setting.status;
        let id = self.setting.key.id.clone();
        let Ok(permit) = Arc::clone(&status.transfers).try_acquire_owned() else {
            return Err(ExecuteError::TooManyTransfers {
                session: id,
                limit: MAX_TRANSFERS,
            });
        };
        home.note_use();
        status.note_use();
        Ok(TransferPermit {
            id,
            sandbox: Arc::clone(&home.held.sandbox),
            status: Arc::clone(status),
            session: self.own.handle().recipient(),
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
        if let State::Idle(home) | State::Running(home, _) = &mut self.own.state {
            home.note_use();
        }
    }
}
