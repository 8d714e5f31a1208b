//! Failures as the host is told of them.

use std::io;

use isol8_protocol::{Failure, FailureKind};

pub(crate) fn failure(kind: FailureKind, message: impl Into<String>) -> Failure {
    Failure {
        kind,
        message: message.into(),
    }
}

/// The guest itself could not do something.
pub(crate) fn internal(what: &str, error: impl Into<io::Error>) -> Failure {
    let error = error.into();
    let kind = if is_exhausted(&error) {
        FailureKind::Exhausted
    } else {
        FailureKind::Internal
    };
    failure(kind, format!("{what}: {error}"))
}

/// The guest could not put a file of its own where user code writes too: no fault of the guest's, and
/// no reason to end the sandbox.
pub(crate) fn occupied(what: &str, error: io::Error) -> Failure {
    match error.raw_os_error() {
        Some(libc::ENOSPC | libc::EDQUOT) => {
            let text = format!("{what}: the sandbox is full, remove files from /tmp and /dev/shm");
            failure(FailureKind::NoSpace, text)
        }
        _ if is_exhausted(&error) => internal(what, error),
        _ => failure(FailureKind::Refused, format!("{what}: {error}")),
    }
}

/// Whether it is a limit that user code can reach, and by itself no fault of the guest's.
pub(crate) fn is_exhausted(error: &io::Error) -> bool {
    matches!(
        error.raw_os_error(),
        Some(libc::EAGAIN | libc::ENOMEM | libc::EMFILE | libc::ENFILE)
    )
}

/// A file operation that was tried with the rights of user code did not succeed.
pub(crate) fn file_failure(path: &str, error: impl Into<io::Error>) -> Failure {
    let error = error.into();
    if is_exhausted(&error) {
        return failure(FailureKind::Exhausted, format!("{path}: {error}"));
    }
    let (kind, reason) = match error.raw_os_error() {
        Some(libc::ENOENT | libc::ENOTDIR) => (FailureKind::NotFound, "does not exist".to_owned()),
        Some(libc::ENOSPC | libc::EDQUOT) => (
            FailureKind::NoSpace,
            "does not fit: the sandbox is full".to_owned(),
        ),
        Some(libc::EXDEV | libc::ELOOP) => {
            (FailureKind::Refused, "leads out of its place".to_owned())
        }
        Some(libc::ENXIO | libc::EISDIR | libc::EEXIST | libc::ENODEV) => {
            (FailureKind::Refused, "is not a regular file".to_owned())
        }
        Some(libc::EACCES | libc::EPERM | libc::ENAMETOOLONG | libc::EINVAL | libc::EROFS) => {
            (FailureKind::Refused, format!("is refused: {error}"))
        }
        _ if is_exhausted(&error) => (FailureKind::Exhausted, format!("failed: {error}")),
        _ => (FailureKind::Internal, format!("failed: {error}")),
    };
    failure(kind, format!("{path} {reason}"))
}
