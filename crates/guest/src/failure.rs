//! Failures in the form in which they are reported to the host.

use std::io;

use isol8_protocol::{Failure, FailureKind};

pub(crate) fn failure(kind: FailureKind, message: impl Into<String>) -> Failure {
    Failure {
        kind,
        message: message.into(),
    }
}

/// Returns the failure of an operation of the guest itself.
pub(crate) fn internal(what: &str, error: impl Into<io::Error>) -> Failure {
    let error = error.into();
    let kind = if is_exhausted(&error) {
        FailureKind::Exhausted
    } else {
        FailureKind::Internal
    };
    failure(kind, format!("{what}: {error}"))
}

/// Returns the failure to create one of the guest's files in a directory that user code writes to. User code may
/// have caused it, so it is no internal error, and the sandbox need not end.
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

/// Whether the error is a limit that user code can reach, which is no fault of the guest.
pub(crate) fn is_exhausted(error: &io::Error) -> bool {
    matches!(
        error.raw_os_error(),
        Some(libc::EAGAIN | libc::ENOMEM | libc::EMFILE | libc::ENFILE)
    )
}

/// Returns the failure of a file operation that was made with the rights of user code.
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
        Some(libc::EXDEV | libc::ELOOP) => (
            FailureKind::Refused,
            "leads out of /sandbox or /tmp".to_owned(),
        ),
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
