//! Files that the process may have open, and how many of them may be connections of clients.

use std::io;

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// More are not asked for: some programs close every descriptor that they might have, one by one.
const MOST_FILES: u64 = 1 << 20;

/// Raises the process's limit on open files, mostly 1024, to what it may be raised to. Sandboxes have a limit of
/// their own.
pub(crate) fn raise_limit() {
    let limit = getrlimit(Resource::Nofile);
    let raised = Rlimit {
        current: limit
            .maximum
            .map_or(Some(MOST_FILES), |most| Some(most.min(MOST_FILES))),
        ..limit
    };
    if raised.current > limit.current
        && let Err(error) = setrlimit(Resource::Nofile, raised)
    {
        log::warn!(error:%; "the limit on open files stays as it is");
    }
}

/// Connections that may be open at once: as many as are wanted, and at most half of the files that the process may
/// open. The other half is for sandboxes, for what they reach, and for files.
///
/// # Errors
/// If no connection is possible.
pub(super) fn connections(wanted: usize) -> io::Result<usize> {
    let files = getrlimit(Resource::Nofile).current;
    let most = files.map_or(usize::MAX, |files| {
        usize::try_from(files / 2).unwrap_or(usize::MAX)
    });
    if most < wanted {
        log::warn!(
            "server.maxConnections = {wanted}: only {most} connections are served at once, half of the files that \
             the process may open; raise its limit (ulimit -n, LimitNOFILE)"
        );
    }
    match wanted.min(most) {
        0 => Err(io::Error::other(
            "the limit on open files leaves none for connections",
        )),
        most => Ok(most),
    }
}
