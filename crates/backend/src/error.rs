//! Errors below the actors.

use isol8_api::Runtime;

use crate::control::ControlError;

/// A backend did not do what it was asked.
#[derive(Debug, thiserror::Error)]
pub enum BackendError {
    /// The engine, or the part of the kernel that the backend needs, does not answer or refuses.
    #[error("{0}")]
    Unavailable(String),
    /// This runtime cannot run here; the text names the fix.
    #[error("runtime {runtime} is not available on the {backend} backend: {reason}")]
    RuntimeUnavailable {
        /// The runtime that was asked for.
        runtime: Runtime,
        /// The backend's name.
        backend: &'static str,
        /// Why, and the fix.
        reason: String,
    },
    /// This image cannot be used here; the text names the fix.
    #[error("image {image} is not available on the {backend} backend: {reason}")]
    ImageUnavailable {
        /// The image that was asked for.
        image: String,
        /// The backend's name.
        backend: &'static str,
        /// Why, and the fix.
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
    /// The guest did not do its part.
    #[error(transparent)]
    Control(#[from] ControlError),
    /// A file operation of the backend's own failed.
    #[error("{what}: {source}")]
    Io {
        /// The operation that failed.
        what: String,
        /// The system's answer.
        source: std::io::Error,
    },
}

impl BackendError {
    /// An [`BackendError::Io`] that says what was tried.
    pub fn io(what: impl Into<String>) -> impl FnOnce(std::io::Error) -> Self {
        let what = what.into();
        move |source| Self::Io { what, source }
    }
}
