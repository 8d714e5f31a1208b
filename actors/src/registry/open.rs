//! Access to the files of a session that there is.

use actix::prelude::*;

use super::Registry;
use crate::error::ExecuteError;
use crate::files::TransferPermit;
use crate::session::{self, SessionKey};

/// Asks for the right to one transfer in a session. None is made for it.
#[derive(Debug, Message)]
#[rtype(result = "Result<TransferPermit, ExecuteError>")]
pub(crate) struct Open(pub(crate) SessionKey);

impl Handler<Open> for Registry {
    type Result = ResponseFuture<Result<TransferPermit, ExecuteError>>;

    fn handle(&mut self, Open(key): Open, _: &mut Self::Context) -> Self::Result {
        if self.own.draining {
            return Box::pin(async { Err(ExecuteError::ShuttingDown) });
        }
        if let Some(reason) = self.own.losses.take(&key) {
            let session = key.id;
            return Box::pin(async { Err(ExecuteError::SessionLost { session, reason }) });
        }
        let Some(slot) = self.own.live.get(&key) else {
            return Box::pin(async { Err(ExecuteError::SessionNotFound) });
        };
        let session = slot.session.clone();
        Box::pin(async move { session.ask(|| session::Open).await? })
    }
}
