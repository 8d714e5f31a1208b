//! Errors of backends, as the layers above see them.

use isol8_api::Runtime;

use crate::control::ControlError;

/// An error of a call to a backend.
#[derive(Debug, thiserror::Error)]
pub enum BackendError {
    /// The engine, or a part of the kernel that the backend needs, does not answer or refuses.
    #[error("{0}")]
    Unavailable(String),
    /// The runtime cannot run on this backend; the reason includes the fix.
    #[error("runtime {runtime} is not available on the {backend} backend: {reason}")]
    RuntimeUnavailable {
        /// The requested runtime.
        runtime: Runtime,
        /// Name of the backend.
        backend: &'static str,
        /// The reason and the fix.
        reason: String,
    },
    /// The image cannot be used on this backend; the reason includes the fix.
    #[error("image {image} is not available on the {backend} backend: {reason}")]
    ImageUnavailable {
        /// The requested image.
        image: String,
        /// Name of the backend.
        backend: &'static str,
        /// The reason and the fix.
        reason: String,
    },
    /// The sandbox could not be made.
    #[error("sandbox could not be created: {0}")]
    Create(String),
    /// The limits could not be changed.
    #[error("limits could not be applied: {0}")]
    Limits(String),
    /// The sandbox could not be removed; the backend keeps trying.
    #[error("sandbox could not be removed: {0}")]
    Destroy(String),
    /// A request to the guest failed.
    #[error(transparent)]
    Control(#[from] ControlError),
    /// A file operation of the backend itself failed.
    #[error("{what}: {source}")]
    Io {
        /// The failed operation, as the beginning of a sentence.
        what: String,
        /// The I/O error.
        source: std::io::Error,
    },
}

impl BackendError {
    /// Returns a function that wraps an I/O error in [`BackendError::Io`], with a text that names the operation.
    pub fn io(what: impl Into<String>) -> impl FnOnce(std::io::Error) -> Self {
        let what = what.into();
        move |source| Self::Io { what, source }
    }
}
