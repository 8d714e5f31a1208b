//! Access to the sandbox's files, beside the jobs.

use std::sync::Arc;

use actix::prelude::*;

use super::message::{Open, Used};
use super::{Session, State};
use crate::error::ExecuteError;
use crate::files::{MAX_TRANSFERS, TransferPermit};

impl Session {
    fn open(&mut self) -> Result<TransferPermit, ExecuteError> {
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
            session: self.own.handle(),
            _permit: permit,
        })
    }
}

impl Handler<Open> for Session {
    type Result = Result<TransferPermit, ExecuteError>;

    fn handle(&mut self, _: Open, _: &mut Self::Context) -> Self::Result {
        self.open()
    }
}

impl Handler<Used> for Session {
    type Result = ();

    fn handle(&mut self, _: Used, _: &mut Self::Context) {
        if let State::Idle(home) | State::Running(home, _) = &mut self.own.state {
            home.note_use();
        }
    }
}
