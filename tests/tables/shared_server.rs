//! A server that the tests of a backend share.

use std::process::Command;
use std::sync::RwLock;

use crate::harness::{ISOL8, Kind, LOG_FILTER, Server, state_directory};

/// Lets the server log each run, by which a test finds how the program was started.
const LOGGED: &str = "info,isol8_actors::run=debug";

/// A server that its first test starts.
pub(crate) struct SharedServer {
    kind: Kind,
    /// Locked for reading as long as a test uses the server.
    server: RwLock<Option<Server>>,
}

impl SharedServer {
    pub(crate) const fn new(kind: Kind) -> Self {
        Self {
            kind,
            server: RwLock::new(None),
        }
    }

    pub(crate) fn kind(&self) -> Kind {
        self.kind
    }

    /// Returns the result of `test`, which may run beside others.
    pub(crate) fn with<T>(&self, test: impl FnOnce(&Server) -> T) -> T {
        const BROKEN: &str = "the shared server did not start: the first failed test shows its log";
        let mut server = self.server.read().expect(BROKEN);
        if server.is_none() {
            drop(server);
            let mut starting = self.server.write().expect(BROKEN);
            starting.get_or_insert_with(|| start(self.kind));
            drop(starting);
            server = self.server.read().expect(BROKEN);
        }
        test(server.as_ref().unwrap())
    }

    /// Ends the server if a test has started it, and expects that the server leaves nothing behind.
    pub(crate) fn stop(&self) {
        if let Some(server) = self
            .server
            .write()
            .ok()
            .and_then(|mut server| server.take())
        {
            server.stop();
        }
    }
}

fn start(kind: Kind) -> Server {
    let mut command = Command::new(ISOL8);
    command.env(LOG_FILTER, LOGGED);
    Server::launch(command, kind, state_directory(), "")
}
