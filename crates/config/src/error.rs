//! The error of a configuration that cannot be used.

use std::path::PathBuf;

/// Error in the configuration. The text names the file and line, the key, and the fix.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file could not be read.
    #[error("{path}: {source}", path = .path.display())]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// The error of the system.
        source: std::io::Error,
    },
    /// The file is not valid.
    #[error("{}:{line}: {message}", .path.display())]
    Invalid {
        /// The file.
        path: PathBuf,
        /// Line of the fault, from 1.
        line: usize,
        /// The expected values, and the nearest valid name.
        message: String,
    },
    /// A value is out of its range, and comes from no file.
    #[error("{key} = {given}: {expected}")]
    OutOfRange {
        /// The key, or the environment variable.
        key: &'static str,
        /// The value that was given.
        given: String,
        /// The valid values.
        expected: String,
    },
    /// Each file is valid, but the files together are not.
    #[error("the files of the configuration do not fit together: {0}")]
    Contradictory(#[from] serde_json::Error),
}
