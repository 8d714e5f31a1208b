//! Functions that checks of values share.

use isol8_api::ByteSize;

use super::ConfigError;

/// An empty text stands for "not set": TOML has no null, and the shipped file shows every key.
pub(super) fn given(text: String) -> Option<String> {
    Some(text).filter(|text| !text.is_empty())
}

/// For what is in memory.
pub(super) fn bytes(size: ByteSize) -> usize {
    usize::try_from(size.bytes()).unwrap_or(usize::MAX)
}

pub(super) fn within_kernels<T>(key: &'static str, given: T, most: T) -> Result<(), ConfigError>
where
    T: PartialOrd + std::fmt::Display + Copy,
{
    require(key, given, given <= most, || {
        format!("expected at most {most}, which is the kernel's limit")
    })
}

pub(super) fn within<T>(key: &'static str, given: T, least: T, most: T) -> Result<(), ConfigError>
where
    T: PartialOrd + std::fmt::Display + Copy,
{
    require(key, given, least <= given && given <= most, || {
        format!("expected {least} to {most}, the ceiling")
    })
}

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
