//! The part of the registry that finds the session of a file transfer.

use actix::prelude::*;

use super::{BeginTransfer, Registry};
use crate::error::ExecuteError;
use crate::session::{self, TransferPermit};

impl Handler<BeginTransfer> for Registry {
    type Result = ResponseFuture<Result<TransferPermit, ExecuteError>>;

    fn handle(&mut self, BeginTransfer(key): BeginTransfer, _: &mut Self::Context) -> Self::Result {
        if self.state.draining {
            return Box::pin(async { Err(ExecuteError::ShuttingDown) });
        }
        if let Some(reason) = self.state.losses.take(&key) {
            let session = key.id;
            return Box::pin(async { Err(ExecuteError::SessionLost { session, reason }) });
        }
        let Some(entry) = self.state.sessions.get(&key) else {
            return Box::pin(async { Err(ExecuteError::SessionNotFound) });
        };
        let session = entry.session.clone();
        Box::pin(async move { session.ask(|| session::BeginTransfer).await? })
    }
}
