//! Functions that the checks of all sections share.

use isol8_api::ByteSize;

use crate::error::ConfigError;

/// Returns `None` for an empty text. An empty text means "not set", because TOML has no null and the shipped file has
/// every key.
pub(super) fn given(text: String) -> Option<String> {
    Some(text).filter(|text| !text.is_empty())
}

/// Returns a size as a number of bytes in memory. A size that does not fit is the largest number.
pub(super) fn bytes(size: ByteSize) -> usize {
    usize::try_from(size.bytes()).unwrap_or(usize::MAX)
}

/// Checks a value against a limit of the kernel.
pub(super) fn within_kernel_limit<T>(
    key: &'static str,
    given: T,
    most: T,
) -> Result<(), ConfigError>
where
    T: PartialOrd + std::fmt::Display + Copy,
{
    require(key, given, given <= most, || {
        format!("expected at most {most}, which is the kernel's limit")
    })
}

/// Checks that a value is between a minimum and its ceiling.
pub(super) fn within<T>(key: &'static str, given: T, least: T, most: T) -> Result<(), ConfigError>
where
    T: PartialOrd + std::fmt::Display + Copy,
{
    require(key, given, least <= given && given <= most, || {
        format!("expected {least} to {most}, the ceiling")
    })
}

/// Returns an error about a key if its condition does not hold.
pub(super) fn require(
    key: &'static str,
    given: impl ToString,
    holds: bool,
    expected: impl FnOnce() -> String,
) -> Result<(), ConfigError> {
    if holds {
        return Ok(());
    }
    Err(ConfigError::OutOfRange {
        key,
        given: given.to_string(),
        expected: expected(),
    })
}
