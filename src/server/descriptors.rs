//! The process's limit on open files, and the share of it for connections of clients.

use std::io;

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// Highest limit on open files that the server sets. More would slow down programs that close every possible descriptor
/// one by one.
const MAX_OPEN_FILES: u64 = 1 << 20;

/// Raises the process's soft limit on open files, often 1024, as far as its hard limit allows. Sandboxes have a limit of
/// their own.
pub(crate) fn raise_limit() {
    let limit = getrlimit(Resource::Nofile);
    let raised = Rlimit {
        current: limit
            .maximum
            .map_or(Some(MAX_OPEN_FILES), |most| Some(most.min(MAX_OPEN_FILES))),
        ..limit
    };
    if raised.current > limit.current
        && let Err(error) = setrlimit(Resource::Nofile, raised)
    {
        log::warn!(error:%; "the limit on open files stays as it is");
    }
}

/// Returns how many connections may be open at once: as many as the configuration says, and at most half of the files
/// that the process may open. The other half is for sandboxes, for their network connections, and for files.
///
/// # Errors
/// If no connection is possible.
pub(super) fn connection_limit(wanted: usize) -> io::Result<usize> {
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
